#pragma once

// Attention over the rows of one KV split, for decoding, on plain float units: rows of floats, and what `mma_kernel`
// and `wide_kernel` do not take.
//
// Tiles. A block has 128 threads, up to 16 query rows of one KV head (`Queries`), and one KV split at a time. Per step
// it loads `AttendMemory::tile_rows` cache rows, up to 64; each row comes from memory once for all of the block's
// queries.
//   scores   [Queries, tile_rows]: a thread has a key and up to 4 queries at a time
//   weights  in place: a warp has a query at a time, a lane every 32nd key
//   sums     [Queries, width] in registers: a thread has two channels, and in narrow heads every `groups`-th four rows
// Wide rows. Of more than 256 channels a thread has four, of up to 8 query rows.
// Latents. The tile of keys is the tile of values, too, and a thread has four channels. A block has up to 32 query
// rows, and 128 threads for the sums of each 16; blocks of the same rows, for other query rows, follow each other in
// the grid: all but the first find the rows in the L2 cache. Formula. Per query the online softmax (max, sum) of
// `OnlineSoftmax`; `factor` rescales the sums when max changes. Splits write (max, sum) and sums; the last block of a
// segment's tile merges them in order (Flash-Decoding). Barriers, per tile of rows: offsets are there | rows have
// arrived | scores | weights and factors | values are dead.
//
// Files: attend_parameters (shared memory, temporary storage), attend_work (which splits a block has), attend_queries,
// attend_tile (one tile of rows), attend_merge (results, the last block's merge).

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_merge.cuh>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_queries.cuh>
#include <headaware/attention/detail/cuda/attend_tile.cuh>
#include <headaware/attention/detail/cuda/attend_work.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/signed_ticket.cuh>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Works on a KV split. By all threads
template <int Queries, class Parameters>
__device__ void attend_split(Parameters const& p, AttendShared<Queries>& shared, unsigned char* memory) {
  using T = typename Parameters::Element;
  using View = typename Parameters::View;
  constexpr int width = Parameters::width;
  constexpr int threads = attend_block_threads<Queries, Parameters>;
  constexpr int thread_queries = Queries > Parameters::thread_queries ? Parameters::thread_queries : Queries;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto* const queries = reinterpret_cast<float*>(memory);
  auto* const scores = reinterpret_cast<float*>(memory + p.memory.score_offset);
  unsigned char* const keys = memory + p.memory.key_offset;
  unsigned char* const values = memory + p.memory.value_offset;
  // Channels beyond a row's end are zeros in keys and queries, and no row's load touches them.
  for (std::int32_t i = thread; i < (p.memory.bytes - p.memory.key_offset) / 4; i += threads) {
    reinterpret_cast<std::uint32_t*>(keys)[i] = 0;
  }
  __syncthreads();
  AttendPlace const& place = shared.place;
  auto const segment = p.cache.view.head(place.sequence, place.kv_head);
  std::int64_t const held = segment.rows();
  std::int64_t const begin = place.split * p.kv.split_rows;
  std::int64_t const end = min(held, begin + p.kv.split_rows);
  std::int64_t const first_position = p.first_positions != nullptr ? p.first_positions[place.sequence] : 0;
  std::int64_t const last_position = first_position + (place.first_query + place.query_count - 1) / p.shape.group();
  if (thread == 0 && place.splits > 1) sign_ticket(split_ticket(p, place), p.arrays.signature);
  take_queries<Queries>(p, shared.softmaxes, place, queries);
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  std::int32_t const columns = (channels + width - 1) / width;
  std::int32_t const groups = attend_threads / columns;
  std::int32_t const own = threads == attend_threads ? thread : thread % attend_threads;
  std::int32_t const own_query = threads == attend_threads ? 0 : thread / attend_threads * thread_queries;
  std::int32_t const column = own % columns;
  std::int32_t const group = own / columns;
  float sums[thread_queries][width] = {};
  for (std::int64_t first = begin; first < end; first += p.memory.tile_rows) {
    auto const rows = static_cast<std::int32_t>(min(std::int64_t{p.memory.tile_rows}, end - first));
    bool seen = p.first_positions == nullptr;
    if (thread < rows) {
      shared.key_offsets[thread] = segment.offset(first + thread, p.shape.head_dim);
      if constexpr (!Parameters::latent) shared.value_offsets[thread] = segment.offset(first + thread, channels);
      if constexpr (has_positions<View>) {
        if (p.first_positions != nullptr) {
          shared.positions[thread] = segment.position(first + thread);
          seen = is_seen_by_any(segment, shared.positions[thread], first_position + place.first_query / p.shape.group(),
                                last_position, p.window);
        }
      }
    }
    if (__syncthreads_or(seen ? 1 : 0) == 0) continue;
    load_rows<threads>(p.cache.keys, shared.key_offsets, rows, static_cast<std::int32_t>(p.shape.head_dim), p.wide_keys,
                       keys, p.memory.key_pitch);
    if constexpr (!Parameters::latent) {
      load_rows<threads>(p.cache.values, shared.value_offsets, rows, channels, p.wide_values, values,
                         p.memory.value_pitch);
    }
    clear_rows<threads>(rows, values, p.memory.value_pitch);
    __syncthreads();
    score_tile<Queries, T>(p, queries, keys, scores);
    __syncthreads();
    weigh_tile<Queries, max_attend_rows>(p, shared.softmaxes, shared.positions, segment, place.first_query,
                                         first_position, rows, p.memory.tile_rows, scores);
    __syncthreads();
    if (group < groups) {
      add_values<T>(p, shared.softmaxes.factor + own_query, column, group, groups, rows, values,
                    scores + own_query * p.memory.tile_rows, sums);
    }
    __syncthreads();
  }

  // The key and value tiles are dead; reuse them for the groups' sums, [groups, Queries, width · columns].
  auto* const all = reinterpret_cast<float*>(Parameters::latent ? memory : keys);
  __syncthreads();
  if (group < groups) {
#pragma unroll
    for (int q = 0; q < thread_queries; ++q) {
#pragma unroll
      for (int i = 0; i < width; ++i)
        all[((group * Queries + own_query + q) * columns + column) * width + i] = sums[q][i];
    }
  }
  __syncthreads();
  finish_split<Queries>(p, shared.softmaxes, place, all, [&](std::int32_t q, std::int32_t c) {
    float sum = 0;
    for (std::int32_t g = 0; g < groups; ++g) sum += all[(g * Queries + q) * width * columns + c];
    return sum;
  });
}

/// Grid: x blocks that share all KV splits, y tiles of query rows; latents: x blocks that share both.
template <int Queries, class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(attend_block_threads<Queries, Parameters>, attend_blocks<Queries, Parameters>)
    attend_kernel(Parameters const __grid_constant__ parameters) {
  extern __shared__ float4 attend_memory[];
  __shared__ SharedStorage<AttendShared<Queries>> storage;
  __shared__ SharedStorage<Parameters> parameter_storage;
  AttendShared<Queries>& shared = storage.get();
  await_launch_before();
  auto const& p = share_parameters(parameters, parameter_storage);
  find_splits<Parameters::latent>(p, shared.work);
  for (;;) {
    if (threadIdx.x == 0) shared.place = take_split<Parameters::latent>(p, shared.work);
    __syncthreads();
    if (shared.place.splits == 0) return;
    attend_split<Queries>(p, shared, reinterpret_cast<unsigned char*>(attend_memory));
    __syncthreads();
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
