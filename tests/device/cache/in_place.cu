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

template <class T, class Source, class Plan, class Table>
void check(SourceCache<T, Source> const& before, Source const& device_layout, Plan const& plan, Table const& d_table,
           std::size_t shift = 0) {
  std::vector<std::int32_t> const lengths(plan.lengths().begin(), plan.lengths().end());
  KeptTokens const tokens(plan.table(), lengths);
  auto expected = before;
  std::vector<std::int32_t> expected_kept;
  auto const keys = ha::detail::keys_of(before.source);
  auto const values = ha::detail::values_of(before.source);
  tokens.for_each([&](auto l, auto b, auto h) {
    auto const layer = static_cast<std::int32_t>(l);
    auto const& kept = tokens.segments[static_cast<std::size_t>(tokens.segment(l, b, h))];
    expected_kept.push_back(static_cast<std::int32_t>(kept.size()));
    for (std::size_t i = 0; i < kept.size(); ++i) {
      auto const slot = static_cast<std::int64_t>(i);
      auto const at = [](std::int64_t offset) { return static_cast<std::size_t>(offset); };
      for (std::int64_t c = 0; c < before.head_dim; ++c) {
        expected.keys[at(l)][at(keys.offset(b, h, slot, c))] = before.key(layer, b, h, kept[i], c);
      }
      for (std::int64_t c = 0; c < before.value_dim; ++c) {
        expected.values[at(l)][at(values.offset(b, h, slot, c))] = before.value(layer, b, h, kept[i], c);
      }
    }
  });
  DeviceSource<T, Source> const source(before, shift);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(expected_kept.size(), -1));
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{-7});
  auto d_plan = plan.on_device(d_table, d_lengths.data());
  d_plan.d_kept = d_kept.data();
  d_plan.d_status = d_status.data();
  Stream const stream;
  REQUIRE_CUDA(ha::device::compress_in_place(d_plan, source.layers, device_layout, {}, stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  for (std::size_t l = 0; l < before.keys.size(); ++l) {
    REQUIRE(first_difference(source.tensor(2 * l, shift), expected.keys[l]) == "");
    REQUIRE(first_difference(source.tensor(2 * l + 1, shift), expected.values[l]) == "");
  }
  REQUIRE(d_kept.host() == expected_kept);
  REQUIRE(d_status.host()[0] == 0);
}

using Strided = ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>;

template <class T>
void check_random(unsigned seed) {
  std::mt19937 random(seed);
  auto const below = [&](std::int64_t bound) { return static_cast<std::int64_t>(random()) % bound; };
  for (int i = 0; i < 25; ++i) {
    INFO("seed " << seed << ", case " << i);
    auto const layers = static_cast<std::int32_t>(1 + below(3));
    auto const heads = static_cast<std::int32_t>(1 + below(3));
    std::vector<std::int32_t> lengths{static_cast<std::int32_t>(below(300)), 0, static_cast<std::int32_t>(below(300))};
    if (random() % 2 == 0) lengths.resize(1);
    std::int32_t const longest = *std::max_element(lengths.begin(), lengths.end());
    auto const batch = static_cast<std::int64_t>(lengths.size());
    std::vector<std::int64_t> const widths{1, 3, 8, 16, 31, 40};
    Channels const channels{widths[random() % widths.size()], widths[random() % widths.size()]};
    std::int64_t const room = longest + below(3);
    Strided const source{random_strides({batch, heads, room, channels.key}, random),
                         random_strides({batch, heads, room, channels.value}, random)};
    SourceCache<T, Strided> const cache(source,
                                        std::max(source.keys.required_span_size(), source.values.required_span_size()),
                                        layers, channels.key, channels.value, seed);
    ha::PolicyTable const table = random_table(layers, heads, longest, random);
    DeviceTable const d_table(table);
    check(cache, source, ha::Compaction(table, lengths), d_table.view(), static_cast<std::size_t>(below(3)));
  }
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
  auto const plan = ha::Compaction(table, lengths).on_device(d_table.view(), d_lengths.data());
  auto const refused = [&](auto const& d_plan, auto const& layers, Strided const& lies) {
    REQUIRE(ha::device::compress_in_place(d_plan, layers, lies, {}, nullptr) == cudaErrorInvalidValue);
    REQUIRE_CUDA(cudaGetLastError());
    REQUIRE_CUDA(cudaDeviceSynchronize());
    for (std::size_t l = 0; l < 2; ++l) {
      REQUIRE(first_difference(source.tensor(2 * l), cache.keys[l]) == "");
      REQUIRE(first_difference(source.tensor(2 * l + 1), cache.values[l]) == "");
    }
  };
  auto layers = source.layers;
  layers[1].values = nullptr;
  refused(plan, layers, source_layout);
  layers = source.layers;
  layers[0].keys = reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(layers[0].keys) + 2);
  refused(plan, layers, source_layout);
  refused(plan, std::vector<ha::LayerKv<float>>{source.layers[0]}, source_layout);
  refused(plan, source.layers, {layout, ha::strided_bhsd(2, 3, 19, 4)});
  refused(plan, source.layers, {ha::strided_bhsd(2, 4, 20, 4), layout});
  auto no_lengths = plan;
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
    auto bad_plan = plan;
    bad_plan.d_lengths = d_bad.data();
    bad_plan.d_status = d_status.data();
    REQUIRE_CUDA(ha::device::compress_in_place(bad_plan, fresh.layers, source_layout, {}, nullptr));
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
