// The statistics kernels that engines get, instantiated for tests/device_code/spills.cmake.

#include <headaware/layout/paged.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.cuh>

#include <cuda_bf16.h>

namespace ha = headaware;

// Each is a kernel without values and three with, for up to 64, 128 and 256 channels. Those of half precision differ
// from those of bfloat16 in conversions alone.
template cudaError_t ha::device::observe(void*, std::size_t&,
                                         ha::DeviceQkvShape<ha::StridedLayout, ha::PagedLayout> const&,
                                         std::vector<ha::DeviceQkv<__nv_bfloat16>> const&, ha::AttentionScore const&,
                                         ha::ObserverParameters const&, double*, cudaStream_t);
template cudaError_t ha::device::observe(void*, std::size_t&, ha::DeviceQkvShape<ha::StridedLayout> const&,
                                         std::vector<ha::DeviceQkv<float>> const&, ha::AttentionScore const&,
                                         ha::ObserverParameters const&, double*, cudaStream_t);
