#pragma once

// Attention's kernels over a cache, for units that spills.cmake looks into.

#include <headaware/attention/attend.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>

namespace ha = headaware;

template <class T, class Cache>
cudaError_t instantiate(ha::AttentionShape const& shape, ha::AttentionQueries<T, ha::StridedLayout> const& queries,
                        Cache const& cache, ha::AttentionOutput<T, ha::StridedLayout> const& output,
                        cudaStream_t stream) {
  std::size_t bytes = 0;
  return ha::device::attend(nullptr, bytes, shape, queries, cache, output, {}, {}, stream);
}

#define HEADAWARE_INSTANTIATE(T, Cache)                                                                          \
  template cudaError_t instantiate(ha::AttentionShape const&, ha::AttentionQueries<T, ha::StridedLayout> const&, \
                                   Cache const&, ha::AttentionOutput<T, ha::StridedLayout> const&, cudaStream_t)
