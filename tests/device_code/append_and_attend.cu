// The kernels of steps that append and attend, instantiated for tests/device_code/spills.cmake.

#include <headaware/attention/append_and_attend.cuh>
#include <headaware/attention/append_and_attend_packed.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>

namespace ha = headaware;

#define HEADAWARE_INSTANTIATE(T, Rotation)                                                                     \
  template cudaError_t ha::device::append_and_attend(                                                          \
      void*, std::size_t&, ha::AttentionShape const&, ha::AttentionQueries<T, ha::StridedLayout> const&,       \
      ha::RollingStep<T, ha::StridedLayout, Rotation> const&, ha::Destination<T, ha::RollingSlotsView> const&, \
      ha::AttentionOutput<T, ha::StridedLayout> const&, ha::AttentionOptions, cudaStream_t) noexcept
HEADAWARE_INSTANTIATE(__half, ha::KeepPositions);
HEADAWARE_INSTANTIATE(__nv_bfloat16, ha::KeyRotation);

#define HEADAWARE_INSTANTIATE_PAGES(T, Rotation)                                                          \
  template cudaError_t ha::device::append_and_attend(                                                     \
      void*, std::size_t&, ha::AttentionShape const&, ha::AttentionQueries<T, ha::StridedLayout> const&,  \
      ha::HeadPagesStep<T, ha::StridedLayout, Rotation> const&, ha::PageStorage<T> const&,                \
      ha::AttentionOutput<T, ha::StridedLayout> const&, ha::AttentionBounds const&, ha::AttentionOptions, \
      cudaStream_t) noexcept
HEADAWARE_INSTANTIATE_PAGES(__half, ha::KeepPositions);
HEADAWARE_INSTANTIATE_PAGES(__nv_bfloat16, ha::KeyRotation);

template cudaError_t ha::device::append_and_attend(
    void*, std::size_t&, ha::AttentionShape const&, ha::AttentionQueries<__half, ha::StridedLayout> const&,
    ha::RollingStep<__half, ha::StridedLayout> const&,
    ha::PackedDestination<ha::RollingSlotsView, ha::DefaultFormats> const&,
    ha::PackedSegment<ha::DefaultFormats> const*, ha::AttentionOutput<__half, ha::StridedLayout> const&,
    ha::AttentionOptions, cudaStream_t) noexcept;
