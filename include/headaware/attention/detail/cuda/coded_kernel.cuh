#pragma once

// Attention over encoded rows of one KV split. As `attend_kernel`, but rows come to shared memory as they are, 16 bytes
// at a time, and each is decoded in registers where it is used:
//   scores  a thread has a key, whole, and up to 8 queries at a time
//   sums    a thread has four channels, of every `groups`-th two rows
// A block serves one KV head, so all its threads have one format of keys and one of values. Where keys are rotated, so
// are the queries, before the first tile; the sums of rotated values are turned back before they leave the block.
//
// Files: coded_parameters (shared memory), coded_channels (formats, four channels at a time), coded_tile (one tile).

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_merge.cuh>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_queries.cuh>
#include <headaware/attention/detail/cuda/attend_tile.cuh>
#include <headaware/attention/detail/cuda/attend_work.cuh>
#include <headaware/attention/detail/cuda/coded_parameters.cuh>
#include <headaware/attention/detail/cuda/coded_tile.cuh>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/signed_ticket.cuh>

#include <cstdint>
#include <new>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Takes the block's next split, by one thread. @return false: there is none
template <class Parameters, class Shared>
__device__ bool take_coded_split(Parameters const& p, Shared& shared) {
  shared.place = take_split<false>(p, shared.work);
  if (shared.place.splits == 0) return false;
  auto const& [segment, sequence, kv_head, split, splits, first_split, first_query, count, tile] = shared.place;
  ::new (static_cast<void*>(&shared.rows)) RowsOf<typename Parameters::View>(p.cache.view.head(sequence, kv_head));
  shared.packed = p.cache.segments[segment];
  std::int64_t const held = shared.rows.rows();
  shared.keys = CodedTensor::of(shared.packed.formats.key, p.shape.head_dim, p.cache.rotated_by_caller);
  shared.values = CodedTensor::of(shared.packed.formats.value, p.shape.output_dim(), p.cache.rotated_by_caller);
  shared.begin = split * p.kv.split_rows;
  shared.end = min(held, shared.begin + p.kv.split_rows);
  std::int64_t const position = p.first_positions != nullptr ? p.first_positions[sequence] : 0;
  shared.first_position = position;
  shared.last_position = position + (first_query + count - 1) / p.shape.group();
  return true;
}

/// Works on a KV split. By all threads
template <int Queries, class Parameters, class Shared>
__device__ void attend_coded_split(Parameters const& p, Shared& shared, unsigned char* memory) {
  using View = typename Parameters::View;
  using Registry = typename Parameters::Registry;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto* const queries = reinterpret_cast<float*>(memory);
  auto* const scores = reinterpret_cast<float*>(memory + p.memory.score_offset);
  unsigned char* const rows = memory + p.memory.row_offset;
  if (thread == 0 && shared.place.splits > 1) sign_ticket(split_ticket(p, shared.place), p.arrays.signature);
  take_queries<Queries>(p, shared.softmaxes, shared.place, queries);
  if (shared.keys.rotated != 0) rotate_shared(queries, Queries * p.memory.query_pitch, shared.keys.rotated);
  auto const pitch = static_cast<std::int32_t>(CodedRowSizes<Registry>::pitch(shared.packed.units));
  std::int32_t const room = p.memory.tile_rows(pitch);
  std::int32_t const columns = (shared.values.channels + wide_width - 1) / wide_width;
  std::int32_t const groups = attend_threads / columns;
  std::int32_t const column = thread % columns;
  std::int32_t const group = thread / columns;
  float sums[Queries][wide_width] = {};
  for (std::int64_t first = shared.begin; first < shared.end; first += room) {
    CodedTile const tile{rows, pitch, static_cast<std::int32_t>(min(std::int64_t{room}, shared.end - first)), room};
    bool seen = p.first_positions == nullptr;
    if (thread < tile.count) {
      shared.offsets[thread] = shared.rows.offset(first + thread, shared.packed.units) + shared.packed.shift;
      if constexpr (has_positions<View>) {
        if (p.first_positions != nullptr) {
          shared.positions[thread] = shared.rows.position(first + thread);
          std::int64_t const first_position = shared.first_position + shared.place.first_query / p.shape.group();
          seen = is_seen_by_any(shared.rows, shared.positions[thread], first_position, shared.last_position, p.window);
        }
      }
    }
    if (__syncthreads_or(seen ? 1 : 0) == 0) continue;
    copy_to_shared<attend_threads, uint4>(p.cache.rows, shared.offsets, tile.count, shared.packed.units, rows, pitch);
    __syncthreads();
    shared.packed.formats.key.visit([&]<class Format>(Format const& format) {
      score_codes<Queries>(format, shared.keys, tile, queries, p.memory.query_pitch, scores);
    });
    __syncthreads();
    weigh_tile<Queries, max_coded_rows>(p, shared.softmaxes, shared.positions, shared.rows, shared.place.first_query,
                                        shared.first_position, tile.count, room, scores);
    __syncthreads();
    if (group < groups) {
      shared.packed.formats.value.visit([&]<class Format>(Format const& format) {
        add_codes(format, shared.values, shared.keys.words, tile, p.first_positions != nullptr, shared.softmaxes.factor,
                  scores, column, group, groups, sums);
      });
    }
    __syncthreads();
  }

  // Scores and rows are dead; reuse them for the groups' sums, [groups, Queries, columns · 4].
  float* const all = scores;
  std::int32_t const width = columns * wide_width;
  if (group < groups) {
#pragma unroll
    for (int q = 0; q < Queries; ++q) {
      reinterpret_cast<float4*>(all)[(group * Queries + q) * columns + column] = {sums[q][0], sums[q][1], sums[q][2],
                                                                                  sums[q][3]};
    }
  }
  __syncthreads();
  for (std::int32_t i = thread; i < Queries * width; i += attend_threads) {
    for (std::int32_t g = 1; g < groups; ++g) all[i] += all[g * Queries * width + i];
  }
  if (shared.values.rotated != 0) rotate_shared(all, Queries * width, shared.values.rotated);
  __syncthreads();
  finish_split<Queries>(p, shared.softmaxes, shared.place, all,
                        [&](std::int32_t q, std::int32_t c) { return all[q * width + c]; });
}

/// Grid: x blocks that share all KV splits, y tiles of query rows.
template <int Queries, class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(attend_threads, Queries > 4 ? 2 : 3)
    coded_kernel(Parameters const __grid_constant__ parameters) {
  using Shared = CodedShared<Queries, typename Parameters::Registry, typename Parameters::View>;
  extern __shared__ float4 attend_memory[];
  __shared__ SharedStorage<Shared> storage;
  __shared__ SharedStorage<Parameters> parameter_storage;
  Shared& shared = storage.get();
  await_launch_before();
  auto const& p = share_parameters(parameters, parameter_storage);
  find_splits<false>(p, shared.work);
  for (;;) {
    bool const has = threadIdx.x == 0 && take_coded_split(p, shared);
    if (__syncthreads_or(has ? 1 : 0) == 0) return;
    attend_coded_split<Queries>(p, shared, reinterpret_cast<unsigned char*>(attend_memory));
    __syncthreads();
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
