#pragma once

#include <headaware/config.hpp>

#include <cub/block/block_scan.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @brief Sums up the rows of all segments by one block, `Threads` segments at a time. Synchronises the block. Cost:
/// O(segments / Threads) rounds.
/// @param count  (segment) to its rows
/// @param write  (segment, rows of the segments before it, its own rows)
/// @return rows of all segments
template <std::int32_t Threads, class Count, class Write>
__device__ std::int64_t scan_segments(std::int64_t segments, Count const& count, Write const& write) {
  using Scan = cub::BlockScan<std::int64_t, Threads>;
  __shared__ typename Scan::TempStorage storage;
  std::int64_t running = 0;
  for (std::int64_t base = 0; base < segments; base += Threads) {
    std::int64_t const s = base + threadIdx.x;
    std::int64_t here = 0;
    if (s < segments) here = count(s);
    std::int64_t before = 0;
    std::int64_t all = 0;
    Scan(storage).ExclusiveSum(here, before, all);
    if (s < segments) write(s, running + before, here);
    running += all;
    __syncthreads();
  }
  return running;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
