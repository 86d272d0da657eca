#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Finds the segment whose items (tiles, rows) include `item`, by one warp: a 32-way search.
/// @param offsets  [segments] items before each segment
template <class = void>
__device__ std::int64_t find_segment(std::int64_t const* offsets, std::int64_t segments, std::int64_t item) {
  auto const lane = static_cast<std::int64_t>(threadIdx.x % warp_threads);
  std::int64_t first = 0;
  std::int64_t count = segments;
  while (count > 1) {
    std::int64_t const step = (count + warp_threads - 1) / warp_threads;
    bool const before = lane * step < count && offsets[first + lane * step] <= item;
    std::int64_t const last = 31 - __clz(static_cast<int>(__ballot_sync(0xffffffffU, before)));
    first += last * step;
    count = min(step, count - last * step);
  }
  return first;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
