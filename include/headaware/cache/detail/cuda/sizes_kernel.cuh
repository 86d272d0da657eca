#pragma once

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/segment_scan.cuh>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

template <class Table, class Form>
struct SizesParameters {
  DeviceCompaction<Table> compaction;
  std::int64_t* offsets;  ///< [segments + 1] kept rows before each segment, by which the gather kernel finds its work
  Form form;
};

/// Capacities of all layers.
struct LayerCapacities {
  LayerCapacity layers[max_layers];
};

inline constexpr std::int32_t sizes_threads = 512;

/// Counts and sums up the kept rows of every segment, by one block. Cost: O(segments / 512) rounds.
template <class Table, class Form>
HEADAWARE_KERNEL void __launch_bounds__(sizes_threads, 1)
    sizes_kernel(SizesParameters<Table, Form> const __grid_constant__ p,
                 LayerCapacities const __grid_constant__ capacities) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  LayerHeads const heads = layer_heads(p.compaction.table);
  std::int64_t const segments = p.compaction.num_segments();

  bool bad = false;
  auto const cut = [&](std::int64_t s) {
    Segment segment = segment_at(s, p.compaction.num_sequences, heads);
    std::int64_t const length = p.compaction.d_lengths[segment.sequence];
    if (length < 0 || length > p.compaction.max_length) {
      bad = true;
      return std::int64_t{0};
    }
    count_kept(p.compaction.table, length, segment);
    if constexpr (Form::needs_group) place_in_group(p.compaction.table, segment);
    bool const possible = segment.kept >= 0 && segment.kept <= length;
    if (!possible) segment.kept = 0;
    bad = bad || !possible || segment.kept > p.form.head_capacity(segment, capacities.layers[segment.layer]);
    return segment.kept;
  };
  auto const write = [&](std::int64_t s, std::int64_t before, std::int64_t here) {
    p.offsets[s] = before;
    if (p.compaction.d_kept != nullptr) p.compaction.d_kept[s] = static_cast<std::int32_t>(here);
  };
  std::int64_t const all = scan_segments<sizes_threads>(segments, cut, write);
  if (thread == 0) p.offsets[segments] = all;
  __syncthreads();

  // Layer by layer, now that all offsets stand: does the layer hold its rows, and its cu_seqlens.
  bad = bad || all > p.compaction.max_rows;
  auto const check_entry = [&](std::int64_t layer, std::int64_t first_segment, std::int64_t within, std::int64_t i) {
    std::int64_t const rows = p.offsets[first_segment + within] - p.offsets[first_segment];
    if constexpr (std::is_same_v<Form, RaggedForm>) bad = bad || rows > capacities.layers[layer].rows;
    if (p.compaction.d_cu_seqlens != nullptr) bad = bad || rows > 0x7fffffff;  // more than the offsets can say
    if (p.compaction.d_cu_seqlens != nullptr) p.compaction.d_cu_seqlens[i] = static_cast<std::int32_t>(rows);
  };
  if (heads.first_heads == nullptr) {
    std::int64_t const layer_segments = std::int64_t{p.compaction.num_sequences} * heads.num_kv_heads;
    std::int64_t const entries = layer_segments + 1;
    for (std::int64_t i = thread; i < entries * heads.num_layers; i += sizes_threads) {
      std::int64_t const layer = i / entries;
      check_entry(layer, layer * layer_segments, i % entries, i);
    }
  } else {
    for (std::int64_t layer = 0; layer < heads.num_layers; ++layer) {
      std::int64_t const first = heads.first(layer) * p.compaction.num_sequences;
      std::int64_t const entries = std::int64_t{heads.count(layer)} * p.compaction.num_sequences + 1;
      for (std::int64_t i = thread; i < entries; i += sizes_threads) check_entry(layer, first, i, first + layer + i);
    }
  }
  bad = __syncthreads_or(bad ? 1 : 0) != 0;
  if (thread == 0) {
    if (bad) p.offsets[segments] = 0;  // no rows: nothing moves
    if (p.compaction.d_status != nullptr) *p.compaction.d_status = bad ? 1 : 0;
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
