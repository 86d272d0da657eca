#pragma once

// Pages of single heads with scored slots beside a rolling cache of the same policies: both get the same tokens with
// the same scores, and must keep the same ones.

#include "support/differences.hpp"
#include "support/scored_model.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/scored_pages_view.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/paged_scored.hpp>
#include <headaware/cache/scored_append.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace headaware_test {

/// Everything of the tables that a failed call must leave as it was.
struct ScoredTables {
  std::vector<std::int32_t> table;
  std::vector<std::int32_t> counters;
  std::vector<std::int32_t> references;

  explicit ScoredTables(ha::PagedHeads const& pages) : table(pages.table().begin(), pages.table().end()) {
    for (auto const& each : {pages.state().lengths(), pages.state().high_water()}) {
      counters.insert(counters.end(), each.begin(), each.end());
    }
    for (std::int32_t p = 0; p < pages.pool().num_pages(); ++p) references.push_back(pages.pool().references(p));
  }
  friend bool operator==(ScoredTables const&, ScoredTables const&) = default;
};

/// Owners of every page, by what heads hold.
inline std::vector<std::int32_t> page_owners(ha::PagedHeads const& pages) {
  std::vector<std::int32_t> owners(at(pages.pool().num_pages()), 0);
  auto const note = [&](std::int32_t page) {
    if (page >= 0) ++owners[at(page)];
  };
  for (std::int32_t layer = 0; layer < pages.slots().num_layers(); ++layer) {
    for (std::int32_t h = 0; h < pages.slots().heads().count(layer); ++h) {
      ha::PagedHead const& head = pages.head(layer, h);
      for (std::int32_t b = 0; b < pages.shape().num_sequences; ++b) {
        for (std::int64_t i = 0; i < head.pages(pages.length(b)); ++i) note(pages.page(layer, b, h, i));
        for (std::int64_t i = 0; i < head.pages(head.scored); ++i) note(pages.scored_page(layer, b, h, i));
      }
    }
  }
  return owners;
}

/// Where the row of a slot of a rolling cache lies in pages of the same heads.
struct PagedPlace {
  std::int32_t page;
  std::int64_t row;  ///< of the page

  /// @param slot  of the rolling cache, that shows `token`
  [[nodiscard]] static PagedPlace of(ha::PagedHeads const& pages, ha::Segment const& segment, std::int64_t slot,
                                     std::int32_t token) {
    std::int64_t const scored = slot - pages.slots().head(segment.layer, segment.kv_head).ring_end();
    std::int64_t const place = scored < 0 ? token : scored;
    ha::FixedDivisor const size = pages.head(segment.layer, segment.kv_head).page_size;
    std::int64_t const index = size.quotient(place);
    std::int32_t const page = scored < 0 ? pages.page(segment.layer, segment.sequence, segment.kv_head, index)
                                         : pages.scored_page(segment.layer, segment.sequence, segment.kv_head, index);
    return {page, size.remainder(place)};
  }
};

/// Positions of the first queries where the newest tokens of every sequence are queries.
inline std::vector<std::int32_t> first_query_positions(ha::RollingState const& state, std::int64_t tokens) {
  std::vector<std::int32_t> result;
  for (std::int32_t const length : state.lengths()) result.push_back(length - static_cast<std::int32_t>(tokens));
  return result;
}

/// New tokens of a step, [sequences, most, heads, channels], of two layers.
template <class T>
struct ScoredNews {
  std::int64_t most = 0;
  std::vector<std::vector<T>> tensors;  ///< keys and values of each layer
  std::vector<float> scores;            ///< [layers, sequences, heads, most]
  ha::KvLayouts<ha::StridedLayout, ha::StridedLayout> layout;

  [[nodiscard]] std::vector<ha::LayerKv<T const>> layers() const {
    std::vector<ha::LayerKv<T const>> result;
    for (std::size_t i = 0; i < tensors.size(); i += 2) result.push_back({tensors[i].data(), tensors[i + 1].data()});
    return result;
  }
};

template <class T>
struct ScoredPages {
  static constexpr std::int32_t batch = 3;
  static constexpr std::int32_t num_layers = 2;
  static constexpr std::int64_t max_tokens = 400;

  ha::PolicyTable table = scored_table(num_layers);
  std::int32_t heads = table.num_kv_heads(0);
  std::int64_t key_dim;
  std::int64_t value_dim;
  ha::PagedHeads pages;
  ha::RollingScores scores;  ///< of the pages
  ha::RollingScores rolled;
  std::int64_t page_stride;  ///< keys, then values, then a gap
  std::vector<T> pool;
  std::vector<T> keys;  ///< of the rolling cache
  std::vector<T> values;
  ha::RollingState state{batch};
  ha::PageStep step;  ///< the last one
  unsigned seed = 40;

  ScoredPages(std::int32_t page_size, std::int32_t slack, std::int64_t of_keys, std::int64_t of_values,
              std::int32_t num_pages = 0)
      : key_dim(of_keys),
        value_dim(of_values),
        pages(table, {.num_sequences = batch,
                      .page_size = page_size,
                      .num_pages = num_pages > 0 ? num_pages : 6000 / page_size + 300,
                      .limits = {.max_tokens = max_tokens, .slack = slack}}),
        scores(pages.slots()),
        rolled(pages.slots()),
        page_stride(page_size * (key_dim + value_dim) + 16),
        // What nothing was written to is no number.
        pool(at(pages.shape().num_pages * page_stride), ha::from_float<T>(std::nanf(""))),
        keys(at(pages.slots().rows_total() * key_dim), ha::from_float<T>(std::nanf(""))),
        values(at(pages.slots().rows_total() * value_dim), ha::from_float<T>(std::nanf(""))) {}

  [[nodiscard]] std::int64_t value_offset() const { return pages.shape().page_size * key_dim; }
  [[nodiscard]] ha::PageStorage<T> storage(T* of_pool) const {
    return {of_pool, of_pool + value_offset(), key_dim, value_dim, page_stride};
  }
  [[nodiscard]] auto cache() {
    return ha::rolling(pages.slots(), pages.slots().view(), keys.data(), values.data(), key_dim, value_dim);
  }
  [[nodiscard]] ScoredNews<T> news(std::int64_t most) {
    ScoredNews<T> result;
    result.most = most;
    result.layout = {ha::strided_bshd(batch, most, heads, key_dim), ha::strided_bshd(batch, most, heads, value_dim)};
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      result.tensors.push_back(random_elements<T>(result.layout.keys.required_span_size(), ++seed));
      result.tensors.push_back(random_elements<T>(result.layout.values.required_span_size(), ++seed));
    }
    result.scores = random_scores(at(std::int64_t{num_layers} * batch * heads * most), ++seed);
    return result;
  }
  /// Appends tokens to both caches: of every sequence those from `first[b]` on.
  void append(ScoredNews<T> const& all, std::vector<std::int32_t> const& counts,
              std::vector<std::int32_t> const& first) {
    ScoredNews<T> const part = part_of(all, counts, first);
    auto const of = ha::TokenScores::contiguous(part.scores.data(), batch, heads, part.most);
    std::vector<std::int32_t> const before(pages.table().begin(), pages.table().end());
    pages.append(counts, step);
    REQUIRE(takes_pages_that_rows_leave(before) == 0);
    ha::append(pages, step, part.layers(), part.layout, storage(pool.data()), scores.view(), of);
    ha::append(pages.slots().view(), state, part.layers(), part.layout, counts, cache(), rolled.view(), of);
  }
  /// Pages that a step has given to another head or place although it reads rows of theirs: in a launch nothing says
  /// which comes first. @param before  the table
  [[nodiscard]] int takes_pages_that_rows_leave(std::vector<std::int32_t> const& before) const {
    std::vector<char> read(at(pages.pool().num_pages()), 0);
    auto const for_each_entry = [&](auto const& f) {
      for (std::int32_t layer = 0; layer < num_layers; ++layer) {
        for (std::int32_t h = 0; h < heads; ++h) {
          ha::PagedHead const& head = pages.head(layer, h);
          for (std::int32_t b = 0; b < batch; ++b) {
            std::int64_t const first = b * head.sequence_entries + head.first_entry;
            for (std::int64_t i = 0; i < head.all_entries(); ++i) f(head, at(first + i));
          }
        }
      }
    };
    for_each_entry([&](ha::PagedHead const& head, std::size_t entry) {
      if (head.scored > 0 && before[entry] >= 0) read[at(before[entry])] = 1;
    });
    int taken = 0;
    for_each_entry([&](ha::PagedHead const&, std::size_t entry) {
      std::int32_t const now = pages.table()[entry];
      taken += now >= 0 && now != before[entry] && read[at(now)] != 0 ? 1 : 0;
    });
    return taken;
  }
  ScoredNews<T> append(std::vector<std::int32_t> const& counts) {
    ScoredNews<T> const all = news(std::max(1, *std::max_element(counts.begin(), counts.end())));
    append(all, counts, std::vector<std::int32_t>(batch, 0));
    return all;
  }
  void fork(std::int32_t from, std::int32_t to) {
    pages.release(to);
    ha::fork(pages, from, to, scores.view());
    std::vector<ha::SequenceCopy> const copies{{from, to}};
    ha::copy_sequences(pages.slots().view(), state, copies, cache(), rolled.view());
  }
  void rollback(std::int32_t sequence, std::int64_t tokens) {
    pages.rollback(sequence, tokens);
    state.rollback(pages.slots().view(), sequence, tokens);
  }
  void release(std::int32_t sequence) {
    pages.release(sequence);
    state.reset(sequence);
  }

  /// Calls `f(layer, sequence, KV head, position, key, value)` for all that the pages show to the newest token.
  template <class F>
  void for_each_shown(F const& f) {
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      for (std::int32_t b = 0; b < batch; ++b) {
        for (std::int32_t h = 0; h < heads; ++h) {
          ha::RollingHead const& head = pages.slots().head(layer, h);
          ha::Segment const segment{.layer = layer, .sequence = b, .kv_head = h};
          std::vector<std::int32_t> positions(at(head.slots()));
          ha::slot_positions(pages.slots().view(), scores.view(), layer, h, b, pages.length(b), positions);
          for (std::int64_t slot = 0; slot < head.slots(); ++slot) {
            std::int32_t const token = positions[at(slot)];
            if (token < 0) continue;
            auto const place = PagedPlace::of(pages, segment, slot, token);
            REQUIRE(place.page >= 0);
            T const* const first = pool.data() + place.page * page_stride;
            f(segment, slot, token, first + place.row * key_dim, first + value_offset() + place.row * value_dim);
          }
        }
      }
    }
  }
  /// The first difference between pages and rolling cache, and of owners of pages from those counted; empty: none.
  [[nodiscard]] std::string difference() {
    FirstDifference result;
    result.expect(std::equal(pages.state().lengths().begin(), pages.state().lengths().end(), state.lengths().begin()),
                  true, "lengths");
    result.expect(std::equal(scores.bytes().begin(), scores.bytes().end(), rolled.bytes().begin()), true,
                  "scores and records");
    auto const offsets = pages.slots().offsets();
    for_each_shown([&](ha::Segment const& at_head, std::int64_t slot, std::int32_t, T const* key, T const* value) {
      std::int64_t const row = offsets[at((at_head.layer * batch + at_head.sequence) * heads + at_head.kv_head)] + slot;
      auto const same = [](T const* got, T const* expected, std::int64_t channels) {
        return std::memcmp(got, expected, at(channels) * sizeof(T)) == 0;
      };
      bool const rows =
          same(key, keys.data() + row * key_dim, key_dim) && same(value, values.data() + row * value_dim, value_dim);
      result.expect(rows, true, "row of layer ", at_head.layer, ", sequence ", at_head.sequence, ", KV head ",
                    at_head.kv_head, ", slot ", slot);
    });
    result.expect(page_owners(pages) == ScoredTables(pages).references, true, "owners of pages");
    return result.text();
  }

  [[nodiscard]] ha::AttentionShape shape(std::int64_t tokens, std::int32_t group) const {
    return {batch, heads * group, heads, tokens, key_dim, value_dim};
  }
  [[nodiscard]] std::vector<std::int32_t> first_positions(std::int64_t tokens) const {
    return first_query_positions(state, tokens);
  }
  [[nodiscard]] ha::ScoredPagesView view(std::int32_t layer, std::int64_t tokens) {
    return {ha::HeadPagesView::of_chunk(pages.view(), layer, pages.state().lengths().data(), tokens, page_stride),
            scores.view()};
  }
  /// Attention of the newest tokens over the pages, or over the rolling cache.
  /// @param first  [sequences] positions of the first queries; empty: no mask
  [[nodiscard]] std::vector<float> attend(bool over_pages, std::int32_t layer, std::int64_t tokens, std::int32_t group,
                                          std::vector<std::int32_t> const& first) {
    auto const layout = ha::strided_bshd(batch, tokens, heads * group, key_dim);
    auto const output_layout = ha::strided_bshd(batch, tokens, heads * group, value_dim);
    auto const queries = random_elements<T>(layout.required_span_size(), 7);
    std::vector<float> output(at(output_layout.required_span_size()), 77);
    ha::AttentionOptions const options{.first_positions = first.empty() ? nullptr : first.data()};
    auto const call = [&](auto const& kept) {
      ha::attend(shape(tokens, group), ha::AttentionQueries{queries.data(), layout}, kept,
                 ha::AttentionOutput{output.data(), output_layout}, options);
    };
    if (over_pages) {
      call(ha::KeptCache{pool.data(), pool.data() + value_offset(), view(layer, tokens)});
    } else {
      auto const of_slots =
          ha::ScoredView::of_chunk(pages.slots().view(), rolled.view(), layer, state.lengths().data(), tokens);
      auto const rolling = cache();
      call(ha::KeptCache{rolling.layers[at(layer)].keys, rolling.layers[at(layer)].values, of_slots});
    }
    return output;
  }

 private:
  static ScoredNews<T> part_of(ScoredNews<T> const& all, std::vector<std::int32_t> const& counts,
                               std::vector<std::int32_t> const& first) {
    ScoredNews<T> part;
    part.most = std::max(1, *std::max_element(counts.begin(), counts.end()));
    auto const heads_of = all.layout.keys.num_kv_heads();
    auto const narrow = [&](ha::StridedLayout const& layout) {
      return ha::strided_bshd(batch, part.most, heads_of, layout.shape().channels);
    };
    part.layout = {narrow(all.layout.keys), narrow(all.layout.values)};
    for (std::size_t i = 0; i < all.tensors.size(); ++i) {
      auto const& from = i % 2 == 0 ? all.layout.keys : all.layout.values;
      auto const& to = i % 2 == 0 ? part.layout.keys : part.layout.values;
      std::vector<T> tensor(at(to.required_span_size()), ha::from_float<T>(99));
      for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t t = 0; t < counts[at(b)]; ++t) {
          for (std::int64_t h = 0; h < heads_of; ++h) {
            std::copy_n(all.tensors[i].data() + from.offset(b, h, first[at(b)] + t, 0), from.shape().channels,
                        tensor.data() + to.offset(b, h, t, 0));
          }
        }
      }
      part.tensors.push_back(std::move(tensor));
    }
    part.scores.resize(at(num_layers * batch * heads_of * part.most), 99);
    for (std::int64_t s = 0; s < num_layers * batch * heads_of; ++s) {
      std::int64_t const b = s / heads_of % batch;
      std::copy_n(all.scores.data() + s * all.most + first[at(b)], counts[at(b)], part.scores.data() + s * part.most);
    }
    return part;
  }
};

/// A random walk over appending, taking back, forking and freeing. @param check  (tokens of the last append) each step
template <class P, class Check>
void walk_scored_pages(P& p, unsigned seed, int steps, Check const& check) {
  std::mt19937 random(seed);
  auto const below = [&](std::int64_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound));
  };
  std::int32_t const slack = p.pages.shape().limits.slack;
  p.append({130, 1, 30});  // a prompt, of which most goes
  check(0);
  for (int step = 0; step < steps; ++step) {
    INFO("slack " << slack << ", step " << step);
    std::int32_t const b = below(3);
    std::int64_t appended = 0;
    switch (below(8)) {
      case 0: {
        std::int64_t const most = p.pages.max_rollback(b);
        p.rollback(b, below(2) == 0 ? most : below(most + 1));
        break;
      }
      case 1: p.fork(b, (b + 1 + below(2)) % 3); break;
      case 2:
        if (below(3) == 0) p.release(b);
        break;
      default: {
        std::vector<std::int32_t> counts;
        std::int32_t const most = below(6) == 0 ? 90 : slack + 2;
        for (std::int32_t i = 0; i < 3; ++i) {
          counts.push_back(below(most));
          if (p.pages.length(i) + counts.back() > P::max_tokens) counts.back() = 0;
        }
        p.append(counts);
        bool const all = std::all_of(counts.begin(), counts.end(), [&](std::int32_t n) { return n == counts[0]; });
        appended = all ? counts[0] : 0;
      }
    }
    check(appended);
  }
}

}  // namespace headaware_test
