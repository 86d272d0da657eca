#pragma once

/// @file
/// Selection by scores on CUDA: the best tokens of every KV head beside its sinks and its window, as keep-lists that
/// `compress` takes. Nothing is allocated, copied from the host or synchronised, and scores, lengths and budgets are
/// read on the device, so a call may be captured in a graph.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/error.hpp>
#include <headaware/score/detail/cuda/select_kernel.cuh>
#include <headaware/score/selection.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline void launch_selection(SelectParameters p, cudaStream_t stream) {
  constexpr auto where = "select_tokens";
  auto const segments = static_cast<unsigned>(p.shape.num_segments());
  if (p.rule.budgets != nullptr) {
    launch(where, select_own_kernel<SelectParameters>, segments, select_threads, 0, stream, p);
    return;
  }
  constexpr std::int64_t least_part = 4096;  // tokens, against which finding a digit costs little
  constexpr std::int64_t most_parts = 64;
  std::int64_t const parts = std::clamp<std::int64_t>(p.shape.max_length / least_part, 1, most_parts);
  p.part_tokens = (p.shape.max_length + parts - 1) / parts;
  dim3 const grid(segments, static_cast<unsigned>(parts));
  auto const clear = [&](void* data, std::size_t bytes) {
    require_cuda(cudaMemsetAsync(data, 0, bytes, stream), "clearing counts of keys", where);
  };
  clear(p.counts, static_cast<std::size_t>(p.shape.num_sequences) * sizeof(*p.counts));
  clear(p.ties, segments * sizeof(*p.ties));
  launch(where, select_own_kernel<SelectParameters>, segments, select_threads, 0, stream, p);
  for (std::int32_t level = 0; level < key_levels; ++level) {
    launch(where, count_shared_kernel<SelectParameters>, grid, select_threads, 0, stream, p, level);
  }
  launch(where, count_ties_kernel<SelectParameters>, grid, select_threads, 0, stream, p);
  launch(where, select_shared_kernel<SelectParameters>, segments, select_threads, 0, stream, p);
}

}  // namespace detail

namespace device {

/// @brief Selects the tokens that every KV head keeps: its sinks, its window, and the best of the others by their
/// scores. The tokens are the CPU's, one by one.
///
/// Two calls, as in CUB: with `d_temp == nullptr` the first only sets `temp_bytes`. How `compress` goes on: with lists
/// on the device (`SelectedTokens::lists`), and on the host a `Compaction` of lists of the same counts, which
/// `selected_lists` makes: known beforehand by budgets of heads, and by one threshold over one layer as far as ragged
/// caches need them; by one threshold over several layers from a copy of `SelectedTokens::counts`.
/// @param[in]     d_temp      device, of any alignment and content; nullptr: size query
/// @param[in,out] temp_bytes  bytes: 1 by budgets of heads, else 24 KiB a sequence and 12 bytes a segment
/// @param[in]     shape       of one layer or several; device pointers
/// @param[in]     scores      device, [segments, stride]; those of sinks and windows are not read
/// @param[in]     rule        budgets of heads, or one threshold for all heads of a sequence; device pointers
/// @param[out]    to          device; each list names the segment's tokens. A head that keeps more than the stride
///                            (`selection_stride`) loses the newest of them
/// @param[in]     stream      enqueued here, not synchronised
/// @pre    lengths, budgets and windows are not negative: one that is counts as 0
/// @return cudaErrorInvalidValue on negative numbers, null or misaligned pointers, strides too small, budgets of heads
///         beside shared tokens, more than 2^32 - 1 tokens that one threshold chooses from, or too little storage;
///         launch errors
/// @note   Deterministic: equal scores are told apart by the rule's words. Graph-capturable; a replay reads the scores,
///         lengths and budgets of its time.
/// @par Cost  By budgets of heads one launch, a block per segment, which reads its scores four or five times; by one
///            threshold six launches and two clearings, which read the scores up to ten times, and every block of them
///            up to 24 KiB of histograms, which the L2 cache holds. A radix selection: nothing is sorted
template <class = void>
cudaError_t select_tokens(void* d_temp, std::size_t& temp_bytes, SelectionShape const& shape,
                          SegmentScores const& scores, SelectionRule const& rule, SelectedTokens const& to,
                          cudaStream_t stream) noexcept {
  constexpr auto where = "select_tokens";
  return detail::guarded([&] {
    bool const any = detail::check_selection(shape, scores, rule, to);
    bool const shares = rule.budgets == nullptr;
    require(shape.num_segments() <= detail::max_blocks, "segments", detail::max_blocks_text, shape.num_segments(),
            where);
    require(!shares || shape.heads.total() * shape.max_length <= 0xffffffffLL, "tokens that one threshold chooses from",
            "at most 4294967295", shape.heads.total() * shape.max_length, where);
    detail::SelectParameters parameters{shape, scores, rule, to};
    std::int64_t const segments = any && shares ? shape.num_segments() : 0;
    if (!detail::place_buffers(
            d_temp, temp_bytes, where, detail::TempBuffer{parameters.counts, segments > 0 ? shape.num_sequences : 0},
            detail::TempBuffer{parameters.ties, segments}, detail::TempBuffer{parameters.thresholds, segments})) {
      if (any && temp_bytes == 0) temp_bytes = 1;  // a second call with a null pointer would ask again
      return;
    }
    if (any) detail::launch_selection(parameters, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
