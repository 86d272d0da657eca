#pragma once

#include <headaware/config.hpp>

#include <cub/warp/warp_reduce.cuh>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Reduces over groups of `Lanes` lanes, a power of two: by shuffles, so without shared memory.
/// @return the result in the first lane of each group
template <int Lanes = 32, class T, class Operation>
__device__ T reduce_lanes(T value, Operation const& operation) {
  using Reduce = cub::WarpReduce<T, Lanes>;
  typename Reduce::TempStorage unused;
  return Reduce(unused).Reduce(value, operation);
}
template <int Lanes = 32, class T>
__device__ T sum_lanes(T value) {
  using Reduce = cub::WarpReduce<T, Lanes>;
  typename Reduce::TempStorage unused;
  return Reduce(unused).Sum(value);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
