#pragma once

// Attention over rows of 16-bit elements on tensor cores, for decoding: bound by memory, so that what counts is how few
// instructions a row takes and how many rows are under way.
//
// Work. A job is up to 16 query rows of one KV head over all of its rows (of more, mostly: chunk_kernel; of rows of
// more than 256 channels, and of latents: wide_kernel). A block has
// an equal stretch of the tiles of all jobs (`Stretches`, attend_work), so that none waits for a long head; where a
// stretch ends inside a job, parts are joined (mma_join). A tile is 16 rows, and belongs to one warp, which takes every
// fourth of the block's: it copies them into a ring of its own in shared memory, several ahead (mma_fetch), and never
// waits for another warp. Products, per tile. [16 keys, 8 queries] = keys · queries, over channels; weights 2^(logit -
// origin), which transposed are the second product's operand; [channels, 8 queries] += values · weights, in registers.
// Up to 8 query rows cost the same: as one operand has 16 rows, keys and values are that one. Precision. Sums are
// float. A query, and a weight, is the sum of as many 16-bit elements as it takes to hold what its caller has: one
// where queries (output) are of the cache's type, two or three of float (`parts_of`).
//
// Files: mma_parameters (shared memory), mma_queries, mma_fetch (copies), mma_tile (one tile of rows: products),
// mma_weights (between the two products), mma_join. Encoded rows: coded_segment (copies), coded_queries, mma_codes and
// mma_numbers (formats), coded_weights, coded_mma_tile (products), coded_sums. Appends that are under way:
// appended_view, mma_append, coded_append.

#include <headaware/attention/detail/cuda/attend_work.cuh>
#include <headaware/attention/detail/cuda/coded_append.cuh>
#include <headaware/attention/detail/cuda/coded_mma_tile.cuh>
#include <headaware/attention/detail/cuda/coded_queries.cuh>
#include <headaware/attention/detail/cuda/coded_segment.cuh>
#include <headaware/attention/detail/cuda/coded_sums.cuh>
#include <headaware/attention/detail/cuda/mma_append.cuh>
#include <headaware/attention/detail/cuda/mma_fetch.cuh>
#include <headaware/attention/detail/cuda/mma_join.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_queries.cuh>
#include <headaware/attention/detail/cuda/mma_tile.cuh>
#include <headaware/attention/detail/stretches.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Finds where the block's stretch begins. By all threads
template <class P>
__device__ void find_stretch(P const& p, MmaShared<P::queries>& shared) {
  auto const stretches = Stretches::of(count_parts(p, shared.scan) * p.kv.tiles, gridDim.x, P::shortest_stretch(p.kv));
  std::int64_t const at = stretches.begin(blockIdx.x);
  std::int64_t const end = stretches.end(blockIdx.x);
  if (at < end) find_part(p, shared.scan, at / p.kv.tiles);
  if (threadIdx.x == 0) {
    shared.stretches = stretches;
    shared.at = at;
    shared.end = end;
  }
  __syncthreads();
}

/// Takes the next piece of the stretch, by one thread.
template <class P, class Rows>
__device__ void take_piece(P const& p, MmaShared<P::queries>& shared, Rows& rows) {
  MmaJob& job = shared.job;
  if (shared.at >= shared.end) {
    job.end = 0;
    return;
  }
  WorkScan& scan = shared.scan;
  job.sequence = scan.segment / p.shape.num_kv_heads;
  job.kv_head = scan.segment % p.shape.num_kv_heads;
  rows = p.cache.view.head(job.sequence, job.kv_head);
  std::int64_t const tiles = p.kv.splits(rows.rows());  // or units of several
  std::int64_t const before = scan.before * p.kv.tiles;
  std::int64_t const query_tile = (shared.at - before) / tiles;
  std::int64_t const first = before + query_tile * tiles;
  std::int64_t const next = min(shared.end, first + tiles);
  job.first_query = query_tile * P::queries;
  job.query_count = static_cast<std::int32_t>(min(p.shape.query_rows() - job.first_query, std::int64_t{P::queries}));
  job.parts = JobParts::of(shared.stretches, first, first + tiles);
  job.part = blockIdx.x - job.parts.first_block;
  job.begin = static_cast<std::int32_t>(shared.at - first);
  job.end = static_cast<std::int32_t>(next - first);
  shared.mask = mma_mask(p, job);
  shared.at = next;
  if (next == before + tiles * p.kv.tiles) {
    ++scan.segment;
    scan.before += tiles;
  }
}

/// What a kernel over elements, or over encoded rows, works with.
template <class P, class Rows>
using RingOf = std::conditional_t<P::coded, CodedRing<P, Rows>, MmaRing<P, Rows>>;
template <class P>
using SetupOf = std::conditional_t<P::coded, CodedSetup<P>, MmaTileSetup<P>>;
template <class P>
using SumsOf = std::conditional_t<P::coded, CodedSums<P>, MmaSums<P>>;

/// Finds how a piece's rows are encoded, by one thread.
template <class P, class Rows>
__device__ void take_codes(P const& p, MmaJob const& job, Rows const& rows, SegmentCodes& codes) {
  if (job.end == 0) return;
  codes.take(p.cache.segments[job.sequence * p.shape.num_kv_heads + job.kv_head], p.shape.head_dim);
  if (p.cache.rotated_by_caller) codes.key.turned = codes.value.turned = false;
  if constexpr (has_new_rows<Rows>) find_new_rows(p, job, rows, codes);
}

/// Works on a piece of a job. By all threads
template <class P, class Rows>
__device__ void attend_piece(P const& p, MmaShared<P::queries>& shared, Rows const& rows, unsigned char* memory) {
  MmaJob const& job = shared.job;
  MmaMask const& mask = shared.mask;
  auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
  auto const warps = static_cast<std::int32_t>(blockDim.x) / warp_threads;
  std::int32_t const ring_bytes = p.stages * P::stage_bytes;
  unsigned char* const rings = memory + P::query_space;
  unsigned char* const own = rings + warp * ring_bytes;
  std::int64_t const held = rows.rows();
  std::int32_t tile = job.begin + warp;
  // A segment without rows has a tile of none.
  RingOf<P, Rows> ring(p, rows, mask, own, tile, held > 0 ? job.end : job.begin);
  std::uint32_t const stages_end = ring.bytes();
  for (std::uint32_t stage = 0; stage < stages_end; stage += ring.stage_bytes()) ring.fetch(stage);
  sign_join(p, job);
  take_mma_queries(p, shared, rows, job, memory);
  __syncthreads();
  SetupOf<P> const setup(p, shared, rows, memory, own);
  auto last = static_cast<std::int32_t>((held - 1) / mma_rows);
  auto rest = static_cast<std::int32_t>(held - std::int64_t{last} * mma_rows);
  hold(last);
  hold(rest);
  SumsOf<P> sums;
  for (std::uint32_t stage = 0; ring.wait(); tile += warps) {
    if constexpr (has_new_rows<Rows> && !P::coded) take_new_rows(p, job, rows, own + stage);
    add_tile(p, sums, rows, shared, setup, own, stage, tile == last ? rest : mma_rows);
    __syncwarp();
    ring.fetch(stage);
    stage += ring.stage_bytes();
    if (stage == stages_end) stage = 0;
  }
  sums.gather();
  finish_piece(p, shared, job, rows, sums, rings, ring_bytes);
}

/// Grid: as many blocks as the device runs at once, or fewer. Needs compute capability 8.0
template <class P>
HEADAWARE_KERNEL void __launch_bounds__(max_mma_warps* warp_threads, 2)
    mma_kernel(P const __grid_constant__ parameters) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ uint4 mma_memory[];
  __shared__ SharedStorage<MmaShared<P::queries>> storage;
  __shared__ SharedStorage<P> parameter_storage;
  __shared__ SharedStorage<RowsOf<typename P::View>> row_storage;
  __shared__ SharedStorage<std::conditional_t<P::coded, SegmentCodes, char>> code_storage;
  MmaShared<P::queries>& shared = storage.get();
  await_launch_before();
  auto const& p = share_parameters(parameters, parameter_storage);
  find_stretch(p, shared);
  for (;;) {
    if (threadIdx.x == 0) {
      take_piece(p, shared, row_storage.get());
      if constexpr (P::coded) take_codes(p, shared.job, row_storage.get(), code_storage.get());
    }
    __syncthreads();
    if (shared.job.end == 0) break;
    auto* const memory = reinterpret_cast<unsigned char*>(mma_memory);
    if constexpr (P::coded) {
      CodedSegmentRows<P> const rows{row_storage.get(), &code_storage.get()};
      if constexpr (has_new_rows<CodedSegmentRows<P>>) encode_new_rows(p, shared.job, rows);
      attend_piece(p, shared, rows, memory);
    } else {
      if constexpr (has_page_copies<RowsOf<typename P::View>>) {
        if (p.cache.view.layer.num_copies > 0) {
          find_page_copy(p, shared.job, row_storage.get());
          __syncthreads();
        }
      }
      auto const rows = row_storage.get();
      if constexpr (has_page_copies<RowsOf<typename P::View>>) write_unseen_rows(p, shared.job, rows, memory);
      attend_piece(p, shared, rows, memory);
    }
    __syncthreads();
  }
  if constexpr (has_new_rows<RowsOf<typename P::View>>) finish_append(p);
#endif
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
