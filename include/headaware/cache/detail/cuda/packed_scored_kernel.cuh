#pragma once

// New tokens of heads with scored slots in a cache of encoded rows: encoded on the way, or moved as they are.

#include <headaware/cache/detail/cuda/packed_append_kernel.cuh>
#include <headaware/cache/detail/cuda/scored_kernel.cuh>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/kernel.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @tparam Append  `PackedAppendParameters`
template <class Append>
struct PackedScoredParameters : Append {
  ScoredInputs inputs;
};

/// Writes rows of a head. A thread has a block of channels of a new token at a time, or a unit of a row that moves.
template <class Parameters, class Head>
__device__ void write_packed_rows(Parameters const& p, Segment const& at, HeadRows<Head> const& of) {
  using Registry = typename Parameters::Registry;
  PackedSegment<Registry> const& packed = p.segments[at.index];
  BasicHeadFormats<Registry> const& formats = packed.formats;
  std::int32_t const layer = at.layer - p.first_layer;
  RowUnit* const rows = p.kept[layer] + packed.shift;
  std::int32_t const key_blocks = blocks_of(formats.key, p.channels.head_dim);
  std::int32_t const blocks = key_blocks + blocks_of(formats.value, p.channels.value_dim);
  std::int32_t const per_row = max(blocks, packed.units);
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < of.count() * per_row; i += scored_threads) {
    RowMove const move = of(i / per_row, packed.units);
    std::int32_t const index = i % per_row;
    RowUnit* const to = rows + move.to;
    if (move.token < 0) {
      if (index < packed.units) {
        reinterpret_cast<uint4*>(to)[index] = reinterpret_cast<uint4 const*>(rows + move.from)[index];
      }
      continue;
    }
    if (index >= blocks) continue;
    if (index < key_blocks) {
      auto const key = [&](std::int64_t c) { return p.keys.offset(at.sequence, at.kv_head, move.token, c); };
      encode_block(formats.key, p.source_keys[layer], key, p.keys_adjacent, p.channels.head_dim, index, to->words,
                   StayInPlace{});
    } else {
      auto const value = [&](std::int64_t c) { return p.values.offset(at.sequence, at.kv_head, move.token, c); };
      encode_block(formats.value, p.source_values[layer], value, p.values_adjacent, p.channels.value_dim,
                   index - key_blocks, to->words + formats.key_words(p.channels.head_dim), StayInPlace{});
    }
    if (index == blocks - 1) {
      clear_row_end(formats, p.channels.head_dim, p.channels.value_dim, packed.units, to->words);
    }
  }
}

/// Grid: x heads of sequences of the appended layers, then copies on write.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(scored_threads) packed_scored_kernel(Parameters const __grid_constant__ p) {
  __shared__ SharedStorage<ScoredPlaceOf<Parameters>> place;
  sign_counters(p.counters);
  if (is_for_copy(p, [&](auto const& cache, PageCopy const& copy) { copy_packed_page(p, cache, copy); })) return;
  append_to_head(
      p, place.get(), [](std::int32_t) {},
      [&](Segment const& at, auto const& rows) { write_packed_rows(p, at, rows); });
  advance_counters(p.counters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
