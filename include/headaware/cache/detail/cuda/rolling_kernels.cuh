#pragma once

#include <headaware/cache/detail/cuda/append_kernel.cuh>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/last_block.cuh>
#include <headaware/detail/cuda/vector_access.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Change of a sequence's counters.
enum class StateChange : std::int32_t { advance, rollback, start };

struct StateParameters {
  RollingSlotsView slots;
  RollingStateView state;
  std::int32_t const* values;  ///< [num_sequences] tokens; start: lengths, negative: leave the sequence alone
  StateChange change;
};

/// Changes the counters of all sequences. (A template, so that several sources may include it.)
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(block_threads, min_blocks) state_kernel(Parameters const __grid_constant__ p) {
  for (auto b = static_cast<std::int32_t>(blockIdx.x * block_threads + threadIdx.x); b < p.slots.num_sequences;
       b += static_cast<std::int32_t>(gridDim.x) * block_threads) {
    std::int64_t const length = p.state.lengths[b];
    std::int64_t const high_water = p.state.high_water[b];
    std::int64_t const value = p.values[b];
    bool good = value >= 0;
    if (p.change == StateChange::rollback) {
      good = good && value <= p.slots.max_rollback(length, high_water);
      if (good) p.state.lengths[b] = static_cast<std::int32_t>(length - value);
    } else if (p.change == StateChange::advance) {
      good = good && length + value <= p.slots.token_limit;
      if (good) {
        p.state.lengths[b] = static_cast<std::int32_t>(length + value);
        p.state.high_water[b] = static_cast<std::int32_t>(max(high_water, length + value));
      }
    } else if (good) {
      good = value <= p.slots.token_limit && (value == 0 || p.slots.max_scored == 0);
      if (good) {
        p.state.lengths[b] = static_cast<std::int32_t>(value);
        p.state.high_water[b] =
            static_cast<std::int32_t>(min(p.slots.high_water_at_start(value), static_cast<std::int64_t>(all_tokens)));
      }
    } else {
      good = true;
    }
    if (!good) *p.state.status = 1;
  }
}

/// Copies that one launch takes, as kernel parameters.
inline constexpr std::int32_t max_copies = 256;

struct CopyPlane {
  std::int32_t element_bytes;
  std::int32_t vector_bytes;
};

struct CopyParameters {
  RollingSlotsView slots;
  RollingStateView state;
  CopyPlane planes[2];
  std::int32_t num_copies;
  std::int32_t blocks_per_head;
  RollingScoresView scores;  ///< of slots with scored ones
};

struct CopyTables {
  SequenceCopy copies[max_copies];
  void* data[2][max_layers];
  std::int32_t channels[2][max_layers];
};

inline constexpr std::int32_t copy_rows_per_block = 64;

/// Calls `f(first slot, slots)` with a block's part of what a head's slots hold of a sequence.
template <class F>
__device__ void for_each_run_part(RollingHead const& head, std::int64_t length, std::int64_t high_water,
                                  std::int64_t part, F const& f) {
  SlotRuns const runs = head.runs(head.held(length, high_water));
  std::int64_t const begin = part * copy_rows_per_block;
  std::int64_t const end = begin + copy_rows_per_block;
  auto const each = [&](std::int64_t first, std::int64_t count) {
    std::int64_t const low = max(first, begin);
    std::int64_t const high = min(first + count, end);
    if (low < high) f(low, high - low);
  };
  each(0, runs.sinks);
  each(runs.first, runs.count);
  each(runs.wrapped_first, runs.wrapped);
  if (head.scored != 0) each(head.ring_end(), head.scored_used(length));
}

/// Copies a head's scores and records of scored slots, by the block of its first part. @param index  of the head
__device__ inline void copy_scores(RollingScoresView const& scores, RollingHead const& head, std::int64_t index,
                                   SequenceCopy const& copy, std::int64_t part) {
  if (head.scored == 0 || part != 0) return;
  auto const* const from = reinterpret_cast<uint4 const*>(scores.memory + scores.first_unit(index, copy.from));
  auto* const to = reinterpret_cast<uint4*>(scores.memory + scores.first_unit(index, copy.to));
  for (std::int64_t i = threadIdx.x; i < RollingScoresView::units(head); i += blockDim.x) to[i] = from[i];
}

/// Gives sequences the counters of those that they continue, by the last block to have read them.
__device__ inline void copy_counters(RollingStateView const& state, SequenceCopy const* copies, std::int32_t count) {
  if (!is_last_block(state.ticket, gridDim.x)) return;
  if (threadIdx.x == 0) *state.ticket = 0;
  // No sequence is copied from and to, so the order does not matter.
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count; i += block_threads) {
    SequenceCopy const each = copies[i];
    state.lengths[each.to] = state.lengths[each.from];
    state.high_water[each.to] = state.high_water[each.from];
  }
}

/// Grid: x parts of heads of layers of copies. Each block copies some of the rows that a head holds.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(block_threads, min_blocks)
    copy_sequences_kernel(Parameters const __grid_constant__ p, CopyTables const __grid_constant__ tables) {
  std::int64_t const head_index = blockIdx.x / static_cast<unsigned>(p.blocks_per_head);
  std::int64_t const part = blockIdx.x % static_cast<unsigned>(p.blocks_per_head);
  std::int64_t const of_model = head_index % p.slots.num_heads;
  std::int32_t const layer = p.slots.layer_heads().layer_of(of_model, 1);
  SequenceCopy const copy = tables.copies[head_index / p.slots.num_heads];
  RollingHead const& head = p.slots.heads[of_model];
  copy_scores(p.scores, head, of_model, copy, part);
  auto const copy_part = [&](std::int64_t low, std::int64_t count) {
    for (std::int32_t i = 0; i < 2; ++i) {
      if (tables.channels[i][layer] == 0) continue;
      auto* const data = static_cast<char*>(tables.data[i][layer]);
      std::int64_t const from = head.row(copy.from, low);
      std::int64_t const to = head.row(copy.to, low);
      std::int64_t const row_bytes = std::int64_t{tables.channels[i][layer]} * p.planes[i].element_bytes;
      copy_bytes(data, from * row_bytes, to * row_bytes, count * row_bytes, p.planes[i].vector_bytes);
    }
  };
  for_each_run_part(head, p.state.lengths[copy.from], p.state.high_water[copy.from], part, copy_part);
  copy_counters(p.state, tables.copies, p.num_copies);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
