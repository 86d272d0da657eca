#pragma once

// Shared by the device benchmarks: device memory, a model's cache on the device.

#include <headaware/compressor.cuh>

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

/// Temporary storage for a call, zeroed: attention reads tickets before it signs them, and a checker of initialisation
/// wants them written. @param call  (storage, bytes of it): told no storage, it says how many bytes it takes
template <class Call>
DeviceArray<std::byte> storage_for(Call const& call) {
  std::size_t bytes = 0;
  call(nullptr, bytes);
  return DeviceArray<std::byte>(std::vector<std::byte>(bytes));
}
/// Makes such a call, and waits.
template <class Call>
void with_storage(Call const& call) {
  auto const temp = storage_for(call);
  std::size_t bytes = temp.size();
  call(temp.data(), bytes);
  BENCH_CHECK(cudaDeviceSynchronize());
}

/// How large a model is: by default 32 layers × 8 KV heads × 4,096 tokens × 128 channels of 2 bytes, cut to 4 sinks and
/// 508 tokens.
struct ModelSize {
  std::int32_t num_layers = 32;
  std::int32_t tokens = 4096;
  std::int32_t window = 508;
};

/// A model's cache of one sequence, and the ragged one that it is compressed into.
struct Model {
  static constexpr std::int32_t num_kv_heads = 8;
  static constexpr std::int64_t head_dim = 128;
  static constexpr std::int32_t sink = 4;

  explicit Model(ModelSize const& of = {}) : size(of) {
    BENCH_CHECK(cudaMemset(keys.data(), 1, keys.size() * sizeof(std::uint16_t)));
    BENCH_CHECK(cudaMemset(values.data(), 2, values.size() * sizeof(std::uint16_t)));
    for (std::int32_t layer = 0; layer < size.num_layers; ++layer) {
      auto const first = static_cast<std::size_t>(layer) * layer_elements();
      layers.push_back({keys.data() + first, values.data() + first});
    }
  }
  [[nodiscard]] std::size_t layer_elements() const {
    return static_cast<std::size_t>(num_kv_heads * size.tokens * head_dim);
  }
  [[nodiscard]] std::size_t elements() const { return static_cast<std::size_t>(size.num_layers) * layer_elements(); }
  [[nodiscard]] auto device_compaction() const {
    return compaction.on_device(table.view_at(d_table.data()), d_lengths.data());
  }
  [[nodiscard]] auto kept() const { return ha::ragged(compaction, kept_keys.data(), kept_values.data(), head_dim); }
  [[nodiscard]] std::int64_t kept_bytes() const { return compaction.bytes_held(head_dim, sizeof(std::uint16_t)); }

  ModelSize size;
  ha::PolicyTable table{size.num_layers, num_kv_heads, ha::SinkWindow{.sink = sink, .window = size.window}};
  std::vector<std::int32_t> lengths{size.tokens};
  ha::Compaction<> compaction{table, lengths};
  DeviceArray<std::uint16_t> keys{elements()};
  DeviceArray<std::uint16_t> values{elements()};
  DeviceArray<std::uint16_t> kept_keys{static_cast<std::size_t>(compaction.kept_total() * head_dim)};
  DeviceArray<std::uint16_t> kept_values{kept_keys.size()};
  DeviceArray<std::byte> d_table{std::vector<std::byte>(table.bytes().begin(), table.bytes().end())};
  DeviceArray<std::int32_t> d_lengths{lengths};
  DeviceArray<std::int64_t> d_offsets{
      std::vector<std::int64_t>(compaction.offsets().begin(), compaction.offsets().end())};
  std::vector<ha::LayerKv<std::uint16_t>> layers{};
};

}  // namespace bench
