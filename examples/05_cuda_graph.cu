// Compaction on the device, captured once in a CUDA graph and replayed with other lengths.

#include <headaware/compressor.cuh>

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

namespace ha = headaware;

#define CHECK(call)                                               \
  do {                                                            \
    cudaError_t const error_ = (call);                            \
    if (error_ != cudaSuccess) {                                  \
      std::printf("%s: %s\n", #call, cudaGetErrorString(error_)); \
      return 1;                                                   \
    }                                                             \
  } while (0)

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: nothing to show\n");
    return 0;
  }
  constexpr std::int64_t num_kv_heads = 2;
  constexpr std::int64_t tokens = 256;
  constexpr std::int64_t head_dim = 64;

  // Planned for the longest sequence the graph will see.
  ha::PolicyTable table(1, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 28});
  table.set(0, 1, ha::Full{});
  std::vector<std::int32_t> const longest{tokens};
  ha::Compaction const plan(table, longest);

  std::vector<__half> host(num_kv_heads * tokens * head_dim);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = __float2half(static_cast<float>(i / head_dim % 2048));
  auto const row_bytes = static_cast<std::size_t>(plan.kept_total() * head_dim) * sizeof(__half);
  __half *d_keys = nullptr, *d_values = nullptr, *d_kept_keys = nullptr, *d_kept_values = nullptr;
  std::int32_t *d_lengths = nullptr, *d_cu_seqlens = nullptr;
  void *d_table = nullptr, *d_temp = nullptr;
  CHECK(cudaMalloc(&d_keys, host.size() * sizeof(__half)));
  CHECK(cudaMalloc(&d_values, host.size() * sizeof(__half)));
  CHECK(cudaMalloc(&d_kept_keys, row_bytes));
  CHECK(cudaMalloc(&d_kept_values, row_bytes));
  CHECK(cudaMalloc(&d_lengths, sizeof(std::int32_t)));
  CHECK(cudaMalloc(&d_cu_seqlens, (num_kv_heads + 1) * sizeof(std::int32_t)));
  CHECK(cudaMalloc(&d_table, table.bytes().size()));
  CHECK(cudaMemcpy(d_keys, host.data(), host.size() * sizeof(__half), cudaMemcpyHostToDevice));
  CHECK(cudaMemcpy(d_values, host.data(), host.size() * sizeof(__half), cudaMemcpyHostToDevice));
  CHECK(cudaMemcpy(d_table, table.bytes().data(), table.bytes().size(), cudaMemcpyHostToDevice));

  auto d_plan = plan.on_device(table.view_at(d_table), d_lengths);
  d_plan.d_cu_seqlens = d_cu_seqlens;
  std::vector<ha::LayerKv<__half const>> const layers{{d_keys, d_values}};
  auto const source = ha::strided_bhsd(1, num_kv_heads, tokens, head_dim);
  auto const kept = ha::ragged(plan, d_kept_keys, d_kept_values, head_dim);

  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CHECK(cudaStreamCreate(&stream));
  std::size_t temp_bytes = 0;
  CHECK(ha::device::compress(nullptr, temp_bytes, d_plan, layers, source, kept, stream));
  CHECK(cudaMalloc(&d_temp, temp_bytes));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  CHECK(ha::device::compress(d_temp, temp_bytes, d_plan, layers, source, kept, stream));
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));

  bool right = true;
  for (std::int32_t const length : {256, 100, 20}) {
    CHECK(cudaMemcpyAsync(d_lengths, &length, sizeof(length), cudaMemcpyHostToDevice, stream));
    CHECK(cudaGraphLaunch(executable, stream));
    std::int32_t cu_seqlens[num_kv_heads + 1] = {};
    std::vector<__half> rows(static_cast<std::size_t>(plan.kept_total() * head_dim));
    CHECK(cudaMemcpyAsync(cu_seqlens, d_cu_seqlens, sizeof(cu_seqlens), cudaMemcpyDeviceToHost, stream));
    CHECK(cudaMemcpyAsync(rows.data(), d_kept_keys, row_bytes, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    // The newest token is the last row of both heads.
    for (std::int32_t head = 0; head < num_kv_heads; ++head) {
      float const newest = __half2float(rows[static_cast<std::size_t>((cu_seqlens[head + 1] - 1) * head_dim)]);
      right = right && newest == static_cast<float>(head * tokens + length - 1);
    }
    std::printf("length %3d: heads keep %3d and %3d tokens\n", length, cu_seqlens[1], cu_seqlens[2] - cu_seqlens[1]);
    right = right && cu_seqlens[1] == std::min(length, 32) && cu_seqlens[2] - cu_seqlens[1] == length;
  }
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  for (void* pointer : {static_cast<void*>(d_keys), static_cast<void*>(d_values), static_cast<void*>(d_kept_keys),
                        static_cast<void*>(d_kept_values), static_cast<void*>(d_lengths),
                        static_cast<void*>(d_cu_seqlens), d_table, d_temp}) {
    CHECK(cudaFree(pointer));
  }
  std::printf("%s\n", right ? "right at every length" : "WRONG");
  return right ? 0 : 1;
}
