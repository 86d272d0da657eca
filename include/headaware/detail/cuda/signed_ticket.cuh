#pragma once

// Counts of blocks in memory that nobody has cleared, so that no launch before has to: each carries the signature of
// its call. One without it is as good as zero, whatever it holds. A call leaves its counts at zero, so that a captured
// one may be replayed.

#include <headaware/config.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A count of blocks below a signature: of 24 bits and 40, or of 12 bits and 20.
using SignedTicket = unsigned long long;
using SmallTicket = unsigned;
template <class Ticket>
inline constexpr int ticket_count_bits = std::is_same_v<Ticket, SignedTicket> ? 24 : 12;
/// The most blocks that a ticket counts.
template <class Ticket>
inline constexpr std::int64_t max_ticket_count = (std::int64_t{1} << ticket_count_bits<Ticket>)-1;

/// Makes a signature that no other of 2^40 (2^20) calls of this process has, and that memory holds by chance alone;
/// never 0.
template <class Ticket>
Ticket new_ticket_signature() {
  static std::atomic<std::uint64_t> calls{
      static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count())};
  for (;;) {
    // By an odd number, which spreads neighbours and keeps them apart: small numbers, which memory is full of, are
    // none.
    auto const mixed = static_cast<Ticket>(calls.fetch_add(1, std::memory_order_relaxed) * 0x9E3779B97F4A7C15ULL);
    auto const signature = static_cast<Ticket>(mixed << ticket_count_bits<Ticket>);
    if (signature != 0) return signature;
  }
}

/// Makes a ticket the call's own, by a thread that counts in it later: each such thread does.
template <class Ticket>
__device__ void sign_ticket(Ticket* ticket, Ticket signature) {
  constexpr int bits = ticket_count_bits<Ticket>;
  Ticket const found = *static_cast<Ticket volatile*>(ticket);
  if (found >> bits == signature >> bits) return;
  atomicCAS(ticket, found, signature);  // else another block has signed it
}

/// @brief Counts the blocks that are done and finds the last one. Synchronises the block.
///
/// The last block sees all earlier writes of the others, may overwrite what they have read, and has cleared the count.
/// @param ticket  device, signed by thread 0
/// @return whether this block is the last of `blocks`
template <class Ticket>
__device__ bool is_last_block(Ticket* ticket, Ticket signature, std::int64_t blocks) {
  int last = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // for the whole block, which the barrier has ordered before
    last = atomicAdd(ticket, Ticket{1}) - signature == static_cast<Ticket>(blocks - 1) ? 1 : 0;
    if (last != 0) atomicExch(ticket, signature);
    __threadfence();
  }
  return __syncthreads_or(last) != 0;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
