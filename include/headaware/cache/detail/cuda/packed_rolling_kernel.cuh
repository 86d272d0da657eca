#pragma once

// Copies of sequences of a rolling cache of encoded rows.

#include <headaware/cache/detail/cuda/rolling_kernels.cuh>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/vector_access.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

template <class Reg>
struct PackedCopyParameters {
  using Registry = Reg;

  RollingSlotsView slots;
  RollingStateView state;
  PackedSegment<Registry> const* segments;  ///< of all layers
  std::int32_t num_copies;
  std::int32_t blocks_per_head;
  RollingScoresView scores;  ///< of slots with scored ones
  SequenceCopy copies[max_copies];
  RowUnit* rows[max_layers];
};

/// Grid: x parts of heads of layers of copies. Each block copies some of the rows that a head holds.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(block_threads, min_blocks)
    packed_copy_kernel(Parameters const __grid_constant__ p) {
  std::int64_t const head_index = blockIdx.x / static_cast<unsigned>(p.blocks_per_head);
  std::int64_t const part = blockIdx.x % static_cast<unsigned>(p.blocks_per_head);
  std::int64_t const of_model = head_index % p.slots.num_heads;
  LayerHeads const heads = p.slots.layer_heads();
  std::int32_t const layer = heads.layer_of(of_model, 1);
  std::int64_t const first = heads.first(layer);
  SequenceCopy const copy = p.copies[head_index / p.slots.num_heads];
  RollingHead const& head = p.slots.heads[of_model];
  copy_scores(p.scores, head, of_model, copy, part);
  auto const packed_of = [&](std::int32_t sequence) -> PackedSegment<typename Parameters::Registry> const& {
    std::int64_t const in_layer = sequence * heads.count(layer) + (of_model - first);
    return p.segments[first * p.slots.num_sequences + in_layer];
  };
  constexpr std::int64_t unit_bytes = sizeof(RowUnit);
  std::int64_t const row_bytes = packed_of(copy.from).units * unit_bytes;
  std::int64_t const from = packed_of(copy.from).shift * unit_bytes;
  std::int64_t const to = packed_of(copy.to).shift * unit_bytes;
  auto const copy_part = [&](std::int64_t low, std::int64_t count) {
    copy_bytes(reinterpret_cast<char*>(p.rows[layer]), head.row(copy.from, low) * row_bytes + from,
               head.row(copy.to, low) * row_bytes + to, count * row_bytes, unit_bytes);
  };
  for_each_run_part(head, p.state.lengths[copy.from], p.state.high_water[copy.from], part, copy_part);
  copy_counters(p.state, p.copies, p.num_copies);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
