#pragma once

#include <headaware/config.hpp>

#include <cub/block/block_scan.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows, and the parts they are cut into, scanned together.
struct RowsAndParts {
  std::int64_t rows;
  std::int32_t parts;
};
struct AddRowsAndParts {
  __device__ RowsAndParts operator()(RowsAndParts const& a, RowsAndParts const& b) const {
    return {a.rows + b.rows, a.parts + b.parts};
  }
};

/// @brief Scans all segments by one block, `Threads` at a time. Synchronises the block. Cost: O(segments / Threads)
/// rounds.
/// @param count  (segment) to its rows and parts
/// @param write  (segment, totals of the segments before it, its own counts)
/// @return totals of all segments
template <std::int32_t Threads, class Count, class Write>
__device__ RowsAndParts scan_segments(std::int64_t segments, Count const& count, Write const& write) {
  using Scan = cub::BlockScan<RowsAndParts, Threads>;
  __shared__ typename Scan::TempStorage storage;
  RowsAndParts running{0, 0};
  for (std::int64_t base = 0; base < segments; base += Threads) {
    std::int64_t const s = base + threadIdx.x;
    RowsAndParts here{0, 0};
    if (s < segments) here = count(s);
    RowsAndParts before;
    RowsAndParts all;
    Scan(storage).ExclusiveScan(here, before, RowsAndParts{0, 0}, AddRowsAndParts{}, all);
    if (s < segments) write(s, AddRowsAndParts{}(running, before), here);
    running = AddRowsAndParts{}(running, all);
    __syncthreads();
  }
  return running;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
