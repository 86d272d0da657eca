// One compaction of a model-sized cache, for counting what it asks of memory: run it under the CUDA
// emulator with CUDA_EMU_REPORT=FILE (tests/device_code/traffic.cmake does and checks the counts), or
// under a profiler on a device.

#include "support/gpu.cuh"

#include <cstdio>

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  bench::Model const model;
  auto const source = headaware::strided_bhsd(1, model.num_kv_heads, model.tokens, model.head_dim);
  auto const compaction = model.device_compaction();
  auto const kept = model.kept();
  std::size_t temp_bytes = 0;
  BENCH_CHECK(headaware::device::compress(nullptr, temp_bytes, compaction, model.layers, source, kept, nullptr));
  bench::DeviceArray<std::byte> const temp(temp_bytes);
  BENCH_CHECK(headaware::device::compress(temp.data(), temp_bytes, compaction, model.layers, source, kept, nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());
  std::printf("kept_bytes %lld\n", static_cast<long long>(model.kept_bytes()));
}
