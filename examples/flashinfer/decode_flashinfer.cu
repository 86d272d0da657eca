// Decoding by FlashInfer's own kernels, on CUDA cores and on tensor cores, over a cache in which every KV head keeps
// its own tokens: headaware's tables go in as they are, with the KV heads folded into the batch. In two ways:
//
// - FlashInfer as it is, twice: the sinks, then the window by its sliding window, and the two states merged. Its window
// is
//   one number per call, so all heads of the layer that have a window have the same.
// - Once, over whole pages, by a variant of its attention (`KeptVariant` in flashinfer_decoder.cu) that knows each KV
// head's
//   sinks and window: heads may have any.
//
// Every output is compared with that of `headaware::device::attend` on the same pages.

#include "../cuda_helpers.hpp"
#include "flashinfer_decoder.hpp"

#include <headaware/attention/attend.cuh>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <random>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_layers = 2, num_sequences = 3, num_kv_heads = 4, group = 4, num_query_heads = 16;
constexpr std::int32_t head_dim = 128, page_size = 16, num_pages = 200;
constexpr std::int32_t entries = num_sequences * num_kv_heads;  // of FlashInfer's batch
constexpr std::size_t query_elements = std::size_t{num_sequences} * num_query_heads * head_dim;
constexpr FlashInferShape shape{group, head_dim, page_size};

/// In the first layer all windows are the same, in the second they are not.
ha::PolicyTable policies() {
  ha::PolicyTable table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 28});
  table.set(0, 1, ha::Full{});
  table.set(0, 2, ha::WindowOnly{.window = 28});
  table.set(0, 3, ha::Prune{});
  table.set(1, 1, ha::SinkWindow{.sink = 20, .window = 60});
  table.set(1, 2, ha::Full{});
  return table;
}

std::vector<__half> random_rows(std::size_t elements) {
  static std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<__half> result(elements);
  for (__half& x : result) x = __float2half(normal(random));
  return result;
}

/// One part of a layer's tables on the device.
struct Tables {
  Tables(ha::HeadPageIndices const& host, cudaStream_t stream)
      : indptr(host.indptr, stream), indices(host.indices, stream), last_page_len(host.last_page_len, stream) {}
  DeviceArray<std::int32_t> indptr, indices, last_page_len;
};

struct State {
  DeviceArray<__half> output{query_elements};
  DeviceArray<float> lse{std::size_t{entries} * group};
  [[nodiscard]] FlashInferState view() const { return {output.data(), lse.data()}; }
};

class Cache {
 public:
  explicit Cache(cudaStream_t stream)
      : pages(policies(), {num_sequences, page_size, num_pages, {.max_tokens = 200}}),
        d_heads_(pages.head_bytes(), stream),
        d_table_(pages.table().size()),
        stream_(stream) {}

  /// Appends new tokens of each sequence to all layers.
  void append(std::array<std::int32_t, num_sequences> const& counts) {
    ha::PageStep const step = pages.append(counts);
    d_table_.upload(pages.table(), stream_), d_lengths_.upload(pages.state().lengths(), stream_);
    DeviceArray<std::int32_t> const d_before(step.lengths, stream_), d_high_water(step.high_water, stream_),
        d_counts(step.counts, stream_);
    auto const copies = pages.padded_copies(step);
    DeviceArray<ha::PageCopy> const d_copies(copies, stream_);
    auto const layout = ha::strided_bshd(num_sequences, step.max_count, num_kv_heads, head_dim);
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      DeviceArray<__half> const keys(random_rows(static_cast<std::size_t>(layout.required_span_size())), stream_),
          values(random_rows(keys.size()), stream_);
      ha::DevicePageStep const d_step{d_before.data(),    d_high_water.data(),
                                      d_counts.data(),    d_copies.data() + layer * pages.max_copies(),
                                      pages.max_copies(), step.max_count};
      check(ha::device::append(view(), d_step, std::array{ha::LayerKv{keys.data(), values.data()}}, layout,
                               ha::PageStorage<__half>{d_keys_.data(), d_values_.data(), head_dim, head_dim}, layer,
                               stream_));
      check(cudaStreamSynchronize(stream_));  // before the new tokens' memory goes
    }
  }

  /// Attends by headaware's own kernels.
  void attend(std::int32_t layer, __half const* queries, __half* output) const {
    auto const layout = ha::strided_bhd(num_sequences, num_query_heads, head_dim);
    std::size_t temp_bytes = 0;
    auto const call = [&](void* d_temp) {
      check(ha::device::attend(
          d_temp, temp_bytes, {num_sequences, num_query_heads, num_kv_heads, 1, head_dim},
          ha::AttentionQueries{queries, layout},
          ha::KeptCache{d_keys_.data(), d_values_.data(), ha::HeadPagesView(view(), layer, d_lengths_.data())},
          ha::AttentionOutput{output, layout}, {.max_rows = pages.slots().rows_total(layer)}, {}, stream_));
    };
    call(nullptr);
    DeviceArray<std::byte> const d_temp(temp_bytes);
    call(d_temp.data());
    check(cudaStreamSynchronize(stream_));
  }

  /// Attends by FlashInfer's kernels over one part of the tables.
  void attend(FlashInferDecoder& decoder, std::int32_t layer, ha::PagePart part, FlashInferMask const& mask,
              __half const* queries, State const& state) const {
    ha::HeadPageIndices const host = pages.indices(layer, part);
    Tables const tables(host, stream_);
    decoder.plan(host.indptr, mask, stream_);
    decoder.run(
        queries,
        {d_keys_.data(), d_values_.data(), 0, tables.indptr.data(), tables.indices.data(), tables.last_page_len.data()},
        state.view(), stream_);
    check(cudaStreamSynchronize(stream_));
  }

  ha::PagedHeads pages;

 private:
  [[nodiscard]] ha::PagedHeadsView view() const { return pages.view_at(d_heads_.data(), d_table_.data()); }

  DeviceArray<__half> d_keys_{std::size_t{num_pages} * page_size * head_dim};
  DeviceArray<__half> d_values_{std::size_t{num_pages} * page_size * head_dim};
  DeviceArray<std::byte> d_heads_;
  DeviceArray<std::int32_t> d_table_, d_lengths_{num_sequences};
  cudaStream_t stream_;
};

/// The largest difference, which must be within what half precision rounds.
double compare(State const& state, std::vector<__half> const& expected, cudaStream_t stream) {
  std::vector<__half> output(query_elements);
  state.output.download(output, stream);
  double worst = 0;
  for (std::size_t i = 0; i < output.size(); ++i) {
    double const difference = std::abs(double{__half2float(output[i])} - double{__half2float(expected[i])});
    ha::require(difference < 4e-3, "attention", __half2float(expected[i]), __half2float(output[i]), "FlashInfer");
    worst = std::max(worst, difference);
  }
  return worst;
}

void decode(FlashInferCores cores, cudaStream_t stream) {
  Cache cache(stream);
  FlashInferDecoder decoder(cores, shape);
  State const sinks, window, merged, whole;
  DeviceArray<__half> const ours(query_elements);
  std::vector<__half> expected(query_elements);
  std::array<std::vector<FlashInferRule>, num_layers> rules;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    for (std::int32_t head = 0; head < num_kv_heads; ++head) {
      ha::WindowRule const rule = cache.pages.head(layer, head).rule;
      rules[static_cast<std::size_t>(layer)].push_back({rule.sink, rule.window});
    }
  }
  double worst_merged = 0;
  double worst_whole = 0;
  cache.append({70, 33, 0});  // prompts
  for (int step = 0; step < 20; ++step) {
    cache.append({1, 1, step % 2});
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      DeviceArray<__half> const queries(random_rows(query_elements), stream);
      cache.attend(layer, queries.data(), ours.data());
      ours.download(expected, stream);
      if (layer == 0) {
        cache.attend(decoder, layer, ha::PagePart::sinks, {}, queries.data(), sinks);
        cache.attend(decoder, layer, ha::PagePart::window, {.window = 28}, queries.data(), window);
        flashinfer_merge(shape, entries, sinks.view(), window.view(), merged.view(), stream);
        worst_merged = std::max(worst_merged, compare(merged, expected, stream));
      }
      DeviceArray<FlashInferRule> const d_rules(rules[static_cast<std::size_t>(layer)], stream);
      cache.attend(decoder, layer, ha::PagePart::whole, {.rules = d_rules.data(), .num_kv_heads = num_kv_heads},
                   queries.data(), whole);
      worst_whole = std::max(worst_whole, compare(whole, expected, stream));
    }
  }
  std::printf("%-14s%24.1e%24.1e\n", cores == FlashInferCores::cuda ? "CUDA cores" : "tensor cores", worst_merged,
              worst_whole);
}

}  // namespace

int main() try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: nothing to show\n");
    return 0;
  }
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  std::printf("FlashInfer on pages of single KV heads: largest difference from headaware's attention\n");
  std::printf("%-14s%24s%24s\n", "", "sinks, window, merged", "any windows, one call");
  decode(FlashInferCores::cuda, stream);
  decode(FlashInferCores::tensor, stream);
  check(cudaStreamDestroy(stream));
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
