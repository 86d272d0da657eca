// Built for compute capability 7.5 and run on what there is: statistics are refused, and the context lives.

#include <headaware/last_error.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.cuh>

#include <cstddef>
#include <cstdio>
#include <string_view>
#include <vector>

namespace ha = headaware;

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device");
    return 0;
  }
  ha::DeviceQkvShape<ha::StridedLayout> shape;
  shape.query_layout = shape.key_layout = shape.value_layout = ha::strided_bhsd(1, 1, 16, 16);
  shape.num_query_heads = shape.num_kv_heads = 1;
  shape.tokens = shape.head_dim = 16;
  float* data = nullptr;
  double* sums = nullptr;
  void* temp = nullptr;
  std::size_t bytes = 0;
  cudaError_t error = cudaMalloc(&data, 16 * 16 * sizeof(float));
  if (error == cudaSuccess) error = cudaMemset(data, 0, 16 * 16 * sizeof(float));
  if (error == cudaSuccess)
    error = cudaMalloc(&sums, static_cast<std::size_t>(ha::SumsLayout({}).size()) * sizeof(double));
  std::vector<ha::DeviceQkv<float>> const layers{{data, data}};
  if (error == cudaSuccess) error = ha::device::observe(nullptr, bytes, shape, layers, {}, {}, sums, nullptr);
  if (error == cudaSuccess) error = cudaMalloc(&temp, bytes);
  if (error != cudaSuccess) return 2;
  error = ha::device::observe(temp, bytes, shape, layers, {}, {}, sums, nullptr);
  cudaError_t const alive = cudaDeviceSynchronize();
  std::printf("%s: %s\n%s\n", cudaGetErrorName(error), ha::last_error_message(), cudaGetErrorName(alive));
  bool const said = std::string_view(ha::last_error_message()).find("got 7.5") != std::string_view::npos;
  return error == cudaErrorNotSupported && alive == cudaSuccess && said ? 0 : 1;
}
