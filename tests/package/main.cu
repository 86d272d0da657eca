#include <headaware/cache/compact.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

// The size query needs no device, but the whole back end has to compile and link.
int main() {
  ha::Compaction const compaction(ha::UniformTable(ha::SinkWindow{.sink = 4, .window = 28}, 1, 2),
                                  std::vector<std::int32_t>{100});
  std::vector<ha::LayerKv<float const>> const layers{{nullptr, nullptr}};
  auto const kept = ha::ragged(compaction, static_cast<float*>(nullptr), static_cast<float*>(nullptr), 64);
  std::size_t temp_bytes = 0;
  cudaError_t const error = ha::device::compress(
      nullptr, temp_bytes, compaction.on_device(ha::UniformTable(ha::SinkWindow{4, 28}, 1, 2), nullptr), layers,
      ha::strided_bhsd(1, 2, 100, 64), kept, nullptr);
  std::printf("%s: %zu bytes of temporary storage\n", cudaGetErrorName(error), temp_bytes);
  return error == cudaSuccess && temp_bytes > 0 ? 0 : 1;
}
