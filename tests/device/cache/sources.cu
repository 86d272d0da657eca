// Tables, policies and layouts of every kind on the device, whole buffers compared with plain loops.

#include "support/device_arena.cuh"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace sources {

constexpr std::int32_t num_layers = 2;
constexpr std::int32_t heads = 3;

struct HeadsFastest {
  std::int64_t tokens;
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return ((b * tokens + t) * 6 + c) * heads + h;
  }
};

/// Tokens from the newest to the oldest, in rows of which it only says that they are in one piece.
struct NewestFirst {
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return ((b * heads + h) * 300 + (299 - t)) * 16 + c;
  }
  [[nodiscard]] std::int64_t channel_run() const { return 16; }
};

/// Only the one function.
struct Hashed {
  static constexpr std::string_view name = "hashed";
  std::uint32_t seed = 7;
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t length) const {
    return ((static_cast<std::uint32_t>(token * 31 + length) ^ seed) * 2654435761U >> 24) < 100;
  }
  friend bool operator==(Hashed const&, Hashed const&) = default;
};

/// Counts what it keeps, but finds no slot's token by itself.
struct EveryOther {
  static constexpr std::string_view name = "every_other";
  std::int64_t phase = 0;  ///< 0 or 1
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t) const { return token % 2 == phase; }
  HEADAWARE_HOST_DEVICE std::int64_t kept_before(std::int64_t token, std::int64_t) const {
    return (token + 1 - phase) / 2;
  }
  friend bool operator==(EveryOther const&, EveryOther const&) = default;
};

}  // namespace sources

using namespace sources;

TEST_CASE("on the device one policy with one function, a layout with one function", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{70, 0, 41};
  ha::UniformTable const table(Hashed{}, num_layers, heads);
  SourceCache<std::uint16_t, HeadsFastest> const cache({70}, 3 * 70 * 6 * heads, num_layers, 6, 6, 511);
  check_device_ragged_and_paged(cache, cache.source, ha::Compaction(table, lengths), KeptTokens(table, lengths), table,
                                7, 511);
}

TEST_CASE("on the device policies of one's own beside the library's", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{300, 1, 257};  // more kept tokens than a tile has rows
  using Registry = ha::DefaultRegistry::with<Hashed, EveryOther>;
  ha::BasicPolicyTable<Registry> table(num_layers, heads, EveryOther{1});
  table.set(0, 0, Hashed{});
  table.set(0, 1, ha::WindowOnly{.window = 256});
  table.set(1, 2, EveryOther{0});
  SourceCache<float, NewestFirst> const cache({}, 3 * heads * 300 * 16, num_layers, 16, 16, 512);
  DeviceTable const d_table(table);
  check_device_ragged_and_paged(cache, cache.source, ha::Compaction(table, lengths), KeptTokens(table, lengths),
                                d_table.view(), 16, 512);
}

TEST_CASE("on the device pages of a CSR table", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr unsigned seed = 513;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::vector<std::int32_t> const lengths{50, 0, 33};
  for (std::int64_t const page_size : {1, 5, 16}) {
    std::vector<std::int32_t> indptr{0};
    for (auto const length : lengths) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>((length + page_size - 1) / page_size));
    }
    std::vector<std::int32_t> indices(static_cast<std::size_t>(indptr.back()));
    std::iota(indices.begin(), indices.end(), 1);
    std::shuffle(indices.begin(), indices.end(), random);
    DeviceVector<std::int32_t> const d_indices(indices);
    DeviceVector<std::int32_t> const d_indptr(indptr);
    ha::PagedShape const shape{.num_sequences = 3,
                               .num_kv_heads = heads,
                               .channels = 8,
                               .num_pages = indptr.back() + 2,
                               .page_size = page_size};
    for (auto const order : {ha::PageOrder::nhd, ha::PageOrder::hnd}) {
      auto const layout = [&](std::int32_t const* pages, std::int32_t const* ends) {
        return ha::flashinfer_joined(ha::PageTable::csr(pages, ends), shape, order);
      };
      using Layout = decltype(layout(nullptr, nullptr));
      ha::PolicyTable const table = random_table(num_layers, heads, 50, random);
      DeviceTable const d_table(table);
      SourceCache<std::uint16_t, Layout> const cache(
          layout(indices.data(), indptr.data()), shape.num_pages * page_size * heads * 8 * 2, num_layers, 8, 8, seed);
      check_device_ragged_and_paged(cache, layout(d_indices.data(), d_indptr.data()), ha::Compaction(table, lengths),
                                    KeptTokens(table, lengths), d_table.view(), page_size == 5 ? 7 : 16, seed);
    }
  }
}

TEST_CASE("on the device keep-lists over one policy, bad entries left out", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr unsigned seed = 514;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::vector<std::int32_t> const lengths{90, 40};
  std::vector<std::int32_t> entries;
  std::vector<ha::KeepList> lists(num_layers * 2 * heads);
  for (std::size_t s = 0; s < lists.size(); ++s) {
    if (s % 4 == 3) continue;
    lists[s].count = static_cast<std::int64_t>(entries.size());
    for (std::int32_t t = 0; t < lengths[s / heads % 2]; ++t) {
      if (random() % 2 == 0) entries.push_back(t);
    }
    lists[s].count = static_cast<std::int64_t>(entries.size()) - lists[s].count;
  }
  DeviceVector<std::int32_t> const d_entries(entries);
  auto d_host_lists = lists;
  for (std::size_t s = 0, first = 0; s < lists.size(); ++s) {
    if (s % 4 == 3) continue;
    lists[s].tokens = entries.data() + first;
    d_host_lists[s].tokens = d_entries.data() + first;
    first += static_cast<std::size_t>(lists[s].count);
  }
  DeviceVector<ha::KeepList> const d_lists(d_host_lists);
  ha::UniformTable const below(ha::SinkWindow{.sink = 3, .window = 20}, num_layers, heads);
  ha::WithKeepLists const table(below, lists.data(), 2);
  ha::WithKeepLists const d_table(below, d_lists.data(), 2);
  ha::Compaction const compaction(table, lengths);
  auto const layout = ha::strided_bhsd(2, heads, 90, 24);
  SourceCache<std::uint16_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), num_layers, 24, 24,
                                                            seed);
  KeptTokens const tokens(table, lengths);
  check_device_forms(cache, layout, compaction, tokens, d_table, 16, seed);

  // Entries that name no token of the sequence: their rows stay as they are, and nothing else suffers.
  auto bad = entries;
  std::vector<std::size_t> broken;
  for (std::int32_t const value : {-1, 90, 1 << 30, std::numeric_limits<std::int32_t>::min()}) {
    broken.push_back(static_cast<std::size_t>(lists[0].count) + 3 + 2 * broken.size());  // in the second list
    bad[broken.back()] = value;
  }
  REQUIRE_CUDA(cudaMemcpy(d_entries.data(), bad.data(), bad.size() * sizeof(bad[0]), cudaMemcpyHostToDevice));
  DeviceSource<std::uint16_t, ha::StridedLayout> const source(cache);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  auto arena = guarded<std::uint16_t>(compaction.kept_total() * 24);
  DeviceVector<std::uint16_t> const keys(arena);
  DeviceVector<std::uint16_t> const values(arena);
  run_compress(compaction.on_device(d_table, d_lengths.data()),
               ha::transfer(source.layers, layout, ha::ragged(compaction, keys.data(), values.data(), 24)));
  std::size_t row = 0;
  tokens.for_each_row([&](auto l, auto b, auto h, auto, auto token) {
    for (std::int64_t c = 0; c < 24 && std::count(broken.begin(), broken.end(), row) == 0; ++c) {
      arena[row * 24 + static_cast<std::size_t>(c)] = cache.key(l, b, h, token, c);
    }
    ++row;
  });
  REQUIRE(first_difference(keys.host(), arena) == "");

  // In place, too: those slots keep what they held.
  auto const expected = compacted_in_place(cache, tokens, [&](auto l, auto b, auto h, auto slot) {
    return tokens.segment(l, b, h) != 1 ||
           std::count(broken.begin(), broken.end(), static_cast<std::size_t>(slot + lists[0].count)) == 0;
  });
  REQUIRE_CUDA(ha::device::compress_in_place(compaction.on_device(d_table, d_lengths.data()), source.layers, layout, {},
                                             nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(source_difference(source, expected) == "");
}
