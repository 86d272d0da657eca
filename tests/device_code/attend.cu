// Attention's kernels as engines get them, instantiated for tests/device_code/spills.cmake.

#include <headaware/attention/attend.cuh>
#include <headaware/attention/policy_mask.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace ha = headaware;

template <class T, class Cache>
cudaError_t instantiate(ha::AttentionShape const& shape, ha::AttentionQueries<T, ha::StridedLayout> const& queries,
                        Cache const& cache, ha::AttentionOutput<T, ha::StridedLayout> const& output,
                        cudaStream_t stream) {
  std::size_t bytes = 0;
  cudaError_t const error = ha::device::attend(nullptr, bytes, shape, queries, cache, output, {}, {}, stream);
  return error != cudaSuccess ? error : ha::device::merge_attention(shape, output, output, stream);
}

#define HEADAWARE_INSTANTIATE(T, Cache, View)                                                                    \
  template cudaError_t instantiate(ha::AttentionShape const&, ha::AttentionQueries<T, ha::StridedLayout> const&, \
                                   ha::Cache<T, View> const&, ha::AttentionOutput<T, ha::StridedLayout> const&,  \
                                   cudaStream_t)
HEADAWARE_INSTANTIATE(__half, KeptCache, ha::RaggedView<std::int32_t>);
HEADAWARE_INSTANTIATE(__nv_bfloat16, KeptCache, ha::PagedView);
HEADAWARE_INSTANTIATE(__half, KeptCache, ha::RollingView);
HEADAWARE_INSTANTIATE(float, KeptCache, ha::PaddedView);
HEADAWARE_INSTANTIATE(__half, LatentCache, ha::PagedView);
HEADAWARE_INSTANTIATE(__nv_bfloat16, LatentCache, ha::RollingView);
HEADAWARE_INSTANTIATE(float, LatentCache, ha::PaddedView);

template cudaError_t ha::device::fill_policy_mask(ha::PolicyTableView<> const&, ha::MaskShape const&, float*,
                                                  cudaStream_t);
template cudaError_t ha::device::fill_policy_mask(ha::PolicyTableView<> const&, ha::MaskShape const&, std::uint32_t*,
                                                  cudaStream_t);
