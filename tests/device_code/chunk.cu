// The kernel for prefill chunks and drafts with outputs in single precision and over pages of single heads, and those
// that score keys, instantiated for tests/device_code/spills.cmake. attend.cu and append_and_attend.cu have the first
// over other rows.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/chunk_kernel.cuh>
#include <headaware/attention/detail/cuda/chunk_parameters.cuh>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/attention/key_scores.cuh>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>

namespace ha = headaware;

template <class E, class O, class View>
void const* chunk_kernel_of() {
  using P = ha::detail::ChunkParameters<E, ha::StridedLayout, ha::KeptCache<E, View>, O, ha::StridedLayout>;
  return reinterpret_cast<void const*>(ha::detail::chunk_kernel<P>);
}

template void const* chunk_kernel_of<ha::float16, float, ha::RollingView>();
template void const* chunk_kernel_of<ha::bfloat16, ha::bfloat16, ha::HeadPagesView>();

template cudaError_t ha::device::score_keys(void*, std::size_t&, ha::AttentionShape const&,
                                            ha::AttentionQueries<ha::float16, ha::StridedLayout> const&,
                                            ha::KeptCache<ha::float16, ha::HeadPagesView> const&,
                                            ha::AttentionOptions const&, ha::KeyScoreReduction, ha::KeyScores const&,
                                            cudaStream_t) noexcept;
template cudaError_t ha::device::score_keys(void*, std::size_t&, ha::AttentionShape const&,
                                            ha::AttentionQueries<float, ha::StridedLayout> const&,
                                            ha::KeptCache<ha::bfloat16, ha::RollingView> const&,
                                            ha::AttentionOptions const&, ha::KeyScoreReduction, ha::KeyScores const&,
                                            cudaStream_t) noexcept;
