#pragma once

// Attention over rows of 16-bit elements on tensor cores for many query rows of a KV head, of prefill chunks and
// drafts: bound by products, so that what counts is how few instructions lie beside them.
//
// Work. A job is 64 query rows of one KV head, 16 of each warp, over all of its rows. Blocks share all jobs' rows out
// in equal stretches and join parts as the kernel for decoding does (mma_kernel), in units of 64 rows. A tile is 16
// rows, which one warp copies and all warps work on: two tiles at a time, of warps 0 and 1, then of 2 and 3, whose
// owners meanwhile look for the next rows that a query of the job sees (chunk_fetch), so that rows which none sees are
// neither read nor worked on. Each tile says whether all its rows are there and seen by all queries: else, and only
// then, what each query sees is looked at (chunk_tile). [16 queries, 32 keys] = queries, in registers, · keys;
// weights 2^(logit - origin), in registers the operand of [16 queries, channels] += weights · values. The origin
// follows the largest logit only where weights would not fit 16 bits (`MmaSums`). Queries are of no more precision than
// rows; a weight is the sum of as many elements as it takes to hold what the output has (`parts_of`).

#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/chunk_fetch.cuh>
#include <headaware/attention/detail/cuda/chunk_join.cuh>
#include <headaware/attention/detail/cuda/chunk_parameters.cuh>
#include <headaware/attention/detail/cuda/chunk_tile.cuh>
#include <headaware/attention/detail/cuda/mma_append.cuh>
#include <headaware/attention/detail/cuda/mma_kernel.cuh>
#include <headaware/attention/detail/cuda/mma_queries.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/global_pointer.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Reads a job's queries into shared memory, each warp its own 16. @param to  shared, as of `take_mma_queries`
template <class P, class Rows>
__device__ void take_chunk_queries(P const& p, ChunkShared<P>& both, Rows const& rows, MmaJob const& job,
                                   unsigned char* to) {
  MmaShared<P::queries>& shared = both.mma;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const first = static_cast<std::int32_t>(threadIdx.x) / warp_threads * 16;
  // The lane's query, and after the last query the last; of the upper lanes the lower ones'.
  std::int32_t const own = first + lane % 16;
  QueryRow const query(p.shape, job.sequence, job.kv_head, job.first_query + min(own, job.query_count - 1));
  if (p.output_rows) both.output_places[own] = p.output.layout.offset(job.sequence, query.head, query.token, 0);
  if constexpr (std::is_same_v<typename P::Query, typename P::Element> && !rotates_rows<typename P::View>) {
    if (p.query_rows) {
      shared.heads[own] = query.head;
      shared.tokens[own] = query.token;
      shared.scales[own] = p.map.factor();
      std::int64_t const place = p.queries_in.layout.offset(job.sequence, query.head, query.token, 0);
      std::int32_t const channel = lane % P::row_lanes * 8;
      uint4 pieces[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        std::int32_t const row = 2 * i + lane / P::row_lanes;
        std::int64_t const at = __shfl_sync(~0U, place, row);
        pieces[i] = {};
        if (first + row < job.query_count && channel < p.shape.head_dim) {
          pieces[i] = *reinterpret_cast<uint4 const*>(global_pointer(p.queries_in.data) + at + channel);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        std::int32_t const row = first + 2 * i + lane / P::row_lanes;
        *reinterpret_cast<uint4*>(to + row * P::pitch + channel * 2) = pieces[i];
      }
      return;
    }
  }
  take_mma_queries(p, shared, rows, job, to);
}

/// Works on a piece of a job. By all threads @param rings  shared, the warps' tiles
template <class P, class Rows>
__device__ void attend_chunk(P const& p, ChunkShared<P>& both, Rows const& rows, unsigned char* rings) {
  MmaShared<P::queries>& shared = both.mma;
  MmaJob const& job = shared.job;
  auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
  std::int32_t const pair = warp / chunk_slots;
  unsigned char* const own = rings + warp * P::stage_bytes;
  std::int64_t const held = rows.rows();
  auto const tiles = static_cast<std::int32_t>((held + mma_rows - 1) / mma_rows);
  ChunkRing<P, Rows> ring(p, rows, shared.mask, own, job.begin * P::unit_tiles + warp,
                          min(tiles, job.end * P::unit_tiles));
  if (pair == 0) ring.fetch(both.slots[warp]);
  sign_join(p, job);
  // The queries pass through where the other warps' first tiles go.
  unsigned char* const queries = rings + chunk_slots * P::stage_bytes;
  take_chunk_queries(p, both, rows, job, queries);
  __syncthreads();
  ChunkSetup<P> const setup(p, shared, queries, rings);
  __syncthreads();
  if (pair != 0) ring.fetch(both.slots[warp]);
  clear_channels_after_keys(p, rings);
  ChunkOutputs<P> sums;
  bool const has_queries = warp * 16 < job.query_count;
  bool more = true;
  for (std::int32_t step = 0;; ++step) {
    std::int32_t const current = step % 2;
    if (pair == current && ring.wait()) {
      if constexpr (has_new_rows<Rows>) take_new_rows(p, job, rows, own);
    }
    __syncthreads();
    std::int32_t const first = current * chunk_slots;
    std::int32_t const slots[chunk_slots] = {both.slots[first], both.slots[first + 1]};
    bool const any = (slots[0] | slots[1]) != none_held;
    if (!any && !more) break;  // a warp that finds no tile finds none later
    more = any;
    if (pair != current && step > 0) ring.fetch(both.slots[warp]);
    if (any && has_queries) add_slots(sums, shared, setup, rings, first, slots);
  }
  finish_chunk(p, both, job, sums, rings);
}

/// Grid: as many blocks as the device runs at once, or fewer. Needs compute capability 8.0
template <class P>
HEADAWARE_KERNEL void __launch_bounds__(max_mma_warps* warp_threads, chunk_blocks)
    chunk_kernel(P const __grid_constant__ parameters) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ uint4 mma_memory[];
  __shared__ SharedStorage<ChunkShared<P>> storage;
  __shared__ SharedStorage<P> parameter_storage;
  __shared__ SharedStorage<RowsOf<typename P::View>> row_storage;
  ChunkShared<P>& shared = storage.get();
  await_launch_before();
  auto const& p = share_parameters(parameters, parameter_storage);
  find_stretch(p, shared.mma);
  for (;;) {
    if (threadIdx.x == 0) take_piece(p, shared.mma, row_storage.get());
    __syncthreads();
    if (shared.mma.job.end == 0) break;
    auto const rows = row_storage.get();
    attend_chunk(p, shared, rows, reinterpret_cast<unsigned char*>(mma_memory));
    __syncthreads();
  }
  if constexpr (has_new_rows<RowsOf<typename P::View>>) finish_append(p);
#endif
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
