#pragma once

// Shared by the device benchmarks: a model's cache on the device, an event timer, an L2 flush.

#include <headaware/compressor.cuh>

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace bench {

namespace ha = headaware;

/// Ends the program with the error's text.
inline void check(cudaError_t error, char const* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define BENCH_CHECK(call) ::bench::check((call), #call)

/// Device memory that frees itself.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    T* data = nullptr;
    BENCH_CHECK(cudaMalloc(&data, count * sizeof(T)));
    data_.reset(data);
  }
  explicit DeviceArray(std::vector<T> const& host) : DeviceArray(host.size()) {
    BENCH_CHECK(cudaMemcpy(data_.get(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  [[nodiscard]] T* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  std::size_t count_;
  std::unique_ptr<T, Free> data_;
};

/// 32 layers × 8 KV heads × 4,096 tokens × 128 channels of 2 bytes, cut to 4 sinks and 508 tokens.
struct Model {
  static constexpr std::int32_t num_layers = 32;
  static constexpr std::int32_t num_kv_heads = 8;
  static constexpr std::int32_t tokens = 4096;
  static constexpr std::int64_t head_dim = 128;
  static constexpr std::size_t layer_elements = std::size_t{num_kv_heads} * tokens * head_dim;

  ha::PolicyTable table{num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 508}};
  std::vector<std::int32_t> lengths{tokens};
  ha::Compaction<> compaction{table, lengths};
  DeviceArray<std::uint16_t> keys{num_layers * layer_elements};
  DeviceArray<std::uint16_t> values{num_layers * layer_elements};
  DeviceArray<std::uint16_t> kept_keys{static_cast<std::size_t>(compaction.kept_total() * head_dim)};
  DeviceArray<std::uint16_t> kept_values{kept_keys.size()};
  DeviceArray<std::byte> d_table{std::vector<std::byte>(table.bytes().begin(), table.bytes().end())};
  DeviceArray<std::int32_t> d_lengths{lengths};
  std::vector<ha::LayerKv<std::uint16_t>> layers;

  Model() {
    BENCH_CHECK(cudaMemset(keys.data(), 1, keys.size() * sizeof(std::uint16_t)));
    BENCH_CHECK(cudaMemset(values.data(), 2, values.size() * sizeof(std::uint16_t)));
    for (std::size_t layer = 0; layer < num_layers; ++layer) {
      layers.push_back({keys.data() + layer * layer_elements, values.data() + layer * layer_elements});
    }
  }
  [[nodiscard]] auto device_compaction() const {
    return compaction.on_device(table.view_at(d_table.data()), d_lengths.data());
  }
  [[nodiscard]] auto kept() const { return ha::ragged(compaction, kept_keys.data(), kept_values.data(), head_dim); }
  [[nodiscard]] std::int64_t kept_bytes() const { return compaction.bytes_held(head_dim, sizeof(std::uint16_t)); }
};

/// Runs `work` once an iteration, timed with events, the L2 cache flushed before each.
template <class Work>
void timed(benchmark::State& state, cudaStream_t stream, Work const& work) {
  int l2_bytes = 0;
  BENCH_CHECK(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, 0));
  DeviceArray<std::byte> const flush(static_cast<std::size_t>(l2_bytes) + 1);
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  BENCH_CHECK(cudaEventCreate(&start));
  BENCH_CHECK(cudaEventCreate(&stop));
  for (auto _ : state) {
    BENCH_CHECK(cudaMemsetAsync(flush.data(), 0, flush.size(), stream));
    BENCH_CHECK(cudaEventRecord(start, stream));
    work();
    BENCH_CHECK(cudaEventRecord(stop, stream));
    BENCH_CHECK(cudaEventSynchronize(stop));
    float milliseconds = 0;
    BENCH_CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
    state.SetIterationTime(milliseconds * 1e-3);
  }
  BENCH_CHECK(cudaEventDestroy(start));
  BENCH_CHECK(cudaEventDestroy(stop));
}

/// Runs the benchmarks of the program where there is a device, whose name goes into the results.
inline int run(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  cudaDeviceProp properties{};
  BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  benchmark::AddCustomContext("device", properties.name);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace bench
