#pragma once

// Counts of blocks in memory that nobody has cleared, so that no launch before has to: each carries the signature of
// its call. One without it is as good as zero, whatever it holds. A call leaves its counts at zero, so that a captured
// one may be replayed.

#include <headaware/config.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Upper 40 bits: the call's signature; below them, how many blocks are done.
using SignedTicket = unsigned long long;
inline constexpr int ticket_count_bits = 24;
inline constexpr std::int64_t max_ticket_count = (std::int64_t{1} << ticket_count_bits) - 1;

/// Makes a signature that no other of 2^40 calls of this process has, and that memory holds by chance alone.
inline SignedTicket new_ticket_signature() {
  static std::atomic<std::uint64_t> calls{
      static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count())};
  // By an odd number, which spreads neighbours and keeps them apart: small numbers, which memory is full of, are none.
  return calls.fetch_add(1, std::memory_order_relaxed) * 0x9E3779B97F4A7C15ULL << ticket_count_bits;
}

/// Makes a ticket the call's own, by a thread that counts in it later: each such thread does.
__device__ inline void sign_ticket(SignedTicket* ticket, SignedTicket signature) {
  SignedTicket const found = *static_cast<SignedTicket volatile*>(ticket);
  if (found >> ticket_count_bits == signature >> ticket_count_bits) return;
  atomicCAS(ticket, found, signature);  // else another block has signed it
}

/// @brief Counts the blocks that are done and finds the last one. Synchronises the block.
///
/// The last block sees all earlier writes of the others, may overwrite what they have read, and has cleared the count.
/// @param ticket  device, signed by thread 0
/// @return whether this block is the last of `blocks`
__device__ inline bool is_last_block(SignedTicket* ticket, SignedTicket signature, std::int64_t blocks) {
  int last = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // for the whole block, which the barrier has ordered before
    last = atomicAdd(ticket, 1) - signature == static_cast<SignedTicket>(blocks - 1) ? 1 : 0;
    if (last != 0) atomicExch(ticket, signature);
    __threadfence();
  }
  return __syncthreads_or(last) != 0;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
