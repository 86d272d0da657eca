// Attention on CUDA in every layer of a model whose layers differ, over a rolling cache and over pages of single heads
// that are filled on the device, against plain loops.

#include "support/device_attention.cuh"
#include "support/mixed_attention.hpp"
#include "support/mixed_device.cuh"

#include <headaware/attention/policy_mask.cuh>
#include <headaware/cache/compact.cuh>
#include <headaware/cache/page_indices.hpp>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rolling.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <list>
#include <span>
#include <vector>

using namespace headaware_test;

namespace {

/// @param rows  at most, of all heads
template <class View>
std::vector<float> attend(MixedStep const& step, std::int32_t layer, ha::LayerKv<float> const& kv, View const& view,
                          std::int64_t rows) {
  DeviceUpload const upload;
  DeviceVector<float> const queries(step.queries(layer));
  DeviceVector<float> const output(std::vector<float>(at(step.output_layout(layer).required_span_size()), 77));
  DeviceVector<std::int32_t> const status(std::vector<std::int32_t>{-7});
  ha::AttentionOptions options;
  if (step.query_tokens > 1) options.first_positions = upload(step.first_positions());
  if (step.has_sinks(layer)) options.sinks = upload(step.sinks);
  with_cache(step, layer, kv, view, [&](auto const& cache) {
    run_attend(step.of(layer), ha::AttentionQueries{queries.data(), step.query_layout(layer)}, cache,
               ha::AttentionOutput{output.data(), step.output_layout(layer)}, {rows, status.data()}, options);
  });
  CHECK(status.host()[0] == 0);
  return output.host();
}

DeviceVector<std::byte> uploaded(std::span<std::byte const> bytes) {
  return DeviceVector<std::byte>(std::vector<std::byte>(bytes.begin(), bytes.end()));
}

/// Compresses the prompts of all sequences, in one call for all layers.
template <class Form>
void compress(MixedStep const& step, ha::Destination<float, Form> const& kept) {
  ha::Compaction const compaction(step.table, step.lengths);
  MixedTensors const source(step.shape, 4, 0, 23);
  DeviceMixed const device(source);
  auto const d_table = uploaded(step.table.bytes());
  DeviceVector<std::int32_t> const d_lengths(step.lengths);
  auto const d_compaction = compaction.on_device(step.table.view_at(d_table.data()), d_lengths.data());
  auto const transfer = ha::transfer(device.layers, ha::per_layer(source.layouts), kept);
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::compress(nullptr, bytes, d_compaction, transfer, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{1}));
  REQUIRE_CUDA(ha::device::compress(temp.data(), bytes, d_compaction, transfer, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
}

}  // namespace

TEST_CASE("layers that differ attend over ragged and paged caches on the device", "[attention][mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  MixedStep step;
  step.lengths = {23, 5, 0, 14};
  ha::Compaction const compaction(step.table, step.lengths);
  std::int64_t const room = compaction.pages_total(4) * 4 * 24;  // elements, of either cache
  DeviceVector<float> const keys(std::vector<float>(at(room), -7));
  DeviceVector<float> const values(std::vector<float>(at(room), -7));
  DeviceUpload const upload;
  SECTION("ragged") {
    auto const kept = ha::ragged(compaction, keys.data(), values.data(), step.shape);
    compress(step, kept);
    step.check([&](std::int32_t layer, std::int32_t of) {
      ha::RaggedView const view{upload(compaction.cu_seqlens(of)), step.of(layer).num_kv_heads};
      return attend(step, layer, kept.layers[at(of)], view, compaction.kept_total(of));
    });
  }
  SECTION("paged") {
    ha::LayerChannels const channels(step.shape);
    for (bool const by_layer : {false, true}) {
      std::vector<std::int32_t> const sizes = by_layer ? channels.page_sizes(4) : std::vector<std::int32_t>(7, 4);
      ha::PageIndices const pages = ha::consecutive_pages(compaction, sizes);
      auto const* const indices = upload(pages.indices);
      auto const* const indptr = upload(pages.indptr);
      auto const* const last = upload(pages.last_page_len);
      std::vector<ha::LayerKv<float>> const pools(7, {keys.data(), values.data()});
      ha::PagedForm const form{.block_table = indices, .indptr = indptr, .page_size = 4, .page_stride = 4 * 24};
      compress(step, ha::paged(compaction, pools, form, step.shape, compaction.pages_total(sizes), 0, sizes));
      step.check([&](std::int32_t layer, std::int32_t of) {
        auto const first = compaction.first_segment(of);
        auto const view = ha::PagedView::csr(indices, indptr + first, last + first, step.of(layer).num_kv_heads,
                                             sizes[at(of)], 4 * 24);
        return attend(step, layer, pools[0], view, compaction.kept_total(of));
      });
    }
  }
}

TEST_CASE("layers that differ attend over a rolling cache on the device", "[attention][mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  MixedStep step;
  step.lengths = {23, 5, 0, 14};
  ha::RollingSlots const slots(step.table, 4, {.max_tokens = 60, .slack = 2});
  auto const d_heads = uploaded(slots.bytes());
  auto const view = slots.view_at(d_heads.data());
  MixedBuffers<DeviceVector> const buffers(step.shape, [&](std::int32_t l) { return slots.rows_total(l); });
  auto const rolling = ha::rolling(slots, view, buffers.keys.data(), buffers.values.data(), step.shape);
  DeviceVector<std::int32_t> const counters(
      std::vector<std::int32_t>(at(static_cast<std::int64_t>(ha::RollingStateView::bytes(4) / 4)), 0));
  auto const state = ha::RollingStateView::at(counters.data(), 4);

  // A prompt is compressed into it, then tokens are appended; every sequence has its own length.
  compress(step, rolling);
  {
    DeviceVector<std::int32_t> const d_lengths(step.lengths);
    REQUIRE_CUDA(ha::device::start(view, state, d_lengths.data(), nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
  for (std::int32_t const tokens : {1, 3, 1}) {
    for (std::int32_t b = 0; b < 4; ++b) {
      MixedTensors const news(step.shape, 4, step.lengths[at(b)], tokens);
      DeviceMixed const device(news);
      std::vector<std::int32_t> counts(4, 0);
      counts[at(b)] = tokens;
      DeviceVector<std::int32_t> const d_counts(counts);
      REQUIRE_CUDA(ha::device::append(view, state, device.layers, ha::per_layer(news.layouts), d_counts.data(), tokens,
                                      rolling, {}, nullptr));
      REQUIRE_CUDA(cudaDeviceSynchronize());
      step.lengths[at(b)] += tokens;
    }
    step.query_tokens = tokens;
    INFO(tokens << " tokens");
    DeviceVector<std::int32_t> const d_lengths(step.lengths);
    step.check([&](std::int32_t layer, std::int32_t of) {
      return attend(step, layer, rolling.layers[at(of)], ha::RollingView::of_chunk(view, of, d_lengths.data(), tokens),
                    slots.rows_total(of));
    });
  }
}

TEST_CASE("layers that differ attend over pages of single heads on the device", "[attention][mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  bool const by_layer = GENERATE(false, true);
  INFO("a page size per layer: " << by_layer);
  MixedStep step;
  step.lengths = {0, 0};
  ha::LayerChannels const channels(step.shape);
  ha::PagedHeads pages(step.table, {.num_sequences = 2,
                                    .page_size = 4,
                                    .num_pages = 220,
                                    .limits = {.max_tokens = 60, .slack = 2},
                                    .page_sizes = by_layer ? channels.page_sizes(4) : std::vector<std::int32_t>{}});
  DeviceVector<float> const keys(std::vector<float>(220 * 4 * 24, -7));
  DeviceVector<float> const values(std::vector<float>(220 * 4 * 24, -7));
  ha::PageStorage<float> const storage{keys.data(), values.data(), 24, 16, 4 * 24, channels.layers()};
  for (std::int32_t const tokens : {20, 3, 1}) {
    MixedTensors const news(step.shape, 2, step.lengths[0], tokens);
    DeviceMixed const device(news);
    ha::PageStep const change = pages.append(std::vector<std::int32_t>{tokens, tokens});
    auto const d_heads = uploaded(pages.head_bytes());
    DeviceVector<std::int32_t> const d_table(std::vector<std::int32_t>(pages.table().begin(), pages.table().end()));
    DeviceVector<std::int32_t> const d_before(change.lengths);
    DeviceVector<std::int32_t> const d_high_water(change.high_water);
    DeviceVector<std::int32_t> const d_counts(change.counts);
    ha::DevicePageStep const d_step{.d_lengths = d_before.data(),
                                    .d_high_water = d_high_water.data(),
                                    .d_counts = d_counts.data(),
                                    .max_count = tokens};
    auto const view = pages.view_at(d_heads.data(), d_table.data());
    REQUIRE_CUDA(ha::device::append(view, d_step, device.layers, ha::per_layer(news.layouts), storage, 0, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    for (std::int32_t& length : step.lengths) length += tokens;
    step.query_tokens = std::min(tokens, 3);
    INFO(tokens << " tokens");
    DeviceVector<std::int32_t> const d_lengths(step.lengths);
    step.check([&](std::int32_t layer, std::int32_t of) {
      return attend(step, layer, {keys.data(), values.data()},
                    ha::HeadPagesView::of_chunk(view, of, d_lengths.data(), step.query_tokens, storage.page_stride),
                    pages.slots().rows_total(of));
    });
  }
}

TEST_CASE("device masks of layers that differ are the CPU's", "[attention][mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  MixedStep const step;
  auto const d_table = uploaded(step.table.bytes());
  for (std::int32_t layer = 0; layer < 7; ++layer) {
    if (step.table.num_kv_heads(layer) == 0) continue;
    ha::MaskShape const shape{
        .layer = layer, .group = 2, .first_query = 3, .queries = 20, .keys = 45, .window = layer == 0 ? 9 : 0};
    // Words of the widest layer's: what a narrower one does not have stays as it was.
    std::vector<std::uint32_t> bits(4 * 2 * 20 * 2, 7);
    DeviceVector<std::uint32_t> const d_bits(bits);
    ha::fill_policy_mask(step.table, shape, bits.data());
    REQUIRE_CUDA(ha::device::fill_policy_mask(step.table.view_at(d_table.data()), shape, d_bits.data(), nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    CHECK(d_bits.host() == bits);
  }
}
