#pragma once

// New tokens of a cache of encoded rows, encoded on the way.

#include <headaware/cache/detail/cuda/append_kernel.cuh>
#include <headaware/cache/detail/cuda/pack_kernel.cuh>
#include <headaware/cache/pack_plan.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/page_step.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/format/encode_block.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @tparam T  element of the new tokens
template <class T, class CacheRows, class Keys, class Values, class Reg, bool NeedsHighWater>
struct PackedAppendParameters : AppendGrid {
  using Element = T;
  using Registry = Reg;
  static constexpr bool needs_high_water = NeedsHighWater;

  CacheRows cache;  ///< as `AppendParameters::cache`
  AppendCounters counters;
  Keys keys;
  Values values;
  PackedSegment<Registry> const* segments;  ///< of all layers
  RowChannels channels;
  std::int32_t blocks_per_row;  ///< of channels, of any head at most
  bool keys_adjacent;
  bool values_adjacent;
  T const* source_keys[max_layers];  ///< by layer of the new tokens
  T const* source_values[max_layers];
  RowUnit* kept[max_layers];
};

/// Place of a new token's row. In shared memory, so that one thread per row reads the tables.
template <class Registry>
struct PackedAppendRow {
  PackedSegment<Registry> packed;
  std::uint32_t* words;  ///< nullptr: nothing to do
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t token;  ///< of the new ones
  std::int32_t layer;  ///< of the new tokens
};

/// Copies a shared page's first tokens, by a block.
template <class Parameters, class Cache>
__device__ void copy_packed_page(Parameters const& p, Cache const& cache, PageCopy const& copy) {
  constexpr std::int64_t unit_bytes = sizeof(RowUnit);
  std::int64_t const first_segment = cache.layer_heads().first(copy.layer) * p.counters.num_sequences;
  std::int64_t const row_bytes = p.segments[first_segment + copy.kv_head].units * unit_bytes;
  std::int64_t const page_bytes = cache.page_stride * unit_bytes;
  copy_bytes(reinterpret_cast<char*>(p.kept[copy.layer - p.first_layer]), copy.from * page_bytes, copy.to * page_bytes,
             copy.tokens * row_bytes, unit_bytes);
}

/// Each block encodes some rows: a thread has a block of channels at a time, as in packing. The last block to have read
/// the lengths advances them.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(pack_threads) packed_append_kernel(Parameters const __grid_constant__ p) {
  using Registry = typename Parameters::Registry;
  __shared__ SharedStorage<PackedAppendRow<Registry>> rows[pack_threads];
  sign_counters(p.counters);
  std::int64_t const segments = appended_segments(p);
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  if (is_for_copy(p, [&](auto const& cache, PageCopy const& copy) { copy_packed_page(p, cache, copy); })) return;
  if (thread < p.rows_per_block) {
    PackedAppendRow<Registry>& row = rows[thread].get();
    row.words = nullptr;
    with_new_token(p, std::int64_t{blockIdx.x} * p.rows_per_block + thread, segments, [&](auto const& found) {
      row.packed = p.segments[found.segment.index];
      row.sequence = found.segment.sequence;
      row.kv_head = found.segment.kv_head;
      row.token = found.token;
      row.layer = found.segment.layer - p.first_layer;
      row.words = (p.kept[row.layer] + found.rows.offset(found.row, row.packed.units) + row.packed.shift)->words;
    });
  }
  __syncthreads();
  for (std::int32_t i = thread; i < p.rows_per_block * p.blocks_per_row; i += pack_threads) {
    PackedAppendRow<Registry> const& row = rows[i / p.blocks_per_row].get();
    if (row.words == nullptr) continue;
    std::int32_t const index = i % p.blocks_per_row;
    BasicHeadFormats<Registry> const& formats = row.packed.formats;
    std::int32_t const key_blocks = blocks_of(formats.key, p.channels.head_dim);
    std::int32_t const blocks = key_blocks + blocks_of(formats.value, p.channels.value_dim);
    if (index >= blocks) continue;
    if (index < key_blocks) {
      auto const at = [&](std::int64_t c) { return p.keys.offset(row.sequence, row.kv_head, row.token, c); };
      encode_block(formats.key, p.source_keys[row.layer], at, p.keys_adjacent, p.channels.head_dim, index, row.words,
                   StayInPlace{});
    } else {
      auto const at = [&](std::int64_t c) { return p.values.offset(row.sequence, row.kv_head, row.token, c); };
      encode_block(formats.value, p.source_values[row.layer], at, p.values_adjacent, p.channels.value_dim,
                   index - key_blocks, row.words + formats.key_words(p.channels.head_dim), StayInPlace{});
    }
    if (index == blocks - 1) {
      clear_row_end(formats, p.channels.head_dim, p.channels.value_dim, row.packed.units, row.words);
    }
  }
  advance_counters(p.counters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
