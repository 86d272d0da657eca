// Kernels that score rows, over an engine's usual rows, and that select tokens by scores.

#include <headaware/layout/paged.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/score/linear_score.cuh>
#include <headaware/score/select.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>

namespace ha = headaware;

template <class T, class Layout, class Rotation>
cudaError_t score(T const* rows, Layout const& layout, float* scores, Rotation const& rotation) {
  return ha::device::score_rows({}, {}, ha::TokenRows{rows, ha::StridedLayout{}, rows, rows, layout}, scores,
                                ha::RowScores{scores, 0, 0}, nullptr, rotation);
}

template <class T>
cudaError_t score_all(T const* rows, float* scores, ha::KeyRotation const& rotation) {
  cudaError_t const results[] = {score(rows, ha::StridedLayout{}, scores, rotation),
                                 score(rows, ha::StridedLayout{}, scores, ha::KeepPositions{}),
                                 score(rows, ha::PagedLayout{}, scores, rotation)};
  return results[0];
}

cudaError_t use(float const* a, __half const* b, __nv_bfloat16 const* c, float* scores,
                ha::KeyRotation const& rotation) {
  cudaError_t const results[] = {score_all(a, scores, rotation), score_all(b, scores, rotation),
                                 score_all(c, scores, rotation)};
  return results[0];
}

template cudaError_t ha::device::select_tokens(void*, std::size_t&, ha::SelectionShape const&, ha::SegmentScores const&,
                                               ha::SelectionRule const&, ha::SelectedTokens const&, cudaStream_t);
