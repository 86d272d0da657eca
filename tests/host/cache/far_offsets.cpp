// Offsets beyond 2^31 and 2^32 elements, in address space of which only what is touched exists.

#include "support/cache_arena.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/paged.hpp>
#include <headaware/layout/ragged.hpp>
#include <headaware/layout/strided.hpp>

#include <sys/mman.h>

#include <cstdint>
#include <numeric>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

class FarMemory {
 public:
  explicit FarMemory(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)) {
    data_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  FarMemory(FarMemory const&) = delete;
  FarMemory& operator=(FarMemory const&) = delete;
  ~FarMemory() {
    if (exists()) ::munmap(data_, bytes_);
  }
  [[nodiscard]] bool exists() const { return data_ != MAP_FAILED; }
  [[nodiscard]] std::uint8_t* data() const { return static_cast<std::uint8_t*>(data_); }

 private:
  std::size_t bytes_;
  void* data_;
};

constexpr std::int32_t tokens = 12;
constexpr std::int64_t dim = 3;

/// A byte that tells where it comes from.
std::uint8_t mark(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c, bool value) {
  return static_cast<std::uint8_t>(1 + b * 97 + h * 61 + t * 5 + c + (value ? 128 : 0));
}

/// Fills a source, compresses it into ragged and then in place, and looks at all that was kept.
/// @param at  (sequence, head, token, channel) to the element, by hand
template <class Layout, class At>
void check_far(Layout const& layout, At const& at, std::uint8_t* data, std::int64_t values_from, std::int64_t batch) {
  std::vector<std::int32_t> const lengths(static_cast<std::size_t>(batch), tokens);
  std::uint8_t* const values = data + values_from;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t c = 0; c < dim; ++c) {
          data[at(b, h, t, c)] = mark(b, h, t, c, false);
          values[at(b, h, t, c)] = mark(b, h, t, c, true);
        }
      }
    }
  }
  ha::Compaction const compaction(ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 1, .window = 3}), lengths);
  std::vector<std::uint8_t> k(static_cast<std::size_t>(compaction.kept_total() * dim));
  std::vector<std::uint8_t> v(k);
  std::vector<ha::LayerKv<std::uint8_t>> const layers{{data, values}};
  ha::compress(compaction, layers, layout, ha::ragged(compaction, k.data(), v.data(), dim));
  ha::compress_in_place(compaction, layers, layout);
  std::size_t row = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t slot = 0; slot < 4; ++slot, ++row) {
        std::int64_t const t = slot == 0 ? 0 : tokens - 4 + slot;
        for (std::int64_t c = 0; c < dim; ++c) {
          std::size_t const i = row * dim + static_cast<std::size_t>(c);
          REQUIRE(int{k[i]} == int{mark(b, h, t, c, false)});
          REQUIRE(int{v[i]} == int{mark(b, h, t, c, true)});
          REQUIRE(int{data[at(b, h, slot, c)]} == int{mark(b, h, t, c, false)});
          REQUIRE(int{values[at(b, h, slot, c)]} == int{mark(b, h, t, c, true)});
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("any stride of a tensor may exceed 32 bits", "[cache]") {
  constexpr std::int64_t far = (std::int64_t{1} << 32) + 4096;
  FarMemory const memory(tokens * far);
  if (!memory.exists()) HEADAWARE_SKIP("no 48 GiB of address space");
  ha::LayoutShape const shape{.num_sequences = 2, .num_kv_heads = 2, .tokens = tokens, .channels = dim};
  auto const check = [&](ha::LayoutStrides const& strides) {
    auto const at = [&](std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) {
      return b * strides.sequence + h * strides.head + t * strides.token + c * strides.channel;
    };
    ha::StridedLayout const layout(shape, strides);
    REQUIRE(layout.required_span_size() == at(1, 1, tokens - 1, dim - 1) + 1);
    check_far(layout, at, memory.data(), 512, 2);
  };
  check({.sequence = far, .head = 48, .token = 4, .channel = 1});
  check({.sequence = 128, .head = far, .token = 4, .channel = 1});
  check({.sequence = 16, .head = 8, .token = far, .channel = 1});
  check({.sequence = 64, .head = 16, .token = 1, .channel = far});
}

TEST_CASE("sequences and pages may lie beyond 32 bits", "[cache]") {
  constexpr std::int64_t rows = (std::int64_t{1} << 31) - 1;
  FarMemory const memory(2 * rows * 8);
  if (!memory.exists()) HEADAWARE_SKIP("no 32 GiB of address space");
  std::vector<std::int32_t> const cu_seqlens{0, static_cast<std::int32_t>(rows) - tokens,
                                             static_cast<std::int32_t>(rows)};
  ha::RaggedLayout const ragged(cu_seqlens.data(),
                                {.num_sequences = 2, .total = rows, .num_kv_heads = 2, .channels = dim},
                                {.token = 8, .head = 4, .channel = 1});
  auto const row = [&](std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) {
    return (cu_seqlens[static_cast<std::size_t>(b)] + t) * 8 + h * 4 + c;
  };
  check_far(ragged, row, memory.data(), rows * 8, 2);

  // The last two of a pool of 2^27 pages.
  constexpr std::int32_t pool = 1 << 27;
  std::vector<std::int32_t> const pages{pool - 1, 0, pool - 2};
  ha::PagedShape const shape{.num_sequences = 1, .num_kv_heads = 2, .channels = dim, .num_pages = pool, .page_size = 5};
  ha::PagedLayout const paged(ha::PageTable::dense(pages.data(), 3), shape,
                              {.page = 96, .head = 24, .token = 4, .channel = 1});
  auto const in_page = [&](std::int64_t, std::int64_t h, std::int64_t t, std::int64_t c) {
    return std::int64_t{pages[static_cast<std::size_t>(t / 5)]} * 96 + h * 24 + t % 5 * 4 + c;
  };
  check_far(paged, in_page, memory.data(), 48, 1);
}

TEST_CASE("pages of a compressed cache may lie beyond 32 bits", "[cache]") {
  constexpr std::int64_t stride = (std::int64_t{1} << 31) + 64;
  FarMemory const memory(4 * stride);
  if (!memory.exists()) HEADAWARE_SKIP("no 8 GiB of address space");
  std::vector<std::int32_t> const lengths{tokens};
  auto const layout = ha::strided_bhsd(1, 2, tokens, dim);
  SourceCache<std::uint8_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), 1, dim, dim, 403);
  ha::Compaction const compaction(ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 1, .window = 3}), lengths);
  std::vector<std::int32_t> const table{3, 1, 0, 2};
  ha::PagedForm const form{.block_table = table.data(), .table_stride = 2, .page_size = 2, .page_stride = stride};
  std::vector<ha::LayerKv<std::uint8_t>> const pool{{memory.data(), memory.data() + 32}};
  ha::compress(compaction, cache.layers(), layout, ha::paged(compaction, pool, form, dim, 4));
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t slot = 0; slot < 4; ++slot) {
      std::int64_t const t = slot == 0 ? 0 : tokens - 4 + slot;
      std::int64_t const row = table[static_cast<std::size_t>(h * 2 + slot / 2)] * stride + slot % 2 * dim;
      for (std::int64_t c = 0; c < dim; ++c) {
        REQUIRE(int{memory.data()[row + c]} == int{cache.key(0, 0, h, t, c)});
        REQUIRE(int{memory.data()[row + 32 + c]} == int{cache.value(0, 0, h, t, c)});
      }
    }
  }
}

TEST_CASE("rows of every form may lie beyond 32 bits", "[cache]") {
  // One long sequence gives each head room for 2^16 rows; of the many short ones the last lies beyond 2^31 bytes.
  constexpr std::int32_t batch = 2100;
  constexpr std::int32_t room = 1 << 16;
  constexpr std::int64_t channels = 16;
  constexpr std::int32_t last = batch - 1;
  std::vector<std::int32_t> lengths(batch, 6);
  lengths[0] = room;
  std::vector<std::int32_t> cu_seqlens(batch + 1);
  std::partial_sum(lengths.begin(), lengths.end(), cu_seqlens.begin() + 1);
  auto const layout = ha::ragged_thd(cu_seqlens.data(), batch, cu_seqlens.back(), 2, channels);
  SourceCache<std::uint8_t, ha::RaggedLayout> const cache(layout, layout.required_span_size(), 1, channels, channels,
                                                          404);
  ha::PolicyTable table(1, 2, ha::SinkWindow{.sink = 1, .window = 3});
  table.set(0, 0, ha::Full{});
  ha::Compaction const compaction(table, lengths);
  std::int64_t const tensor = std::int64_t{batch} * 2 * room * channels;
  FarMemory const memory(2 * tensor);
  if (!memory.exists()) HEADAWARE_SKIP("no 9 GiB of address space");
  std::uint8_t* const keys = memory.data();
  std::uint8_t* const values = keys + tensor;
  /// @param row_of  (head, slot) of the last sequence to the row, by hand
  auto const holds = [&](auto const& row_of) {
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t slot = 0; slot < (h == 0 ? 6 : 4); ++slot) {
        std::int64_t const t = h == 0 || slot == 0 ? slot : slot + 2;
        std::int64_t const at = row_of(h, slot) * channels;
        REQUIRE(at > std::int64_t{1} << 31);
        for (std::int64_t c = 0; c < channels; ++c) {
          REQUIRE(int{keys[at + c]} == int{cache.key(0, last, h, t, c)});
          REQUIRE(int{values[at + c]} == int{cache.value(0, last, h, t, c)});
          keys[at + c] = values[at + c] = 0;
        }
      }
    }
  };
  ha::compress(compaction, cache.layers(), layout, ha::padded(compaction, keys, values, channels));
  holds([&](std::int64_t h, std::int64_t slot) { return (std::int64_t{last} * 2 + h) * room + slot; });
  ha::compress(compaction, cache.layers(), layout,
               ha::padded(compaction, keys, values, channels, ha::Alignment::right));
  holds([&](std::int64_t h, std::int64_t slot) {
    return (std::int64_t{last} * 2 + h + 1) * room - (h == 0 ? 6 : 4) + slot;
  });
  ha::compress(compaction, cache.layers(), layout, ha::grouped(compaction, keys, values, channels));
  holds([&](std::int64_t h, std::int64_t slot) {
    return h == 0 ? std::int64_t{last} * room + slot : std::int64_t{batch} * room + last * 4 + slot;
  });

  ha::RollingSlots const rolling(table, batch, {.max_tokens = room});
  auto const view = rolling.view();
  auto const slots = ha::rolling(rolling, view, keys, values, channels);
  // The window's ring of 3 begins after the sink: tokens 3, 4, 5 in slots 3, 1, 2.
  auto const slot_row = [&](std::int64_t h, std::int64_t slot) {
    std::int64_t const first = std::int64_t{last} * (room + 4) + (h == 0 ? 0 : room);
    return first + (h == 0 || slot == 0 ? slot : slot == 1 ? 3 : slot - 1);
  };
  ha::compress(compaction, cache.layers(), layout, slots);
  holds(slot_row);
  ha::RollingState state(batch);
  std::vector<std::int32_t> counts(batch, 0);
  counts[last] = 6;
  ha::append(view, state, cache.layers(), layout, counts, slots);
  holds(slot_row);

  // Ragged rows leave no room between each other: that far is more than a test writes.
  constexpr std::int64_t row = (std::int64_t{1} << 31) + 5;
  REQUIRE(ha::RaggedForm{}.rows({.first_row = row}, {}).offset(7, channels) == (row + 7) * channels);
  REQUIRE(ha::RaggedForm{}.rows({.first_row = row / 16}, {}).offset(7, channels) == (row / 16 + 7) * channels);
}

TEST_CASE("strides beyond 32 bits", "[cache]") {
  // 2 heads, 6 GiB apart: mapped, but only the touched pages exist.
  constexpr std::int64_t head_stride = std::int64_t{3} << 30;
  constexpr std::size_t bytes = std::size_t{7} << 30;
  void* const mapped =
      mmap(nullptr, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) HEADAWARE_SKIP("no 14 GiB of address space");
  auto* const keys = static_cast<std::uint16_t*>(mapped);
  ha::StridedLayout const layout({1, 2, 40, 8}, {.sequence = 0, .head = head_stride, .token = 8, .channel = 1});
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t t = 0; t < 40; ++t) {
      for (std::int64_t c = 0; c < 8; ++c)
        keys[layout.offset(0, h, t, c)] = static_cast<std::uint16_t>(h * 1000 + t * 10 + c);
    }
  }
  REQUIRE(layout.offset(0, 1, 39, 7) > std::numeric_limits<std::int32_t>::max());
  ha::Compaction const compaction(ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 1, .window = 2}),
                                  std::vector<std::int32_t>{40});
  std::vector<std::uint16_t> k(6 * 8);
  std::vector<std::uint16_t> v(k);
  ha::compress(compaction, std::vector<ha::LayerKv<std::uint16_t const>>{{keys, keys}}, layout,
               ha::ragged(compaction, k.data(), v.data(), 8));
  REQUIRE(k[3 * 8] == 1000);
  REQUIRE(k[5 * 8 + 7] == 1000 + 390 + 7);
  REQUIRE(v == k);
  munmap(mapped, 2 * bytes);
}
