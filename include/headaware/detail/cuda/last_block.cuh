#pragma once

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @brief Counts the blocks that are done and finds the last one. Synchronises the block.
///
/// The last block sees all earlier writes of the others, and may overwrite what they have read.
/// @param ticket  device, zero before the first block is done; cleared by the caller before it is used again
/// @return whether this block is the last of `blocks`
__device__ inline bool is_last_block(std::int32_t* ticket, std::int64_t blocks) {
  int last = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // for the whole block, which the barrier has ordered before
    last = atomicAdd(ticket, 1) == blocks - 1 ? 1 : 0;
    __threadfence();
  }
  return __syncthreads_or(last) != 0;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
