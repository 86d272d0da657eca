#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/signed_ticket.cuh>

#include <cuda_runtime_api.h>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Counters that the kernel reads, and advances if there is a `ticket`.
struct AppendCounters {
  std::int32_t const* lengths = nullptr;     ///< [num_sequences] before the append
  std::int32_t const* high_water = nullptr;  ///< [num_sequences]
  std::int32_t const* counts = nullptr;      ///< [num_sequences]; nullptr: max_count each
  std::int32_t* status = nullptr;            ///< 1 if a sequence is refused; optional
  std::int32_t* advance_lengths = nullptr;
  std::int32_t* advance_high_water = nullptr;
  std::int32_t* ticket = nullptr;  ///< blocks that have read the counters; nullptr: advance nothing
  std::int64_t token_limit = 0;
  std::int32_t max_count = 0;
  std::int32_t num_sequences = 0;
  SmallTicket signature = 0;  ///< of the ticket; 0: it has been cleared

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t count(std::int64_t sequence) const {
    return counts != nullptr ? counts[sequence] : max_count;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool takes(std::int64_t length, std::int64_t count) const {
    return length >= 0 && count >= 0 && count <= max_count && length + count <= token_limit;
  }
};

/// Readies the ticket for a launch of so many blocks: by a signature, or, for more of them than that counts, by
/// clearing it first.
inline void ready_ticket(AppendCounters& counters, std::int64_t blocks, char const* where, cudaStream_t stream) {
  if (counters.ticket == nullptr) return;
  if (blocks <= max_ticket_count<SmallTicket>) {
    counters.signature = new_ticket_signature<SmallTicket>();
  } else {
    clear_tickets(counters.ticket, 1, where, stream);
  }
}

/// Signs the ticket, by thread 0 of every block: whatever an append that came to no end has left there.
__device__ inline void sign_counters(AppendCounters const& counters) {
  if (threadIdx.x != 0 || counters.ticket == nullptr || counters.signature == 0) return;
  sign_ticket(reinterpret_cast<SmallTicket*>(counters.ticket), counters.signature);
}

/// Says which sequences are refused, and counts the new tokens of the others if counters advance. By all threads of one
/// block, after all blocks have read the lengths
__device__ inline void advance_lengths(AppendCounters const& counters) {
  for (auto b = static_cast<std::int32_t>(threadIdx.x); b < counters.num_sequences;
       b += static_cast<std::int32_t>(blockDim.x)) {
    std::int32_t const length = counters.lengths[b];
    std::int64_t const count = counters.count(b);
    if (!counters.takes(length, count)) {
      if (counters.status != nullptr) *counters.status = 1;
      continue;
    }
    if (counters.ticket == nullptr) continue;
    auto const now = static_cast<std::int32_t>(length + count);
    counters.advance_lengths[b] = now;
    counters.advance_high_water[b] = max(counters.advance_high_water[b], now);
  }
}

/// The same, by the last block of the launch to have read the lengths.
__device__ inline void advance_counters(AppendCounters const& counters) {
  if (counters.ticket == nullptr) return;
  auto* const ticket = reinterpret_cast<SmallTicket*>(counters.ticket);
  if (!is_last_block(ticket, counters.signature, gridDim.x)) return;
  if (threadIdx.x == 0) *counters.ticket = 0;
  advance_lengths(counters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
