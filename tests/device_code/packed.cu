// The kernels that encode rows, or decode and encode them, instantiated for tests/device_code/spills.cmake.

#include <headaware/cache/engine_rows.cuh>
#include <headaware/cache/pack.cuh>
#include <headaware/cache/packed_pages.cuh>
#include <headaware/cache/packed_rolling.cuh>
#include <headaware/cache/transcode.cuh>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ha = headaware;

using Table = ha::PolicyTableView<>;
using Formats = ha::DefaultFormats;

template cudaError_t ha::device::compress(ha::DeviceCompaction<Table> const&, ha::PackPlan<> const&, void const*,
                                          std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                          ha::PackedDestination<ha::RaggedForm> const&, ha::KeyRotation const&,
                                          cudaStream_t);
template cudaError_t ha::device::append(ha::RollingSlotsView const&, ha::RollingStateView const&,
                                        std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                        std::int32_t const*, std::int32_t,
                                        ha::PackedDestination<ha::RollingSlotsView> const&,
                                        ha::PackedSegment<Formats> const*, ha::AppendOptions const&, cudaStream_t);
template cudaError_t ha::device::append(ha::PagedHeadsView const&, ha::DevicePageStep const&,
                                        std::vector<ha::LayerKv<__nv_bfloat16>> const&, ha::StridedLayout const&,
                                        ha::PackedPages<> const&, ha::PackedSegment<Formats> const*, std::int32_t,
                                        cudaStream_t);
template cudaError_t ha::device::copy_sequences(ha::RollingSlotsView const&, ha::RollingStateView const&,
                                                std::span<ha::SequenceCopy const>,
                                                ha::PackedDestination<ha::RollingSlotsView> const&,
                                                ha::PackedSegment<Formats> const*, cudaStream_t);
template cudaError_t ha::device::transcode(ha::TranscodePlan<> const&, void const*,
                                           ha::PackedDestination<ha::HeadPagesForm> const&,
                                           ha::PackedDestination<ha::RollingSlotsView> const&, cudaStream_t);
template cudaError_t ha::device::import_rows(ha::DeviceCompaction<Table> const&, ha::EngineRowsPlan const&, void const*,
                                             std::vector<ha::LayerKv<std::byte const>> const&, ha::StridedLayout const&,
                                             ha::PackedDestination<ha::RaggedForm> const&, cudaStream_t);
template cudaError_t ha::device::export_rows(ha::EngineRowsPlan const&, void const*,
                                             ha::PackedDestination<ha::RollingSlotsView> const&,
                                             std::vector<ha::LayerKv<std::byte>> const&, ha::StridedLayout const&,
                                             cudaStream_t);
