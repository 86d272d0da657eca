// Compaction on the device, captured once in a CUDA graph and replayed with other lengths.

#include "cuda_helpers.hpp"

#include <headaware/compressor.cuh>

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <span>
#include <vector>

namespace ha = headaware;

int main() try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: nothing to show\n");
    return 0;
  }
  constexpr std::int64_t num_kv_heads = 2;
  constexpr std::int64_t tokens = 256;
  constexpr std::int64_t head_dim = 64;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));

  // Sized for the longest sequence that the graph will see.
  ha::PolicyTable table(1, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 28});
  table.set(0, 1, ha::Full{});
  std::vector<std::int32_t> const longest{tokens};
  ha::Compaction const plan(table, longest);

  std::vector<__half> host(num_kv_heads * tokens * head_dim);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = __float2half(static_cast<float>(i / head_dim % 2048));
  std::vector<__half> rows(static_cast<std::size_t>(plan.kept_total() * head_dim));
  std::array<std::int32_t, num_kv_heads + 1> ends{};
  bool right = true;
  DeviceArray<__half> const d_keys(host, stream), d_values(host, stream);
  DeviceArray<__half> const d_kept_keys(rows.size()), d_kept_values(rows.size());
  DeviceArray<std::int32_t> const d_lengths(1), d_cu_seqlens(ends.size());
  DeviceArray<std::byte> const d_table(table.bytes(), stream);
  auto d_plan = plan.on_device(table.view_at(d_table.data()), d_lengths.data());
  d_plan.d_cu_seqlens = d_cu_seqlens.data();
  std::vector<ha::LayerKv<__half const>> const layers{{d_keys.data(), d_values.data()}};
  auto const source = ha::strided_bhsd(1, num_kv_heads, tokens, head_dim);
  auto const kept = ha::ragged(plan, d_kept_keys.data(), d_kept_values.data(), head_dim);

  std::size_t temp_bytes = 0;
  check(ha::device::compress(nullptr, temp_bytes, d_plan, layers, source, kept, stream));
  DeviceArray<std::byte> const d_temp(temp_bytes);
  cudaGraphExec_t const graph = capture(
      stream, [&] { check(ha::device::compress(d_temp.data(), temp_bytes, d_plan, layers, source, kept, stream)); });
  for (std::int32_t const length : {256, 100, 20}) {
    d_lengths.upload(std::span(&length, 1), stream);
    check(cudaGraphLaunch(graph, stream));
    d_cu_seqlens.download(ends, stream);
    d_kept_keys.download(rows, stream);
    // The newest token is the last row of both heads.
    for (std::size_t head = 0; head < num_kv_heads; ++head) {
      float const newest = __half2float(rows[static_cast<std::size_t>((ends[head + 1] - 1) * head_dim)]);
      right = right && newest == static_cast<float>(static_cast<std::int64_t>(head) * tokens + length - 1);
    }
    std::printf("length %3d: heads keep %3d and %3d tokens\n", length, ends[1], ends[2] - ends[1]);
    right = right && ends[1] == std::min(length, 32) && ends[2] - ends[1] == length;
  }
  check(cudaGraphExecDestroy(graph));
  check(cudaStreamDestroy(stream));
  std::printf("%s\n", right ? "right at every length" : "WRONG");
  return right ? 0 : 1;
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
