#pragma once

// Kernels that select tokens by their scores: a radix selection, by head or over all heads of a sequence.

#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/layout/concept.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/score/detail/cuda/select_block.cuh>
#include <headaware/score/selection.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Counts of one sequence under one threshold; zeros before the first kernel.
struct SharedCounts {
  std::uint32_t bins[key_levels][level_bins];
  unsigned long long own;  ///< tokens that heads have selected by themselves
};

struct SelectParameters {
  SelectionShape shape;
  SegmentScores scores;
  SelectionRule rule;
  SelectedTokens to;
  SharedCounts* counts = nullptr;            ///< [num_sequences]
  std::uint32_t* ties = nullptr;             ///< [segments], tokens of the last selected key; zeros before
  SelectionThreshold* thresholds = nullptr;  ///< [segments], of what heads select by themselves
  std::int64_t part_tokens = 0;              ///< of a segment, that a block counts

  __device__ SegmentKeys keys(std::int64_t s, Segment const& segment) const {
    std::int64_t length = shape.lengths[segment.sequence];
    length = length < 0 ? 0 : length < shape.max_length ? length : shape.max_length;
    return {scores.data + s * scores.stride, selection_range(rule, selection_head(shape.heads, segment), length)};
  }
  /// Those that heads have not selected by themselves.
  __device__ SegmentKeys shared_keys(std::int64_t s, Segment const& segment) const {
    SegmentKeys result = keys(s, segment);
    result.taken = thresholds[s];
    return result;
  }
  /// Tokens beside sinks and window that the block counts; none where its part lies after them.
  __device__ TokenRange part(SegmentKeys const& of) const {
    std::int64_t const begin = of.range.sinks + blockIdx.y * part_tokens;
    return {begin, begin + part_tokens < of.range.begin ? begin + part_tokens : of.range.begin};
  }
  __device__ Segment segment(std::int64_t s) const { return segment_at(s, shape.num_sequences, shape.heads); }
  /// Writes what a segment keeps.
  __device__ void write(std::int64_t s, SegmentKeys const& keys, SelectionThreshold const& threshold,
                        SelectStorage& shared) const {
    std::int32_t* const tokens = to.tokens + s * to.stride;
    std::int64_t const count = write_tokens(keys, threshold, tokens, to.stride, shared);
    if (threadIdx.x != 0) return;
    if (to.counts != nullptr) to.counts[s] = static_cast<std::int32_t>(count);
    if (to.lists != nullptr) to.lists[s] = KeepList{tokens, count};
  }
};

/// What one threshold has left to choose.
enum class SharedState : std::uint8_t { none, some, all };

/// Reads as many digits of the last key that a sequence's heads share as `levels` histograms tell. Synchronises.
__device__ inline SharedState shared_rank(SelectParameters const& p, std::int32_t sequence, std::int32_t levels,
                                          SelectStorage& shared, KeyRank& rank) {
  SharedCounts const& counts = p.counts[sequence];
  rank = {0, p.rule.shared - static_cast<std::int64_t>(counts.own)};
  if (rank.wanted <= 0) return SharedState::none;
  for (std::int32_t level = 0; level < levels; ++level) {
    if (!find_digit(counts.bins[level], level, shared, rank)) return SharedState::all;
  }
  return SharedState::some;
}

/// Selects by head: budgets, whose tokens it writes, or the floor of heads that share. A block a segment.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(select_threads, min_blocks)
    select_own_kernel(Parameters const __grid_constant__ p) {
  __shared__ SelectStorage shared;
  std::int64_t const s = blockIdx.x;
  Segment const segment = p.segment(s);
  SegmentKeys const keys = p.keys(s, segment);
  std::int64_t const count =
      own_selected(p.rule, selection_head(p.shape.heads, segment), keys.range.begin - keys.range.sinks);
  SelectionThreshold const threshold = find_threshold(keys, count, shared);
  if (p.rule.budgets != nullptr) {
    p.write(s, keys, threshold, shared);
  } else if (threadIdx.x == 0) {
    p.thresholds[s] = threshold;
    atomicAdd(&p.counts[segment.sequence].own, static_cast<unsigned long long>(count));
  }
}

/// Counts one level's digits of the keys that heads share. Blocks (segment, part of it).
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(select_threads, min_blocks)
    count_shared_kernel(Parameters const __grid_constant__ p, std::int32_t level) {
  __shared__ SelectStorage shared;
  std::int64_t const s = blockIdx.x;
  Segment const segment = p.segment(s);
  SegmentKeys const keys = p.shared_keys(s, segment);
  KeyRank rank;
  if (shared_rank(p, segment.sequence, level, shared, rank) != SharedState::some) return;
  auto const [begin, end] = p.part(keys);
  if (begin >= end) return;
  clear_bins(shared);
  count_digits(keys, begin, end, level, rank.prefix, shared);
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < 1 << level_bits(level); i += select_threads) {
    if (shared.bins[i] != 0) atomicAdd(&p.counts[segment.sequence].bins[level][i], shared.bins[i]);
  }
}

/// Counts each segment's tokens of the last key that heads share. Blocks (segment, part of it).
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(select_threads, min_blocks)
    count_ties_kernel(Parameters const __grid_constant__ p) {
  __shared__ SelectStorage shared;
  std::int64_t const s = blockIdx.x;
  Segment const segment = p.segment(s);
  SegmentKeys const keys = p.shared_keys(s, segment);
  KeyRank rank;
  if (shared_rank(p, segment.sequence, key_levels, shared, rank) != SharedState::some) return;
  auto const [begin, end] = p.part(keys);
  for (std::int64_t base = begin; base < end; base += select_threads) {
    std::int64_t const token = base + threadIdx.x;
    bool const tie = token < end && keys.key(token) == rank.prefix && keys.left(token, rank.prefix);
    std::int32_t const ties = __syncthreads_count(tie ? 1 : 0);
    if (threadIdx.x == 0 && ties > 0) atomicAdd(&p.ties[s], static_cast<std::uint32_t>(ties));
  }
}

/// Writes what segments keep that share. A block a segment.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(select_threads, min_blocks)
    select_shared_kernel(Parameters const __grid_constant__ p) {
  __shared__ SelectStorage shared;
  std::int64_t const s = blockIdx.x;
  Segment const segment = p.segment(s);
  SegmentKeys const keys = p.shared_keys(s, segment);
  KeyRank rank;
  SharedState const state = shared_rank(p, segment.sequence, key_levels, shared, rank);
  SelectionThreshold threshold;
  if (state == SharedState::all) threshold = SelectionThreshold::all();
  if (state == SharedState::some) {
    // Ties of earlier heads come first.
    std::int64_t const before = selection_head(p.shape.heads, segment);
    std::int64_t mine = 0;
    for (std::int64_t head = threadIdx.x; head < before; head += select_threads) {
      std::int32_t const layer = p.shape.heads.layer_of(head, 1);
      std::int64_t const first = p.shape.heads.first(layer);
      mine += p.ties[first * p.shape.num_sequences + std::int64_t{segment.sequence} * p.shape.heads.count(layer) +
                     head - first];
    }
    std::int64_t scanned = 0;
    std::int64_t earlier = 0;
    __syncthreads();
    SelectStorage::Scan(shared.scan).ExclusiveSum(mine, scanned, earlier);
    std::int64_t const ties = p.ties[s];
    std::int64_t const left = rank.wanted - earlier;
    std::int64_t const taken = left < 0 ? 0 : left < ties ? left : ties;
    threshold = {rank.prefix, 0x7fffffff};
    if (taken > 0) threshold.token = find_tie(keys, rank.prefix, taken, shared);
  }
  p.write(s, keys, SelectionThreshold::weaker(threshold, keys.taken), shared);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
