#pragma once

// What one block does of a selection: counts digits of keys, finds the one in which a rank lies, finds a tie, writes
// tokens in their order.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/score_order.hpp>
#include <headaware/policy/window_rule.hpp>
#include <headaware/score/selection.hpp>

#include <cub/block/block_scan.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int32_t select_threads = block_threads;
/// A key's digits: 11, 11 and 10 bits.
inline constexpr std::int32_t key_levels = 3;
inline constexpr std::int32_t level_bins = 2048;
HEADAWARE_HOST_DEVICE constexpr std::int32_t level_bits(std::int32_t level) { return level < 2 ? 11 : 10; }
/// Bits of a key after the digit of a level.
HEADAWARE_HOST_DEVICE constexpr std::int32_t bits_after(std::int32_t level) {
  return level == 0 ? 21 : level == 1 ? 10 : 0;
}

/// Where the key of a rank lies, as far as some digits tell.
struct KeyRank {
  std::uint32_t prefix = 0;  ///< the digits, the highest first
  std::int64_t wanted = 0;   ///< rank among the keys that begin with them, from 1 on
};

/// Shared memory of a block that selects.
struct SelectStorage {
  using Scan = cub::BlockScan<std::int64_t, select_threads>;
  std::uint32_t bins[level_bins];
  typename Scan::TempStorage scan;
  std::uint32_t digit;
  std::int64_t above;
  std::int32_t token;
};

/// Keys of one segment that are selected from.
struct SegmentKeys {
  float const* scores;
  WindowRange range;
  SelectionThreshold taken{};  ///< what it selects is not among them

  __device__ std::uint32_t key(std::int64_t token) const { return score_key(scores[token]); }
  /// Whether a token beside sinks and window is still there to be selected.
  __device__ bool left(std::int64_t token, std::uint32_t k) const {
    return !taken.selects(k, static_cast<std::int32_t>(token));
  }
};

/// Zeroes a block's bins. Synchronises.
__device__ inline void clear_bins(SelectStorage& shared) {
  __syncthreads();
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < level_bins; i += select_threads) shared.bins[i] = 0;
  __syncthreads();
}

/// Counts a level's digit of the keys that begin with `prefix`, of tokens [begin, end). Synchronises after it.
__device__ inline void count_digits(SegmentKeys const& keys, std::int64_t begin, std::int64_t end, std::int32_t level,
                                    std::uint32_t prefix, SelectStorage& shared) {
  std::int32_t const after = bits_after(level);
  std::int32_t const bits = level_bits(level);
  for (std::int64_t token = begin + threadIdx.x; token < end; token += select_threads) {
    std::uint32_t const key = keys.key(token);
    bool const begins = level == 0 || key >> (after + bits) == prefix;
    if (begins && keys.left(token, key)) atomicAdd(&shared.bins[key >> after & ((1U << bits) - 1)], 1U);
  }
  __syncthreads();
}

/// Finds the digit in which a rank lies, from the highest on, and adds it to the rank's prefix. Synchronises.
/// @param bins  [1 << level_bits(level)] keys of each digit
/// @return false where there are fewer keys than that
__device__ inline bool find_digit(std::uint32_t const* bins, std::int32_t level, SelectStorage& shared, KeyRank& rank) {
  std::int32_t const count = 1 << level_bits(level);
  std::int32_t const each = count / select_threads;
  std::int32_t const first = count - 1 - static_cast<std::int32_t>(threadIdx.x) * each;
  std::int64_t sum = 0;
  for (std::int32_t i = 0; i < each; ++i) sum += bins[first - i];
  std::int64_t before = 0;
  std::int64_t all = 0;
  __syncthreads();
  SelectStorage::Scan(shared.scan).ExclusiveSum(sum, before, all);
  if (before < rank.wanted && rank.wanted <= before + sum) {
    std::int32_t digit = first;
    while (before + bins[digit] < rank.wanted) before += bins[digit--];
    shared.digit = static_cast<std::uint32_t>(digit);
    shared.above = before;
  }
  __syncthreads();
  if (all < rank.wanted) return false;
  rank.prefix = rank.prefix << level_bits(level) | shared.digit;
  rank.wanted -= shared.above;
  return true;
}

/// The `count`-th newest token of a key. Synchronises. @pre count >= 1, and there are as many
__device__ inline std::int32_t find_tie(SegmentKeys const& keys, std::uint32_t key, std::int64_t count,
                                        SelectStorage& shared) {
  std::int64_t found = 0;
  for (std::int64_t end = keys.range.begin; end > keys.range.sinks && found < count; end -= select_threads) {
    std::int64_t const token = end - 1 - static_cast<std::int64_t>(threadIdx.x);
    bool const tie = token >= keys.range.sinks && keys.key(token) == key && keys.left(token, key);
    std::int64_t before = 0;
    std::int64_t all = 0;
    __syncthreads();
    SelectStorage::Scan(shared.scan).ExclusiveSum(std::int64_t{tie ? 1 : 0}, before, all);
    if (tie && found + before + 1 == count) shared.token = static_cast<std::int32_t>(token);
    found += all;
  }
  __syncthreads();
  return shared.token;
}

/// Selects a segment's best `count` tokens. Synchronises. @pre 0 <= count <= tokens beside sinks and window
__device__ inline SelectionThreshold find_threshold(SegmentKeys const& keys, std::int64_t count,
                                                    SelectStorage& shared) {
  if (count == 0) return {};
  if (count == keys.range.begin - keys.range.sinks) return SelectionThreshold::all();
  KeyRank rank{0, count};
  for (std::int32_t level = 0; level < key_levels; ++level) {
    clear_bins(shared);
    count_digits(keys, keys.range.sinks, keys.range.begin, level, rank.prefix, shared);
    (void)find_digit(shared.bins, level, shared, rank);
  }
  return {rank.prefix, find_tie(keys, rank.prefix, rank.wanted, shared)};
}

/// Writes a segment's tokens, ascending. Synchronises. @return how many
__device__ inline std::int64_t write_tokens(SegmentKeys const& keys, SelectionThreshold const& threshold,
                                            std::int32_t* tokens, std::int64_t stride, SelectStorage& shared) {
  constexpr std::int32_t items = 4;  // tokens that a thread looks at between two scans
  WindowRange const& range = keys.range;
  std::int64_t written = 0;
  for (std::int64_t base = 0; base < range.length; base += std::int64_t{items} * select_threads) {
    std::int64_t const first = base + std::int64_t{items} * threadIdx.x;
    std::uint32_t kept = 0;
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < items; ++i) {
      std::int64_t const token = first + i;
      bool keeps = token < range.sinks || (token >= range.begin && token < range.length);
      if (token >= range.sinks && token < range.begin) {
        keeps = threshold.selects(keys.key(token), static_cast<std::int32_t>(token));
      }
      kept |= keeps ? 1U << i : 0U;
    }
    std::int64_t before = 0;
    std::int64_t all = 0;
    __syncthreads();
    SelectStorage::Scan(shared.scan).ExclusiveSum(std::int64_t{__popc(kept)}, before, all);
    std::int64_t at = written + before;
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < items; ++i) {
      if ((kept >> i & 1U) == 0) continue;
      if (at < stride) tokens[at] = static_cast<std::int32_t>(first + i);
      ++at;
    }
    written += all;
  }
  return written < stride ? written : stride;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
