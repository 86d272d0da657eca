#pragma once

// The work of a call on one line: the parts (KV splits, or tiles of rows) of all segments, one segment after the other.
// Every block adds it up by itself and finds where its own begins, so that no launch has to come before.

#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/detail/stretches.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @pre  fewer than 2^31 segments
template <class P>
__device__ std::int64_t rows_of_segment(P const& p, std::int64_t segment) {
  auto const heads = static_cast<std::uint32_t>(p.shape.num_kv_heads);
  auto const s = static_cast<std::uint32_t>(segment);
  return p.cache.view.head(s / heads, s % heads).rows();
}

/// The segments that one warp of a block adds up.
struct WarpSegments {
  std::int64_t begin;
  std::int64_t end;

  static __device__ WarpSegments of(std::int64_t segments) {
    auto const warp = static_cast<std::int64_t>(threadIdx.x / warp_threads);
    auto const warps = static_cast<std::int64_t>(blockDim.x / warp_threads);
    std::int64_t const share = (segments + warps - 1) / warps;
    return {min(segments, warp * share), min(segments, (warp + 1) * share)};
  }
};

/// @brief Adds up the parts of all segments, by all threads. Synchronises the block. Cost: O(segments / threads) rounds
/// @return the parts; none where segments hold fewer rows than none, or more than the call's bounds allow, which
///         `d_status` learns
template <class P>
__device__ std::int64_t count_parts(P const& p, WorkScan& scan) {
  auto const lane = static_cast<std::int64_t>(threadIdx.x % warp_threads);
  auto const own = WarpSegments::of(p.shape.segments());
  std::int64_t const most = p.bounds.max_rows;
  std::int64_t rows = 0;
  std::int64_t parts = 0;
  bool bad = false;
#pragma unroll 4
  for (std::int64_t s = own.begin + lane; s < own.end; s += warp_threads) {
    std::int64_t const held = rows_of_segment(p, s);
    bool const possible = held >= 0 && held <= most;
    bad = bad || !possible;
    rows += possible ? held : 0;
    parts += p.kv.splits(possible ? held : 0);
  }
  rows = sum_lanes(rows);
  parts = sum_lanes(parts);
  if (lane == 0) {
    scan.rows[threadIdx.x / warp_threads] = rows;
    scan.parts[threadIdx.x / warp_threads] = parts;
  }
  bad = __syncthreads_or(bad ? 1 : 0) != 0;
  rows = 0;
  parts = 0;
  for (std::uint32_t w = 0; w < blockDim.x / warp_threads; ++w) {
    rows += scan.rows[w];
    parts += scan.parts[w];
  }
  bad = bad || rows > most;
  if (p.bounds.d_status != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    *p.bounds.d_status = bad ? 1 : 0;
  }
  return bad ? 0 : parts;
}

/// Finds the segment that has part `part` of all, by the warp whose segment it is; the caller synchronises.
/// @pre 0 <= part < count_parts(p, scan)
template <class P>
__device__ void find_part(P const& p, WorkScan& scan, std::int64_t part) {
  auto const lane = static_cast<std::int64_t>(threadIdx.x % warp_threads);
  std::int64_t before = 0;
  std::uint32_t warp = 0;
  while (part >= before + scan.parts[warp]) before += scan.parts[warp++];
  if (warp != threadIdx.x / warp_threads) return;
  auto const own = WarpSegments::of(p.shape.segments());
  for (std::int64_t first = own.begin;; first += warp_threads) {
    std::int64_t const parts = first + lane < own.end ? p.kv.splits(rows_of_segment(p, first + lane)) : 0;
    std::int64_t sum = parts;  // of this segment and those before it
#pragma unroll
    for (int i = 1; i < warp_threads; i *= 2) {
      std::int64_t const other = __shfl_up_sync(~0U, sum, i);
      if (lane >= i) sum += other;
    }
    auto const found = static_cast<int>(__ballot_sync(~0U, part < before + sum));
    if (found != 0) {
      if (lane == __ffs(found) - 1) {
        scan.segment = first + lane;
        scan.before = before + sum - parts;
      }
      return;
    }
    before += __shfl_sync(~0U, sum, warp_threads - 1);
  }
}

/// Finds the KV splits of a block: some that follow each other.
/// @tparam Adjacent  the grid has one dimension: tiles of query rows of a split follow each other; else y is the tile
template <bool Adjacent, class P>
__device__ void find_splits(P const& p, SplitWork& work) {
  std::int64_t const tiles = Adjacent ? p.kv.tiles : 1;
  auto const all = Stretches::of(count_parts(p, work.scan) * tiles, gridDim.x, 1);
  std::int64_t const at = all.begin(blockIdx.x);
  std::int64_t const end = all.end(blockIdx.x);
  if (at < end) find_part(p, work.scan, at / tiles);
  if (threadIdx.x == 0) {
    work.at = at;
    work.end = end;
  }
  __syncthreads();
}

/// Takes the block's next split, by one thread. @return `splits` is 0: there is none
template <bool Adjacent, class P>
__device__ AttendPlace take_split(P const& p, SplitWork& work) {
  if (work.at >= work.end) return {};
  std::int64_t const tiles = Adjacent ? p.kv.tiles : 1;
  std::int64_t const split = work.at / tiles;
  auto const tile = static_cast<std::int32_t>(Adjacent ? work.at % tiles : std::int64_t{blockIdx.y});
  ++work.at;
  std::int64_t splits = p.kv.splits(rows_of_segment(p, work.scan.segment));
  if (split == work.scan.before + splits) {
    work.scan.before = split;
    splits = p.kv.splits(rows_of_segment(p, ++work.scan.segment));
  }
  std::int64_t const first_query = std::int64_t{tile} * p.kv.tile_rows;
  return {.segment = work.scan.segment,
          .sequence = work.scan.segment / p.shape.num_kv_heads,
          .kv_head = work.scan.segment % p.shape.num_kv_heads,
          .split = split - work.scan.before,
          .splits = splits,
          .first_split = work.scan.before,
          .first_query = first_query,
          .query_count = static_cast<std::int32_t>(min(p.kv.tile_rows, p.shape.query_rows() - first_query)),
          .tile = tile};
}

/// The ticket of a segment's tile.
template <class P>
__device__ SignedTicket* split_ticket(P const& p, AttendPlace const& place) {
  return p.arrays.tickets + place.segment * p.kv.tiles + place.tile;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
