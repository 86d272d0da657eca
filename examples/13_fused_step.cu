// Steps of decoding, layer by layer, on a rolling cache: a layer's new keys and values are appended and attended to in
// one launch, and a step is captured once in a graph. Outputs are those of appending, then attending, bit for bit.

#include "cuda_helpers.hpp"

#include <headaware/attention/append_and_attend.cuh>
#include <headaware/attention/attend.cuh>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/rolling.cuh>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

namespace ha = headaware;

constexpr std::int32_t num_layers = 2, num_sequences = 2, num_kv_heads = 2, num_query_heads = 8, steps = 40;
constexpr std::int64_t head_dim = 64;
constexpr std::size_t kv_size = num_sequences * num_kv_heads * head_dim;
constexpr std::size_t query_size = num_sequences * num_query_heads * head_dim;

struct Layer {  // what its projections write, and attention's output by both ways
  DeviceArray<__half> keys{kv_size}, values{kv_size}, queries{query_size}, output{query_size}, expected{query_size};
};

struct Cache {
  DeviceArray<std::byte> heads, counters{ha::RollingStateView::bytes(num_sequences)};
  DeviceArray<__half> keys, values;
  ha::RollingSlotsView slots;
  ha::RollingStateView state = ha::RollingStateView::at(counters.data(), num_sequences);
  ha::Destination<__half, ha::RollingSlotsView> rows;

  Cache(ha::RollingSlots const& of, cudaStream_t stream)
      : heads(of.bytes(), stream),
        keys(static_cast<std::size_t>(of.rows_total() * head_dim)),
        values(keys.size()),
        slots(of.view_at(heads.data())),
        rows(ha::rolling(of, slots, keys.data(), values.data(), head_dim)) {}
};

int main() try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: nothing to show\n");
    return 0;
  }
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  ha::PolicyTable table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 12});
  table.set(1, 0, ha::Full{});
  ha::RollingSlots const slots(table, num_sequences, {.max_tokens = steps});
  Cache const one(slots, stream), two(slots, stream);
  std::array<Layer, num_layers> const layers;
  ha::AttentionShape const shape{num_sequences, num_query_heads, num_kv_heads, 1, head_dim};
  auto const kv = ha::strided_bhd(num_sequences, num_kv_heads, head_dim);
  auto const rows = ha::strided_bhd(num_sequences, num_query_heads, head_dim);

  std::size_t bytes = 0;
  auto const fused = [&](std::int32_t l, void* d_temp) {  // nullptr: tells the bytes
    Layer const& of = layers[l];
    ha::RollingStep const step{
        one.slots, one.state, ha::LayerKv<__half const>{of.keys.data(), of.values.data()}, kv,
        ha::AppendOptions{.first_layer = l, .advance = l + 1 == num_layers}};  // the last layer counts the tokens
    check(ha::device::append_and_attend(d_temp, bytes, shape, ha::AttentionQueries{of.queries.data(), rows}, step,
                                        one.rows, ha::AttentionOutput{of.output.data(), rows}, {}, stream));
    return bytes;
  };
  DeviceArray<std::byte> const d_temp(std::max(fused(0, nullptr), fused(1, nullptr)));
  bytes = d_temp.size();
  cudaGraphExec_t const graph = capture(stream, [&] {  // the engine's own kernels go in between
    for (std::int32_t l = 0; l < num_layers; ++l) fused(l, d_temp.data());
  });

  auto const attend = [&](std::int32_t l, void* d_temp) {
    ha::KeptCache const cache{two.rows.layers[l].keys, two.rows.layers[l].values,
                              ha::RollingView{two.slots, l, two.state.lengths}};
    check(ha::device::attend(d_temp, bytes, shape, ha::AttentionQueries{layers[l].queries.data(), rows}, cache,
                             ha::AttentionOutput{layers[l].expected.data(), rows}, {slots.rows_total(l)}, {}, stream));
    return bytes;
  };
  DeviceArray<std::byte> const d_other(std::max(attend(0, nullptr), attend(1, nullptr)));
  bool right = true;
  for (std::int32_t step = 0; step < steps; ++step) {
    auto const fill = [&](DeviceArray<__half> const& to, int seed) {
      std::vector<__half> host(to.size());
      for (std::size_t i = 0; i < host.size(); ++i)
        host[i] = __half(float((i * 37 + seed * 11 + step * 7) % 61) / 30 - 1);
      to.upload(host, stream);
    };
    for (Layer const& layer : layers) fill(layer.keys, 1), fill(layer.values, 2), fill(layer.queries, 3);
    check(cudaGraphLaunch(graph, stream));
    std::vector<ha::LayerKv<__half const>> news;
    for (Layer const& layer : layers) news.push_back({layer.keys.data(), layer.values.data()});
    check(ha::device::append(two.slots, two.state, news, kv, nullptr, 1, two.rows, {}, stream));
    for (std::int32_t l = 0; l < num_layers; ++l) {
      bytes = d_other.size(), attend(l, d_other.data());
      std::array<__half, query_size> a, b;
      layers[l].output.download(a, stream), layers[l].expected.download(b, stream);
      for (std::size_t i = 0; i < query_size; ++i) right = right && __half_as_ushort(a[i]) == __half_as_ushort(b[i]);
    }
  }
  check(cudaGraphExecDestroy(graph));
  check(cudaStreamDestroy(stream));
  std::printf("%d steps of %d layers, a launch each: %s\n", steps, num_layers, right ? "as in two calls" : "WRONG");
  return right ? 0 : 1;
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
