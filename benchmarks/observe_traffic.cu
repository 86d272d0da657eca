// Statistics of one layer, for counting what they ask of memory: run it under the CUDA emulator with
// CUDA_EMU_REPORT=FILE (tests/device_code/observe_traffic.cmake does and checks the counts), or under a
// profiler on a device. Prints, for each launch, what the forward pass of flash attention reads at the same
// tiles: every query once and, for every tile of queries, the keys and values up to the diagonal.

#include "support/gpu.cuh"

#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.cuh>

#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <vector>

namespace {

namespace ha = headaware;

void observe(bool with_values) {
  constexpr std::int32_t query_heads = 2;
  constexpr std::int64_t tokens = 1024;
  constexpr std::int64_t head_dim = 128;
  std::vector<__half> host(query_heads * tokens * head_dim);
  for (std::size_t i = 0; i < host.size(); ++i)
    host[i] = __float2half(static_cast<float>(i * 2654435761 % 2048) / 2048);
  bench::DeviceArray<__half> const queries(host);
  bench::DeviceArray<__half> const keys(host);
  bench::DeviceArray<__half> const values(host);
  ha::DeviceQkvShape<ha::StridedLayout> shape;
  shape.query_layout = ha::strided_bhsd(1, query_heads, tokens, head_dim);
  shape.key_layout = shape.value_layout = ha::strided_bhsd(1, 1, tokens, head_dim);
  shape.query_heads = query_heads;
  shape.kv_heads = 1;
  shape.tokens = tokens;
  shape.head_dim = head_dim;
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  std::vector<ha::DeviceQkv<__half>> const layers{{queries.data(), keys.data(), with_values ? values.data() : nullptr}};
  bench::DeviceArray<double> const sums(
      std::vector<double>(static_cast<std::size_t>(query_heads * ha::SumsLayout(parameters).size())));
  std::size_t bytes = 0;
  BENCH_CHECK(ha::observe(nullptr, bytes, shape, layers, {.scale = 0.09F}, parameters, sums.data(), nullptr));
  bench::DeviceArray<std::byte> const temp(bytes);
  BENCH_CHECK(ha::observe(temp.data(), bytes, shape, layers, {.scale = 0.09F}, parameters, sums.data(), nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());

  int limit = 0;
  BENCH_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  using Parameters = ha::detail::ObserveParameters<ha::StridedLayout, ha::StridedLayout, ha::StridedLayout>;
  auto const plan = ha::detail::plan_observation<ha::float16>(shape, 1, with_values, parameters, sizeof(Parameters));
  ha::detail::ObserveShared shared;
  ha::detail::fit_shared(plan.sizes, limit, shared);
  std::int64_t rows = tokens;
  for (std::int64_t first = 0; first < tokens; first += shared.rows)
    rows += std::min<std::int64_t>(first + shared.rows, tokens) * (with_values ? 2 : 1);
  std::printf("tile %d flash_bytes %lld\n", shared.rows,
              static_cast<long long>(rows * query_heads * head_dim * static_cast<std::int64_t>(sizeof(__half))));
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  observe(false);
  observe(true);
}
