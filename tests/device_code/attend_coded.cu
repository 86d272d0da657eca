// Attention's kernels over encoded rows, instantiated for tests/device_code/spills.cmake.

#include <headaware/attention/attend.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace ha = headaware;

template <class T, class View>
cudaError_t instantiate(ha::AttentionShape const& shape, ha::AttentionQueries<T, ha::StridedLayout> const& queries,
                        ha::PackedCache<ha::DefaultFormats, View> const& cache,
                        ha::AttentionOutput<T, ha::StridedLayout> const& output, cudaStream_t stream) {
  std::size_t bytes = 0;
  return ha::device::attend(nullptr, bytes, shape, queries, cache, output, {}, {}, stream);
}

#define HEADAWARE_INSTANTIATE(T, View)                                                                           \
  template cudaError_t instantiate(ha::AttentionShape const&, ha::AttentionQueries<T, ha::StridedLayout> const&, \
                                   ha::PackedCache<ha::DefaultFormats, View> const&,                             \
                                   ha::AttentionOutput<T, ha::StridedLayout> const&, cudaStream_t)
HEADAWARE_INSTANTIATE(__half, ha::RaggedView<std::int32_t>);
HEADAWARE_INSTANTIATE(__nv_bfloat16, ha::RollingView);
