#pragma once

// What the tests of layouts share: an engine's documented array, tables, and the meaning of
// channel_run, all written without the library.

#include "support/catch.hpp"

#include <headaware/layout/concept.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <random>
#include <vector>

namespace layout_test {

/// The places of a C-contiguous array of the documented shape: `at(i, j, ...)` is how many elements come
/// before element [i][j]....
class Array {
 public:
  Array(std::initializer_list<std::int64_t> shape) : shape_(shape) {}

  template <class... Index>
  [[nodiscard]] std::int64_t at(Index... index) const {
    std::vector<std::int64_t> const indices{static_cast<std::int64_t>(index)...};
    REQUIRE(indices.size() == shape_.size());
    std::int64_t place = 0;
    for (std::size_t i = 0; i < shape_.size(); ++i) {
      REQUIRE((indices[i] >= 0 && indices[i] < shape_[i]));
      place = place * shape_[i] + indices[i];
    }
    return place;
  }
  [[nodiscard]] std::int64_t size() const {
    return std::accumulate(shape_.begin(), shape_.end(), std::int64_t{1}, [](auto a, auto b) { return a * b; });
  }

 private:
  std::vector<std::int64_t> shape_;
};

/// Pages of a pool handed out at random, one row a sequence, as a dense table and in CSR form.
struct Pages {
  std::vector<std::vector<std::int32_t>> rows;
  std::vector<std::int32_t> dense;
  std::vector<std::int32_t> indices;
  std::vector<std::int32_t> indptr{0};
  std::int64_t max_pages = 0;
  std::int64_t row_stride = 0;

  /// @param lengths  tokens of each sequence
  /// @param num_pages  of the pool; each is handed out, to the last sequence if to no other
  Pages(std::vector<std::int64_t>& lengths, std::int64_t page_size, std::int64_t num_pages, std::mt19937& random) {
    std::vector<std::int32_t> pool(static_cast<std::size_t>(num_pages));
    std::iota(pool.begin(), pool.end(), 0);
    std::shuffle(pool.begin(), pool.end(), random);
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      auto count = static_cast<std::size_t>((lengths[s] + page_size - 1) / page_size);
      if (s + 1 == lengths.size() && count < pool.size()) {
        count = pool.size();
        lengths[s] = num_pages == 0 ? 0 : static_cast<std::int64_t>(count) * page_size;
      }
      REQUIRE(count <= pool.size());
      rows.emplace_back(pool.end() - static_cast<std::ptrdiff_t>(count), pool.end());
      pool.resize(pool.size() - count);
      max_pages = std::max(max_pages, static_cast<std::int64_t>(count));
    }
    row_stride = max_pages + 3;
    dense.assign(static_cast<std::size_t>(row_stride) * rows.size(), -1);  // -1: never to be read
    for (std::size_t s = 0; s < rows.size(); ++s) {
      std::copy(rows[s].begin(), rows[s].end(), dense.begin() + static_cast<std::ptrdiff_t>(s) * row_stride);
      indices.insert(indices.end(), rows[s].begin(), rows[s].end());
      indptr.push_back(static_cast<std::int32_t>(indices.size()));
    }
  }

  [[nodiscard]] std::int64_t page(std::int64_t sequence, std::int64_t index) const {
    return rows[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(index)];
  }
};

/// Calls f(sequence, head, token) for every row of a cache.
template <class F>
void for_each_row(std::vector<std::int64_t> const& lengths, std::int64_t num_kv_heads, F&& f) {
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    for (std::int64_t h = 0; h < num_kv_heads; ++h) {
      for (std::int64_t t = 0; t < lengths[s]; ++t) f(static_cast<std::int64_t>(s), h, t);
    }
  }
}

/// Whether channels lie in aligned runs of `run`, as the concept words it.
template <class Layout>
bool is_run(Layout const& layout, std::vector<std::int64_t> const& lengths, std::int64_t num_kv_heads,
            std::int64_t channels, std::int64_t run) {
  bool holds = true;
  for_each_row(lengths, num_kv_heads, [&](std::int64_t s, std::int64_t h, std::int64_t t) {
    for (std::int64_t c = 0; c < channels && holds; ++c) {
      std::int64_t const offset = layout.offset(s, h, t, c);
      std::int64_t const first = layout.offset(s, h, t, c / run * run);
      holds = first % run == 0 && offset == first + c % run;
    }
  });
  return holds;
}

/// The longest run that divides the channels, found by trying.
template <class Layout>
std::int64_t longest_run(Layout const& layout, std::vector<std::int64_t> const& lengths, std::int64_t num_kv_heads,
                         std::int64_t channels) {
  std::int64_t run = channels;
  while (channels % run != 0 || !is_run(layout, lengths, num_kv_heads, channels, run)) --run;
  return run;
}

/// Compares every offset with the definition, `expected(sequence, head, token, channel)`, and what the
/// layout says of itself with what is so. `tensor_size`: elements from the base pointer to the tensor's end.
template <class Layout, class Expected>
void check_layout(Layout const& layout, std::vector<std::int64_t> const& lengths, std::int64_t num_kv_heads,
                  std::int64_t channels, std::int64_t tensor_size, Expected&& expected) {
  static_assert(headaware::KvLayout<Layout>);
  CHECK(layout.num_sequences() == static_cast<std::int64_t>(lengths.size()));
  CHECK(layout.num_kv_heads() == num_kv_heads);
  CHECK(layout.num_channels() == channels);
  CHECK(layout.token_capacity() >= *std::max_element(lengths.begin(), lengths.end()));
  CHECK(layout.required_span_size() == tensor_size);
  std::int64_t wrong = 0;
  bool contiguous = true;
  for_each_row(lengths, num_kv_heads, [&](std::int64_t s, std::int64_t h, std::int64_t t) {
    for (std::int64_t c = 0; c < channels; ++c) {
      std::int64_t const offset = layout.offset(s, h, t, c);
      wrong += offset != expected(s, h, t, c);
      wrong += offset < 0 || offset >= tensor_size;
      contiguous = contiguous && offset == layout.offset(s, h, t, 0) + c;
    }
  });
  CHECK(wrong == 0);
  CHECK((layout.rows_contiguous() == contiguous || channels == 1));
  CHECK(layout.channel_run() == longest_run(layout, lengths, num_kv_heads, channels));
}

/// A value in [low, high].
inline std::int64_t pick(std::mt19937& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

}  // namespace layout_test
