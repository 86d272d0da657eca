// The kernels that engines get, instantiated for tests/device_code/spills.cmake.

#include <headaware/compressor.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ha = headaware;

template <class Table, class T, class Source, class Form>
cudaError_t instantiate(ha::DevicePlan<Table> const& plan, ha::Transfer<T, Source, Form> const& transfer,
                        ha::KeyRotation const& rotation, cudaStream_t stream) {
  std::size_t bytes = 0;
  cudaError_t const plain = ha::compress(nullptr, bytes, plan, transfer, stream);
  cudaError_t const rotated = ha::compress(nullptr, bytes, plan, transfer.rotate_keys(rotation), stream);
  return plain != cudaSuccess ? plain : rotated;
}

using Table = ha::PolicyTableView<>;
using Joined = ha::KvLayouts<ha::PagedLayout, ha::PagedLayout>;
using SplitX = ha::KvLayouts<ha::PagedSplitXLayout, ha::PagedLayout>;

template cudaError_t instantiate(ha::DevicePlan<Table> const&,
                                 ha::Transfer<__half, ha::StridedLayout, ha::RaggedForm> const&, ha::KeyRotation const&,
                                 cudaStream_t);
template cudaError_t instantiate(ha::DevicePlan<Table> const&,
                                 ha::Transfer<__nv_bfloat16, Joined, ha::PagedForm> const&, ha::KeyRotation const&,
                                 cudaStream_t);
template cudaError_t instantiate(ha::DevicePlan<Table> const&, ha::Transfer<__half, SplitX, ha::GroupedForm> const&,
                                 ha::KeyRotation const&, cudaStream_t);
template cudaError_t instantiate(ha::DevicePlan<ha::UniformTable<ha::SinkWindow>> const&,
                                 ha::Transfer<float, ha::RaggedLayout, ha::PaddedForm> const&, ha::KeyRotation const&,
                                 cudaStream_t);
template cudaError_t ha::compress_in_place(ha::DevicePlan<Table> const&, std::vector<ha::LayerKv<__half>> const&,
                                           ha::StridedLayout const&, ha::KeyRotation const&, cudaStream_t);
template cudaError_t ha::compress_in_place(ha::DevicePlan<Table> const&, std::vector<ha::LayerKv<__half>> const&,
                                           ha::PagedLayout const&, ha::detail::KeepPositions const&, cudaStream_t);
