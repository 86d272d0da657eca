// The kernels of pages with scored slots, instantiated for tests/device_code/spills.cmake.

#include "attention_kernels.cuh"

#include <headaware/attention/key_scores.cuh>
#include <headaware/attention/scored_pages_view.hpp>
#include <headaware/cache/packed_pages_scored.cuh>
#include <headaware/cache/paged_scored.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <vector>

using Packed = ha::PackedCache<ha::DefaultFormats, ha::ScoredPagesView>;
using Halves = ha::KeptCache<__half, ha::ScoredPagesView>;
using Floats = ha::KeptCache<float, ha::ScoredPagesView>;
HEADAWARE_INSTANTIATE(__half, Halves);
HEADAWARE_INSTANTIATE(float, Floats);
HEADAWARE_INSTANTIATE(__nv_bfloat16, Packed);

template cudaError_t ha::device::score_keys(void*, std::size_t&, ha::AttentionShape const&,
                                            ha::AttentionQueries<__half, ha::StridedLayout> const&, Halves const&,
                                            ha::AttentionOptions const&, ha::KeyScoreReduction, ha::KeyScores const&,
                                            cudaStream_t) noexcept;
template cudaError_t ha::device::append(ha::PagedHeadsView const&, ha::DevicePageStep const&,
                                        std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                        ha::PageStorage<__half> const&, ha::RollingScoresView const&,
                                        ha::TokenScores const&, std::int32_t, cudaStream_t) noexcept;
template cudaError_t ha::device::append(ha::PagedHeadsView const&, ha::DevicePageStep const&,
                                        std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                        ha::PackedPages<ha::DefaultFormats> const&,
                                        ha::PackedSegment<ha::DefaultFormats> const*, ha::RollingScoresView const&,
                                        ha::TokenScores const&, std::int32_t, cudaStream_t) noexcept;
