#pragma once

// Attention over wide rows of 16-bit elements on tensor cores, for decoding: rows of more than 256 channels, and
// latents, whose values are the first channels of their keys and come once.
//
// Work is divided and joined as in mma_kernel. Sums of 16 query rows over so many channels are too many for a warp, so
// that a block of 8 warps works on one tile of 32 rows (or 16) together, while the next are on their way (wide_fetch):
//   scores   a warp has 16 rows and a quarter of the channels (or an eighth); partial scores go through shared memory
//   weights  a warp has two queries, a lane a row; weights go through shared memory, too
//   sums     [channels, queries], in registers: a warp has 64 channels
// Barriers, per tile: it has arrived, and the one before is dead | partial scores | weights.
//
// Files: wide_parameters (shared memory), wide_fetch (copies), wide_tile (products); mma_queries, mma_tile,
// mma_weights, mma_join.

#include <headaware/attention/detail/cuda/mma_join.cuh>
#include <headaware/attention/detail/cuda/mma_kernel.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_queries.cuh>
#include <headaware/attention/detail/cuda/mma_tile.cuh>
#include <headaware/attention/detail/cuda/wide_fetch.cuh>
#include <headaware/attention/detail/cuda/wide_parameters.cuh>
#include <headaware/attention/detail/cuda/wide_tile.cuh>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Works on a piece of a job. By all threads
template <class P, class Rows>
__device__ void attend_wide_piece(P const& p, MmaShared<P::queries>& shared, Rows const& rows, unsigned char* memory) {
  MmaJob const& job = shared.job;
  std::int32_t const tile_rows = p.tile_rows;
  std::int32_t const unit_tiles = static_cast<std::int32_t>(P::unit_rows) / tile_rows;
  unsigned char* const ring_memory = memory + P::ring_offset(tile_rows);
  auto const stage_bytes = static_cast<std::uint32_t>(P::stage_bytes(tile_rows));
  std::int64_t const held = rows.rows();
  // The last unit may have fewer tiles; a segment without rows has none.
  auto const tiles = static_cast<std::int32_t>((held + tile_rows - 1) / tile_rows);
  std::int32_t tile = job.begin * unit_tiles;
  WideRing<P, Rows> ring(p, rows, shared.mask, ring_memory, tile, min(job.end * unit_tiles, tiles));
  std::uint32_t const last_stage = static_cast<std::uint32_t>(p.stages - 1) * stage_bytes;
  for (std::uint32_t stage = 0; stage < last_stage; stage += stage_bytes) ring.fetch(stage);
  sign_join(p, job);
  take_mma_queries(p, shared, rows, job, memory);
  __syncthreads();
  WideTileSetup<P> const setup(p, memory);
  WideSoftmax<P> softmax(p, shared);
  MmaSums<P> sums;
  std::int32_t last = tiles - 1;
  auto rest = static_cast<std::int32_t>(held - std::int64_t{last} * tile_rows);
  hold(last);
  hold(rest);
  std::uint32_t free = last_stage;
  for (std::uint32_t stage = 0; ring.wait(); ++tile) {
    __syncthreads();
    ring.fetch(free);
    score_wide_tile(setup, stage);
    __syncthreads();
    std::int32_t const count = tile == last ? rest : tile_rows;
    bool const noted = weigh_wide_tile(p, setup, softmax, rows, ring_memory + stage, count);
    bool const any_noted = __syncthreads_or(noted ? 1 : 0) != 0;
    add_wide_tile(sums, setup, stage, memory, any_noted, softmax.masked || count < tile_rows);
    free = stage;
    stage = stage == last_stage ? 0 : stage + stage_bytes;
  }
  softmax.finish(shared);
  __syncthreads();
  // Tiles are dead.
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto* const all = reinterpret_cast<float*>(ring_memory);
  store_sums(p, rows, sums, job.query_count, all + thread / warp_threads * P::channel_tiles * 16);
  if (thread < job.query_count) join_states(p, shared, job, thread, 1);
  __syncthreads();
  finish_sums(p, shared, job, p.shape.output_dim(), [&](std::int32_t q, std::int32_t channel) {
    float4 sum{};
    add_four(sum, shared.factors[0][q], *reinterpret_cast<float4 const*>(all + q * P::sum_pitch + channel));
    return sum;
  });
}

/// Grid: as many blocks as the device runs at once, or fewer. Needs compute capability 8.0
template <class P>
HEADAWARE_KERNEL void __launch_bounds__(P::warps* warp_threads, 1) wide_kernel(P const __grid_constant__ parameters) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ uint4 wide_memory[];
  __shared__ SharedStorage<MmaShared<P::queries>> storage;
  __shared__ SharedStorage<P> parameter_storage;
  __shared__ SharedStorage<RowsOf<typename P::View>> row_storage;
  MmaShared<P::queries>& shared = storage.get();
  await_launch_before();
  auto const& p = share_parameters(parameters, parameter_storage);
  find_stretch(p, shared);
  for (;;) {
    if (threadIdx.x == 0) take_piece(p, shared, row_storage.get());
    __syncthreads();
    if (shared.job.end == 0) return;
    auto const rows = row_storage.get();
    attend_wide_piece(p, shared, rows, reinterpret_cast<unsigned char*>(wide_memory));
    __syncthreads();
  }
#endif
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
