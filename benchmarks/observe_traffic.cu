// Statistics of one layer, for counting what they ask of memory: run it under the CUDA emulator with
// CUDA_EMU_REPORT=FILE (tests/device_code/observe_traffic.cmake does and checks the counts), or under a
// profiler on a device. Prints, for each launch, what the forward pass of flash attention reads: every query once
// and, for every tile of queries, the keys and values up to the diagonal; at tiles of as many rows as the statistics
// have, and at its own of 128 rows; for queries that see all before them, and for such that see a window. Afterwards
// the rows of a tile on devices of some sizes of shared memory. With an argument: at that many tokens, without a
// window, and no more.

#include "support/gpu.cuh"

#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.cuh>

#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

namespace ha = headaware;

using Shape = ha::DeviceQkvShape<ha::StridedLayout>;

int device_shared_memory() {
  int limit = 0;
  BENCH_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  return limit;
}

Shape shape_of(std::int64_t tokens, std::int64_t head_dim) {
  Shape shape;
  shape.num_query_heads = 2;
  shape.num_kv_heads = 1;
  shape.tokens = tokens;
  shape.head_dim = head_dim;
  shape.query_layout = ha::strided_bhsd(1, shape.num_query_heads, tokens, head_dim);
  shape.key_layout = shape.value_layout = ha::strided_bhsd(1, 1, tokens, head_dim);
  return shape;
}

/// Bytes that flash attention's forward pass reads with tiles of `tile` query rows and 64 keys.
/// @param window  keys that a query sees; 0: all before it
std::int64_t flash_bytes(Shape const& shape, std::int32_t tile, bool with_values, std::int64_t window) {
  std::int64_t rows = shape.tokens;
  for (std::int64_t first = 0; first < shape.tokens; first += tile) {
    std::int64_t const oldest = window > 0 ? std::max<std::int64_t>(0, first - window + 1) / 64 * 64 : 0;
    rows += (std::min<std::int64_t>(first + tile, shape.tokens) - oldest) * (with_values ? 2 : 1);
  }
  return rows * shape.num_query_heads * shape.head_dim * static_cast<std::int64_t>(sizeof(__half));
}

void observe(std::int64_t tokens, bool with_values, std::int64_t window) {
  constexpr std::int64_t head_dim = 128;
  std::vector<__half> host(static_cast<std::size_t>(2 * tokens * head_dim));
  for (std::size_t i = 0; i < host.size(); ++i)
    host[i] = __float2half(static_cast<float>(i * 2654435761 % 2048) / 2048);
  bench::DeviceArray<__half> const queries(host);
  bench::DeviceArray<__half> const keys(host);
  bench::DeviceArray<__half> const values(host);
  Shape const shape = shape_of(tokens, head_dim);
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  parameters.formats.clear();  // a launch of their own
  std::vector<ha::DeviceQkv<__half>> const layers{
      {queries.data(), keys.data(), with_values ? values.data() : nullptr, nullptr, window}};
  bench::DeviceArray<double> const sums(
      std::vector<double>(static_cast<std::size_t>(shape.num_query_heads * ha::SumsLayout(parameters).size())));
  std::size_t bytes = 0;
  BENCH_CHECK(ha::device::observe(nullptr, bytes, shape, layers, {.scale = 0.09F}, parameters, sums.data(), nullptr));
  bench::DeviceArray<std::byte> const temp(bytes);
  BENCH_CHECK(
      ha::device::observe(temp.data(), bytes, shape, layers, {.scale = 0.09F}, parameters, sums.data(), nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());

  std::int32_t const rows =
      ha::device::observe_tile_rows<__half>(shape, with_values, parameters, device_shared_memory());
  std::printf("tile %d flash_bytes %lld flash_128_bytes %lld\n", rows,
              static_cast<long long>(flash_bytes(shape, rows, with_values, window)),
              static_cast<long long>(flash_bytes(shape, 128, with_values, window)));
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  if (argc > 1) {
    for (bool const with_values : {false, true}) observe(std::strtoll(argv[1], nullptr, 10), with_values, 0);
    return 0;
  }
  for (std::int64_t const window : {0, 128}) {
    observe(1024, false, window);
    observe(1024, true, window);
  }
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  parameters.formats.clear();  // a launch of their own
  for (int const limit : {99 << 10, 163 << 10, 227 << 10}) {
    for (std::int64_t const head_dim : {64, 128}) {
      for (std::int64_t const tokens : {1024, 2048, 4096, 8192, 32768}) {
        Shape const shape = shape_of(tokens, head_dim);
        std::printf("shared memory %d KiB, %lld channels, %lld tokens: %d rows, with values %d\n", limit >> 10,
                    static_cast<long long>(head_dim), static_cast<long long>(tokens),
                    ha::device::observe_tile_rows<__half>(shape, false, parameters, limit),
                    ha::device::observe_tile_rows<__half>(shape, true, parameters, limit));
      }
    }
  }
}
