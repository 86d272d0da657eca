// Caches of a model whose layers differ, on the device: every form in one call of two launches, in place, rolling and
// paged appends in one launch for all layers.

#include "support/catch.hpp"
#include "support/device.hpp"
#include "support/device_cache.cuh"
#include "support/mixed_device.cuh"
#include "support/mixed_model.hpp"

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
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  ha::PagedHeads pages(table, {.num_sequences = 2, .page_size = 4, .num_pages = 200, .limits = {.max_tokens = 40}});
  ha::LayerChannels const channels(shape);
  std::vector<float> const empty(200 * 4 * 24, -7.0F);
  std::vector<float> keys = empty;
  std::vector<float> values = empty;
  DeviceVector<float> d_keys(empty);
  DeviceVector<float> d_values(empty);
  ha::PageStorage<float> const host{keys.data(), values.data(), 24, 16, 4 * 24, channels.layers()};
  ha::PageStorage<float> const device{d_keys.data(), d_values.data(), 24, 16, 4 * 24, channels.layers()};
  std::vector<std::int32_t> now{0, 0};
  for (std::int32_t step : {9, 1, 6, 1}) {
    if (step == 6) {
      pages.release(1);
      pages.fork(0, 1);  // both write on in pages that they share
      now[1] = now[0];
    }
    MixedTensors tokens(shape, 2, now[0], step);
    DeviceMixed const d_tokens(tokens);
    ha::PageStep const change = pages.append(std::vector<std::int32_t>{step, step});
    DeviceVector<std::byte> const heads(std::vector<std::byte>(pages.head_bytes().begin(), pages.head_bytes().end()));
    DeviceVector<std::int32_t> const d_table(std::vector<std::int32_t>(pages.table().begin(), pages.table().end()));
    DeviceVector<std::int32_t> const d_lengths(change.lengths);
    DeviceVector<std::int32_t> const d_high_water(change.high_water);
    DeviceVector<std::int32_t> const d_counts(change.counts);
    DeviceVector<ha::PageCopy> const copies(change.copies);
    ha::DevicePageStep const d_step{.d_lengths = d_lengths.data(),
                                    .d_high_water = d_high_water.data(),
                                    .d_counts = d_counts.data(),
                                    .d_copies = copies.data(),
                                    .num_copies = static_cast<std::int32_t>(change.copies.size()),
                                    .max_count = step};
    INFO(ha::last_error_message());
    REQUIRE(ha::device::append(pages.view_at(heads.data(), d_table.data()), d_step, d_tokens.layers,
                               ha::per_layer(tokens.layouts), device, 0, nullptr) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    ha::append(pages, change, tokens.layers(), ha::per_layer(tokens.layouts), host);
    now[0] += step;
    now[1] += step;
    CHECK(first_difference(d_keys.host(), keys) == "");
    CHECK(first_difference(d_values.host(), values) == "");
  }
}
