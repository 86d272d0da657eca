// The cache and its attention on CUDA. What a layer's step launches is captured once: lengths are counted in device
// memory, so the same graph serves every step.

#include "decode_loop/backend.hpp"
#include "decode_loop/cuda_memory.hpp"

#include <headaware/attention/attend.cuh>
#include <headaware/cache/compact.cuh>
#include <headaware/cache/rolling.cuh>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace decode_loop {

namespace ha = headaware;

namespace {

/// A token's part in a layer, on the device.
struct DeviceToken {
  DeviceArray<float> queries;
  DeviceArray<ha::float16> keys;
  DeviceArray<ha::float16> values;

  explicit DeviceToken(Shape const& shape)
      : queries(static_cast<std::size_t>(shape.query_width())),
        keys(static_cast<std::size_t>(shape.kv_width())),
        values(static_cast<std::size_t>(shape.kv_width())) {}
};

class CudaCache final : public DecodeCache {
 public:
  CudaCache(ha::PolicyTable const& table, Prefilled const& prompt, std::int32_t max_tokens)
      : shape_(prompt.shape),
        plan_(table, 1, {.max_tokens = max_tokens, .slack = 0}),
        d_heads_(plan_.bytes()),
        d_keys_(static_cast<std::size_t>(plan_.rows_total() * shape_.head_dim)),
        d_values_(static_cast<std::size_t>(plan_.rows_total() * shape_.head_dim)),
        d_counters_(static_cast<std::size_t>(shape_.layers) * ha::RollingStateView::bytes(1)),
        d_token_(shape_),
        d_output_(static_cast<std::size_t>(shape_.query_width())),
        kept_(ha::rolling(plan_, view(), d_keys_.data(), d_values_.data(), shape_.head_dim)),
        d_temp_(attention_bytes()) {
    fill(table, prompt);
    for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
      steps_.push_back(capture(stream_, [&] { enqueue_step(layer); }));
    }
  }

  void step(std::int32_t layer, TokenQkv const& token, float* output) override {
    auto const copy = [&](auto* to, auto const* from, std::int64_t count, cudaMemcpyKind kind) {
      check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(*from), kind, stream_.get()), "copy");
    };
    copy(d_token_.queries.data(), token.queries, shape_.query_width(), cudaMemcpyHostToDevice);
    copy(d_token_.keys.data(), token.keys, shape_.kv_width(), cudaMemcpyHostToDevice);
    copy(d_token_.values.data(), token.values, shape_.kv_width(), cudaMemcpyHostToDevice);
    check(cudaGraphLaunch(steps_[static_cast<std::size_t>(layer)].get(), stream_.get()), "cudaGraphLaunch");
    copy(output, d_output_.data(), shape_.query_width(), cudaMemcpyDeviceToHost);
    check(cudaStreamSynchronize(stream_.get()), "a layer's step");
  }

  [[nodiscard]] std::int64_t bytes() const override { return plan_.bytes_held(shape_.head_dim, sizeof(ha::float16)); }

 private:
  [[nodiscard]] ha::RollingSlotsView view() const { return plan_.view_at(d_heads_.data()); }

  /// One a layer: a layer's attention sees the token that the layers behind it have yet to get.
  [[nodiscard]] ha::RollingStateView counter(std::int32_t layer) const {
    return ha::RollingStateView::at(
        d_counters_.data() + static_cast<std::size_t>(layer) * ha::RollingStateView::bytes(1), 1);
  }

  /// Compresses the prompt's full cache, which is on the device for that long.
  void fill(ha::PolicyTable const& table, Prefilled const& prompt) {
    DeviceArray<ha::float16> const d_full_keys{std::span(prompt.keys)};
    DeviceArray<ha::float16> const d_full_values{std::span(prompt.values)};
    DeviceArray<std::byte> const d_table(table.bytes());
    std::vector<std::int32_t> const lengths{prompt.tokens};
    DeviceArray<std::int32_t> const d_lengths{std::span(lengths)};
    auto const plan = ha::Compaction(table, lengths).on_device(table.view_at(d_table.data()), d_lengths.data());
    auto const layers = prompt.layers(d_full_keys.data(), d_full_values.data());
    std::size_t temp_bytes = 0;
    check(ha::compress(nullptr, temp_bytes, plan, layers, prompt.layout(), kept_, stream_.get()), "compress");
    DeviceArray<std::byte> const d_temp(temp_bytes);
    check(ha::compress(d_temp.data(), temp_bytes, plan, layers, prompt.layout(), kept_, stream_.get()), "compress");
    check(cudaMemsetAsync(d_counters_.data(), 0,
                          static_cast<std::size_t>(shape_.layers) * ha::RollingStateView::bytes(1), stream_.get()),
          "cudaMemsetAsync");
    for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
      check(ha::device::start(view(), counter(layer), d_lengths.data(), stream_.get()), "start");
    }
    check(cudaStreamSynchronize(stream_.get()), "compressing the prompt");
  }

  void enqueue_step(std::int32_t layer) {
    std::vector<ha::LayerKv<ha::float16>> const tokens{{d_token_.keys.data(), d_token_.values.data()}};
    check(ha::device::append(view(), counter(layer), tokens, ha::strided_shd(1, shape_.num_kv_heads, shape_.head_dim),
                             nullptr, 1, kept_, {.first_layer = layer, .advance = true}, stream_.get()),
          "append");
    std::size_t temp_bytes = 0;
    check(attend(nullptr, temp_bytes, layer), "attend");
    check(attend(d_temp_.data(), temp_bytes, layer), "attend");
  }

  /// What the layer that holds most needs.
  [[nodiscard]] std::size_t attention_bytes() const {
    std::size_t most = 0;
    for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
      std::size_t temp_bytes = 0;
      check(attend(nullptr, temp_bytes, layer), "attend");
      most = std::max(most, temp_bytes);
    }
    return most;
  }

  cudaError_t attend(void* d_temp, std::size_t& temp_bytes, std::int32_t layer) const {
    auto const layout = ha::strided_shd(1, shape_.num_query_heads, shape_.head_dim);
    auto const& rows = kept_.layers[static_cast<std::size_t>(layer)];
    ha::RollingView const cache{view(), layer, counter(layer).lengths};
    return ha::attend(d_temp, temp_bytes, shape_.attention(1), ha::AttentionQueries{d_token_.queries.data(), layout},
                      ha::KeptCache{rows.keys, rows.values, cache}, ha::AttentionOutput{d_output_.data(), layout},
                      {.max_rows = plan_.rows_total(layer)}, {}, stream_.get());
  }

  Shape shape_;
  ha::RollingSlots plan_;
  Stream stream_;
  DeviceArray<std::byte> d_heads_;  ///< the plan's
  DeviceArray<ha::float16> d_keys_;
  DeviceArray<ha::float16> d_values_;
  DeviceArray<std::byte> d_counters_;
  DeviceToken d_token_;
  DeviceArray<float> d_output_;
  ha::Destination<ha::float16, ha::RollingForm> kept_;
  DeviceArray<std::byte> d_temp_;  ///< attention's, of any layer
  std::vector<Graph> steps_;       ///< [layers]
};

}  // namespace

Backend cuda_backend() {
  int devices = 0;
  cudaError_t const error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return {"cuda", std::string("no device: ") + cudaGetErrorString(error), {}};
  if (devices == 0) return {"cuda", "no device", {}};
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  return {"cuda", properties.name, [](ha::PolicyTable const& table, Prefilled const& prompt, std::int32_t max_tokens) {
            return std::make_unique<CudaCache>(table, prompt, max_tokens);
          }};
}

}  // namespace decode_loop
