// Caches of a model whose layers differ, on the device: every form in one call of two launches, in place, rolling and
// paged appends in one launch for all layers.

#include "support/catch.hpp"
#include "support/device.hpp"
#include "support/device_cache.cuh"
#include "support/mixed_device.cuh"
#include "support/mixed_model.hpp"
#include "support/mixed_pages.hpp"

#include <headaware/cache/compact.cuh>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rolling.cuh>

#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

std::vector<std::int32_t> const lengths{23, 5, 0, 14};

/// Buffers of a cache on the device, and copies of them on the host.
struct DeviceBuffers : MixedBuffers<DeviceVector> {
  using MixedBuffers<DeviceVector>::MixedBuffers;
  std::vector<float> host_keys{};
  std::vector<float> host_values{};

  void download() {
    host_keys = keys.host();
    host_values = values.host();
  }
};

template <class Form>
void compress_and_check(ha::Compaction<> const& compaction, MixedTensors const& source, DeviceBuffers& cache,
                        ha::Destination<float, Form> const& kept, auto const& host_destination) {
  DeviceMixed const device(source);
  DeviceVector<std::byte> const table(
      std::vector<std::byte>(compaction.table().bytes().begin(), compaction.table().bytes().end()));
  DeviceVector<std::int32_t> const d_lengths(lengths);
  auto d_compaction = compaction.on_device(compaction.table().view_at(table.data()), d_lengths.data());
  DeviceVector<std::int32_t> status(std::vector<std::int32_t>{-1});
  DeviceVector<std::int32_t> cu(
      std::vector<std::int32_t>(static_cast<std::size_t>(compaction.cu_seqlens_begin(7)), -1));
  DeviceVector<std::int32_t> d_kept(std::vector<std::int32_t>(static_cast<std::size_t>(compaction.num_segments()), -1));
  d_compaction.d_status = status.data();
  d_compaction.d_cu_seqlens = cu.data();
  d_compaction.d_kept = d_kept.data();
  auto const transfer = ha::transfer(device.layers, ha::per_layer(source.layouts), kept);
  std::size_t bytes = 0;
  REQUIRE(ha::device::compress(nullptr, bytes, d_compaction, transfer, nullptr) == cudaSuccess);
  DeviceVector<std::byte> temp(std::vector<std::byte>(bytes, std::byte{1}));
  INFO(ha::last_error_message());
  REQUIRE(ha::device::compress(temp.data(), bytes, d_compaction, transfer, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  REQUIRE(status.host()[0] == 0);
  for (std::int32_t l = 0; l < 7; ++l) {
    auto const all = cu.host();
    std::vector<std::int32_t> const layer(all.begin() + compaction.cu_seqlens_begin(l),
                                          all.begin() + compaction.cu_seqlens_begin(l + 1));
    CHECK(layer == compaction.cu_seqlens(l));
  }
  cache.download();
  CHECK(mixed_difference(compaction, host_destination()) == "");
}

}  // namespace

TEST_CASE("compress of layers that differ on the device", "[mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::ModelShape const shape = mixed_shape();
  ha::Compaction const compaction(mixed_table(shape), lengths);
  MixedTensors const source(shape, 4, 0, 23);
  SECTION("ragged") {
    DeviceBuffers cache(shape, [&](std::int32_t l) { return compaction.kept_total(l); });
    compress_and_check(compaction, source, cache, ha::ragged(compaction, cache.keys.data(), cache.values.data(), shape),
                       [&] { return ha::ragged(compaction, cache.host_keys.data(), cache.host_values.data(), shape); });
  }
  SECTION("padded") {
    DeviceBuffers cache(shape, [&](std::int32_t l) { return compaction.layer_segments(l) * compaction.max_kept(l); });
    compress_and_check(compaction, source, cache, ha::padded(compaction, cache.keys.data(), cache.values.data(), shape),
                       [&] { return ha::padded(compaction, cache.host_keys.data(), cache.host_values.data(), shape); });
  }
  SECTION("grouped") {
    DeviceBuffers cache(shape, [&](std::int32_t l) { return compaction.grouped_capacity(l).rows; });
    compress_and_check(
        compaction, source, cache, ha::grouped(compaction, cache.keys.data(), cache.values.data(), shape),
        [&] { return ha::grouped(compaction, cache.host_keys.data(), cache.host_values.data(), shape); });
  }
}

TEST_CASE("compress into pages with a size per layer on the device", "[mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::ModelShape const shape = mixed_shape();
  ha::LayerChannels const channels(shape);
  ha::Compaction const compaction(mixed_table(shape), lengths);
  MixedTensors const source(shape, 4, 0, 23);
  std::vector<std::int32_t> const sizes = channels.page_sizes(4);
  std::int64_t const num_pages = compaction.pages_total(sizes);
  ha::PageIndices const pages = ha::consecutive_pages(compaction, sizes);
  DeviceVector<std::int32_t> const indices(pages.indices);
  DeviceVector<std::int32_t> const indptr(pages.indptr);
  // One pool of all layers, in elements of the first.
  DeviceBuffers cache(shape, [&](std::int32_t l) { return l == 0 ? num_pages * channels.page_stride(4) / 16 : 0; });
  auto const kept = [&](float* keys, float* values, std::int32_t const* table, std::int32_t const* ends) {
    std::vector<ha::LayerKv<float>> const pools(7, {keys, values});
    ha::PagedForm const form{.block_table = table, .indptr = ends, .page_stride = channels.page_stride(4)};
    return ha::paged(compaction, pools, form, shape, num_pages, 0, sizes);
  };
  auto const on_device = kept(cache.keys.data(), cache.values.data(), indices.data(), indptr.data());
  compress_and_check(compaction, source, cache, on_device, [&] {
    return kept(cache.host_keys.data(), cache.host_values.data(), pages.indices.data(), pages.indptr.data());
  });
}

TEST_CASE("in place with layers that differ on the device", "[mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  ha::Compaction const compaction(table, lengths);
  MixedTensors host(shape, 4, 0, 23);
  MixedTensors const source = host;
  DeviceMixed device(host);
  DeviceVector<std::byte> const d_table(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  DeviceVector<std::int32_t> const d_lengths(lengths);
  auto const d_compaction = compaction.on_device(table.view_at(d_table.data()), d_lengths.data());
  REQUIRE(ha::device::compress_in_place(d_compaction, device.layers, ha::per_layer(source.layouts), ha::KeepPositions{},
                                        nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  ha::compress_in_place(compaction, host.layers(), ha::per_layer(source.layouts));
  auto memory = device.memory.begin();
  for (std::size_t l = 0; l < 7; ++l) {
    if (!host.keys[l].empty()) CHECK(memory++->host() == host.keys[l]);
    if (!host.values[l].empty()) CHECK(memory++->host() == host.values[l]);
  }
}

TEST_CASE("a rolling cache of layers that differ on the device", "[mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  ha::RollingSlots const slots(table, 4, {.max_tokens = 40, .slack = 2});
  DeviceBuffers cache(shape, [&](std::int32_t l) { return slots.rows_total(l); });
  DeviceVector<std::byte> const heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  auto const view = slots.view_at(heads.data());
  DeviceVector<std::int32_t> counters(std::vector<std::int32_t>(ha::RollingStateView::bytes(4) / 4, 0));
  auto const state = ha::RollingStateView::at(counters.data(), 4);
  auto const rolling = ha::rolling(slots, view, cache.keys.data(), cache.values.data(), shape);
  std::vector<std::int32_t> now{0, 0, 0, 0};
  auto const check = [&] {
    cache.download();
    auto const host = ha::rolling(slots, slots.view(), cache.host_keys.data(), cache.host_values.data(), shape);
    CHECK(mixed_difference(ha::Compaction(table, now), host) == "");
  };
  auto const append = [&](std::int32_t b, std::int32_t step, bool by_layer) {
    MixedTensors const tokens(shape, 4, now[static_cast<std::size_t>(b)], step);
    DeviceMixed const device(tokens);
    std::vector<std::int32_t> counts(4, 0);
    counts[static_cast<std::size_t>(b)] = step;
    DeviceVector<std::int32_t> const d_counts(counts);
    INFO(ha::last_error_message());
    if (!by_layer) {
      REQUIRE(ha::device::append(view, state, device.layers, ha::per_layer(tokens.layouts), d_counts.data(), step,
                                 rolling, {}, nullptr) == cudaSuccess);
    }
    for (std::int32_t l = 0; l < 7 && by_layer; ++l) {
      auto const at = static_cast<std::size_t>(l);
      std::vector<ha::LayerKv<float>> const layer{device.layers[at]};
      REQUIRE(ha::device::append(view, state, layer, tokens.layouts[at], d_counts.data(), step, rolling,
                                 {.first_layer = l, .advance = l == 6}, nullptr) == cudaSuccess);
    }
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    now[static_cast<std::size_t>(b)] += step;
  };
  for (std::int32_t b = 0; b < 4; ++b) append(b, 4 + 3 * b, b == 2);
  for (std::int32_t b = 0; b < 4; ++b) append(b, 1 + b, b == 1);
  check();
  std::vector<ha::SequenceCopy> const copies{{3, 0}};
  REQUIRE(ha::device::copy_sequences(view, state, copies, rolling, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(counters.host()[0] == now[3]);
}

TEST_CASE("a paged cache of layers that differ on the device", "[mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  bool const by_layer = GENERATE(false, true);
  INFO("a page size per layer: " << by_layer);
  MixedPages cache(3, by_layer);
  DeviceVector<float> d_keys(cache.keys);
  DeviceVector<float> d_values(cache.values);
  auto const write = [&](ha::PageStep const& step, MixedTensors const& news) {
    DeviceMixed const d_news(news);
    DeviceVector<std::byte> const heads(
        std::vector<std::byte>(cache.pages.head_bytes().begin(), cache.pages.head_bytes().end()));
    DeviceVector<std::int32_t> const table(
        std::vector<std::int32_t>(cache.pages.table().begin(), cache.pages.table().end()));
    DeviceVector<std::int32_t> const d_lengths(step.lengths);
    DeviceVector<std::int32_t> const d_high_water(step.high_water);
    DeviceVector<std::int32_t> const d_counts(step.counts);
    DeviceVector<ha::PageCopy> const copies(step.copies);
    ha::DevicePageStep const d_step{.d_lengths = d_lengths.data(),
                                    .d_high_water = d_high_water.data(),
                                    .d_counts = d_counts.data(),
                                    .d_copies = copies.data(),
                                    .num_copies = static_cast<std::int32_t>(step.copies.size()),
                                    .max_count = step.max_count,
                                    .generation = step.generation};
    INFO(ha::last_error_message());
    REQUIRE(ha::device::append(cache.pages.view_at(heads.data(), table.data()), d_step, d_news.layers,
                               ha::per_layer(news.layouts), cache.storage(d_keys.data(), d_values.data()), 0,
                               nullptr) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  };
  for_each_mixed_step(cache, write, [&] {
    REQUIRE(first_difference(d_keys.host(), cache.keys) == "");
    REQUIRE(first_difference(d_values.host(), cache.values) == "");
    REQUIRE(cache.difference() == "");
  });
}
