// Compaction in place on the device: whole tensors compared, so that nothing but the moved tokens may change.

#include "support/device_arena.cuh"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace in_place {

template <class T, class Source, class Compaction, class Table>
void check(SourceCache<T, Source> const& before, Source const& device_layout, Compaction const& compaction,
           Table const& d_table, std::size_t shift = 0) {
  std::vector<std::int32_t> const lengths(compaction.lengths().begin(), compaction.lengths().end());
  KeptTokens const tokens(compaction.table(), lengths);
  std::vector<std::int32_t> expected_kept;
  for (auto const& segment : tokens.segments) expected_kept.push_back(static_cast<std::int32_t>(segment.size()));
  DeviceSource<T, Source> const source(before, shift);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(expected_kept.size(), -1));
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{-7});
  auto d_compaction = compaction.on_device(d_table, d_lengths.data());
  d_compaction.d_kept = d_kept.data();
  d_compaction.d_status = d_status.data();
  Stream const stream;
  REQUIRE_CUDA(ha::device::compress_in_place(d_compaction, source.layers, device_layout, {}, stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  REQUIRE(source_difference(source, compacted_in_place(before, tokens), shift) == "");
  REQUIRE(d_kept.host() == expected_kept);
  REQUIRE(d_status.host()[0] == 0);
}

template <class T>
void check_random(unsigned seed) {
  std::mt19937 random(seed);
  RandomBounds const bounds{.heads = 3, .tokens = 300, .widths = {1, 3, 8, 16, 31, 40}};
  for_random_caches<T>(seed, 25, bounds, random, [&](auto const& cache, auto const& table, auto const& lengths) {
    DeviceTable const d_table(table);
    check(cache, cache.source, ha::Compaction(table, lengths), d_table.view(), random() % 3);
  });
}

/// Offsets of one's own, with what compaction in place asks for besides.
struct HeadsFastest {
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return ((b * 400 + t) * 6 + c) * 2 + h;
  }
  [[nodiscard]] std::int64_t num_channels() const { return 6; }
};

struct Hashed {
  static constexpr std::string_view name = "hashed";
  std::uint32_t density = 100;  ///< of 256
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t length) const {
    return static_cast<std::uint32_t>(token * 31 + length) * 2654435761U >> 24 < density;
  }
  friend bool operator==(Hashed const&, Hashed const&) = default;
};

}  // namespace in_place

using namespace in_place;

TEST_CASE("in place on the device, one-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_random<std::uint8_t>(531);
}
TEST_CASE("in place on the device, two-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_random<ha::bfloat16>(532);
}
TEST_CASE("in place on the device, eight-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_random<std::uint64_t>(533);
}

TEST_CASE("in place on the device, rows wider than a block moves at once, windows that overlap their source",
          "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{40};
  ha::PolicyTable table(1, 2, ha::SinkWindow{.sink = 1, .window = 38});
  table.set(0, 1, ha::WindowOnly{.window = 39});
  DeviceTable const d_table(table);
  for (auto const& layout : {ha::strided_bhsd(1, 2, 40, 1500), ha::strided_bhds(1, 2, 1500, 40)}) {
    SourceCache<std::uint8_t, Strided> const cache({layout, layout}, layout.required_span_size(), 1, 1500, 1500, 534);
    check(cache, cache.source, ha::Compaction(table, lengths), d_table.view());
    check(cache, cache.source, ha::Compaction(table, lengths), d_table.view(), 1);
  }
}

// Blocks share a head whose rows all move by as many: chains of few rows and of many, fewer and more chains than
// blocks.
TEST_CASE("in place on the device, long heads that blocks share", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int32_t tokens = 1500;
  std::vector<std::int32_t> const lengths{tokens, 1201};
  for (std::int32_t const window : {1, 64, 700, 900, 1136, 1300, 1431, 1495}) {
    INFO("window " << window);
    ha::PolicyTable table(1, 3, ha::SinkWindow{.sink = 4, .window = window});
    table.set(0, 1, ha::WindowOnly{.window = window + 4});
    table.set(0, 2, ha::Full{});
    DeviceTable const d_table(table);
    ha::Compaction const compaction(table, lengths);
    for (std::int64_t const channels : {1, 24}) {  // narrow and wide accesses
      auto const layout = ha::strided_bhsd(2, 3, tokens, channels);
      SourceCache<std::uint16_t, Strided> const cache({layout, layout}, layout.required_span_size(), 1, channels,
                                                      channels, 538);
      check(cache, cache.source, compaction, d_table.view());
    }
  }
}

TEST_CASE("in place on the device, pages whose channels are split", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr unsigned seed = 535;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::vector<std::int32_t> pages(2 * 20);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), random);
  DeviceVector<std::int32_t> const d_pages(pages);
  ha::PagedShape const shape{.num_sequences = 2, .num_kv_heads = 2, .channels = 16, .num_pages = 40, .page_size = 16};
  auto const layout = [&](std::int32_t const* table) {
    return ha::vllm_paged_attention(ha::PageTable::dense(table, 20), shape, 8);
  };
  using Layout = decltype(layout(nullptr));
  SourceCache<std::uint16_t, Layout> const cache(layout(pages.data()), std::int64_t{40} * 16 * 2 * 16, 2, 16, 16, seed);
  for (int i = 0; i < 5; ++i) {
    ha::PolicyTable const table = random_table(2, 2, 300, random);
    DeviceTable const d_table(table);
    check(cache, layout(d_pages.data()), ha::Compaction(table, std::vector<std::int32_t>{300, 117}), d_table.view());
  }
}

TEST_CASE("in place on the device, a policy and a layout of one's own", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  using Registry = ha::DefaultRegistry::with<Hashed>;
  ha::BasicPolicyTable<Registry> table(1, 2, Hashed{});
  table.set(0, 1, Hashed{230});
  DeviceTable const d_table(table);
  SourceCache<float, HeadsFastest> const cache({}, 2 * 400 * 6 * 2, 1, 6, 6, 536);
  check(cache, cache.source, ha::Compaction(table, std::vector<std::int32_t>{400, 33}), d_table.view());
}

TEST_CASE("in place on the device, what is refused and what is empty", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  auto const layout = ha::strided_bhsd(2, 3, 20, 4);
  Strided const source_layout{layout, layout};
  SourceCache<float, Strided> const cache(source_layout, layout.required_span_size(), 2, 4, 4, 537);
  DeviceSource<float, Strided> const source(cache);
  std::vector<std::int32_t> const lengths{20, 12};
  ha::PolicyTable const table(2, 3, ha::WindowOnly{.window = 4});
  DeviceTable const d_table(table);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  auto const compaction = ha::Compaction(table, lengths).on_device(d_table.view(), d_lengths.data());
  auto const refused = [&](auto const& d_compaction, auto const& layers, Strided const& lies) {
    REQUIRE(ha::device::compress_in_place(d_compaction, layers, lies, {}, nullptr) == cudaErrorInvalidValue);
    REQUIRE_CUDA(cudaGetLastError());
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE(source_difference(source, cache) == "");
  };
  auto layers = source.layers;
  layers[1].values = nullptr;
  refused(compaction, layers, source_layout);
  layers = source.layers;
  layers[0].keys = reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(layers[0].keys) + 2);
  refused(compaction, layers, source_layout);
  refused(compaction, std::vector<ha::LayerKv<float>>{source.layers[0]}, source_layout);
  refused(compaction, source.layers, {layout, ha::strided_bhsd(2, 3, 19, 4)});
  refused(compaction, source.layers, {ha::strided_bhsd(2, 4, 20, 4), layout});
  auto no_lengths = compaction;
  no_lengths.d_lengths = nullptr;
  refused(no_lengths, source.layers, source_layout);
  ha::PolicyTable const deep(257, 3, ha::WindowOnly{.window = 4});
  refused(ha::Compaction(deep, lengths).on_device(deep.view_at(d_table.view().data()), d_lengths.data()),
          std::vector<ha::LayerKv<float>>(257, source.layers[0]), source_layout);

  // A length out of range: its heads stay as they are, the others are compacted, and the status tells.
  for (std::int32_t const bad : {21, -1}) {
    DeviceSource<float, Strided> const fresh(cache);
    DeviceVector<std::int32_t> const d_bad(std::vector<std::int32_t>{bad, 12});
    DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{0});
    auto bad_lengths = compaction;
    bad_lengths.d_lengths = d_bad.data();
    bad_lengths.d_status = d_status.data();
    REQUIRE_CUDA(ha::device::compress_in_place(bad_lengths, fresh.layers, source_layout, {}, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    auto expected = cache.keys[1];
    for (std::int64_t h = 0; h < 3; ++h) {
      for (std::int64_t i = 0; i < 16; ++i) {
        expected[static_cast<std::size_t>(layout.offset(1, h, 0, 0) + i)] =
            cache.keys[1][static_cast<std::size_t>(layout.offset(1, h, 8, 0) + i)];
      }
    }
    REQUIRE(first_difference(fresh.tensor(2), expected) == "");
    REQUIRE(d_status.host()[0] == 1);
  }

  // Nothing kept: no tensor is needed, and the counts still come out.
  ha::PolicyTable const pruned(2, 3, ha::Prune{});
  DeviceTable const d_pruned(pruned);
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(12, -1));
  auto none = ha::Compaction(pruned, lengths).on_device(d_pruned.view(), d_lengths.data());
  none.d_kept = d_kept.data();
  REQUIRE_CUDA(ha::device::compress_in_place(none, std::vector<ha::LayerKv<float>>(2), source_layout, {}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(d_kept.host() == std::vector<std::int32_t>(12, 0));
  auto const empty = ha::strided_bhsd(0, 3, 0, 4);
  REQUIRE_CUDA(ha::device::compress_in_place(
      ha::Compaction(table, std::vector<std::int32_t>{}).on_device(d_table.view(), nullptr),
      std::vector<ha::LayerKv<float>>(2), Strided{empty, empty}, {}, nullptr));
}
