// The kernels that engines get, instantiated for tests/device_code/spills.cmake.

#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rolling.cuh>
#include <headaware/compressor.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ha = headaware;

template <class Table, class T, class Source, class Form>
cudaError_t instantiate(ha::DeviceCompaction<Table> const& compaction, ha::Transfer<T, Source, Form> const& transfer,
                        ha::KeyRotation const& rotation, cudaStream_t stream) {
  std::size_t bytes = 0;
  cudaError_t const plain = ha::device::compress(nullptr, bytes, compaction, transfer, stream);
  cudaError_t const rotated = ha::device::compress(nullptr, bytes, compaction, transfer.rotate_keys(rotation), stream);
  return plain != cudaSuccess ? plain : rotated;
}

using Table = ha::PolicyTableView<>;
using Joined = ha::KvLayouts<ha::PagedLayout, ha::PagedLayout>;
using SplitX = ha::KvLayouts<ha::PagedSplitXLayout, ha::PagedLayout>;

template cudaError_t instantiate(ha::DeviceCompaction<Table> const&,
                                 ha::Transfer<__half, ha::StridedLayout, ha::RaggedForm> const&, ha::KeyRotation const&,
                                 cudaStream_t);
template cudaError_t instantiate(ha::DeviceCompaction<Table> const&,
                                 ha::Transfer<__nv_bfloat16, Joined, ha::PagedForm> const&, ha::KeyRotation const&,
                                 cudaStream_t);
template cudaError_t instantiate(ha::DeviceCompaction<Table> const&,
                                 ha::Transfer<__half, SplitX, ha::GroupedForm> const&, ha::KeyRotation const&,
                                 cudaStream_t);
template cudaError_t instantiate(ha::DeviceCompaction<ha::UniformTable<ha::SinkWindow>> const&,
                                 ha::Transfer<float, ha::RaggedLayout, ha::PaddedForm> const&, ha::KeyRotation const&,
                                 cudaStream_t);
template cudaError_t ha::device::compress_in_place(ha::DeviceCompaction<Table> const&,
                                                   std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                                   ha::KeyRotation const&, cudaStream_t);
template cudaError_t ha::device::compress_in_place(ha::DeviceCompaction<Table> const&,
                                                   std::vector<ha::LayerKv<__half>> const&, ha::PagedLayout const&,
                                                   ha::KeepPositions const&, cudaStream_t);

// Decoding: appending to slots and to pages, and what changes sequences.
template cudaError_t ha::device::compress(void*, std::size_t&, ha::DeviceCompaction<Table> const&,
                                          ha::Transfer<__half, ha::StridedLayout, ha::RollingSlotsView> const&,
                                          cudaStream_t);
template cudaError_t ha::device::append(ha::RollingSlotsView const&, ha::RollingStateView const&,
                                        std::vector<ha::LayerKv<__half>> const&, ha::StridedLayout const&,
                                        std::int32_t const*, std::int32_t,
                                        ha::Destination<__half, ha::RollingSlotsView> const&, ha::AppendOptions const&,
                                        cudaStream_t);
template cudaError_t ha::device::append(ha::RollingSlotsView const&, ha::RollingStateView const&,
                                        std::vector<ha::LayerKv<__half>> const&, Joined const&, std::int32_t const*,
                                        std::int32_t, ha::Destination<__half, ha::RollingSlotsView> const&,
                                        ha::AppendOptions const&, cudaStream_t);
template cudaError_t ha::device::append(ha::PagedHeadsView const&, ha::DevicePageStep const&,
                                        std::vector<ha::LayerKv<__nv_bfloat16>> const&, ha::StridedLayout const&,
                                        ha::PageStorage<__nv_bfloat16> const&, std::int32_t, cudaStream_t);
template cudaError_t ha::device::copy_sequences(ha::RollingSlotsView const&, ha::RollingStateView const&,
                                                std::span<ha::SequenceCopy const>,
                                                ha::Destination<__half, ha::RollingSlotsView> const&, cudaStream_t);
