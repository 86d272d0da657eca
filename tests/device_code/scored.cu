// The kernels of caches with scored slots, instantiated for tests/device_code/spills.cmake.

#include "attention_kernels.cuh"

#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/packed_scored.cuh>
#include <headaware/cache/scored_append.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <vector>

using Packed = ha::PackedCache<ha::DefaultFormats, ha::ScoredView>;
using Halves = ha::KeptCache<__half, ha::ScoredView>;
using Floats = ha::KeptCache<float, ha::ScoredView>;
HEADAWARE_INSTANTIATE(__half, Halves);
HEADAWARE_INSTANTIATE(float, Floats);
HEADAWARE_INSTANTIATE(__nv_bfloat16, Packed);

using PackedRolling = ha::PackedDestination<ha::RollingSlotsView, ha::DefaultFormats>;
template cudaError_t ha::device::append(ha::RollingSlotsView const&, ha::RollingStateView const&,
                                        std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                        std::int32_t const*, std::int32_t,
                                        ha::Destination<__half, ha::RollingSlotsView> const&,
                                        ha::RollingScoresView const&, ha::TokenScores const&, ha::AppendOptions const&,
                                        cudaStream_t) noexcept;
template cudaError_t ha::device::append(ha::RollingSlotsView const&, ha::RollingStateView const&,
                                        std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                        std::int32_t const*, std::int32_t, PackedRolling const&,
                                        ha::PackedSegment<ha::DefaultFormats> const*, ha::RollingScoresView const&,
                                        ha::TokenScores const&, ha::AppendOptions const&, cudaStream_t) noexcept;
