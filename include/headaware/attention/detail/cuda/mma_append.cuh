#pragma once

// New tokens on their way through attention into the cache: a warp finds them in its tiles, turns their keys, and
// writes them, once for all query rows.

#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/signed_ticket.cuh>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Turns a key in shared memory to its position, by one warp.
template <class E>
__device__ void rotate_row(KeyRotation const& rotation, std::int64_t position, E* key) {
  for (auto i = static_cast<std::int32_t>(threadIdx.x % warp_threads); i < rotation.rotary_dim() / 2;
       i += warp_threads) {
    RotaryPair const pair = rotary_pair(rotation, i);
    auto const turned = rotate_pair(rotation, -position, i, key[pair.a], key[pair.b]);
    key[pair.a] = turned.a;
    key[pair.b] = turned.b;
  }
}

/// Copies a row of a tile to the cache, by one warp. @param channels  a multiple of 8
template <class E>
__device__ void store_row(E* to, unsigned char const* from, std::int32_t channels) {
  for (auto i = static_cast<std::int32_t>(threadIdx.x % warp_threads); i < channels / 8; i += warp_threads) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<uint4 const*>(from)[i];
  }
}

/// Turns a tile's new keys, and writes those new rows to the cache whose own queries the job has: by these they are
/// seen. By one warp
/// @param tile  shared, a stage of the warp's ring that has arrived
template <class P, class Rows>
__device__ void take_new_rows(P const& p, MmaJob const& job, Rows const& rows, unsigned char* tile) {
  using E = typename P::Element;
  auto const lane = static_cast<std::int32_t>(threadIdx.x % warp_threads);
  std::int64_t position = no_position;
  if (lane < mma_rows) position = *reinterpret_cast<std::int64_t const*>(tile + (lane + 1) * P::pitch - 16);
  for (std::uint32_t left = __ballot_sync(~0U, rows.is_new(position)); left != 0; left &= left - 1) {
    int const row = __ffs(static_cast<int>(left)) - 1;
    std::int64_t const at = __shfl_sync(~0U, position, row);
    unsigned char* const key = tile + row * P::pitch;
    if constexpr (rotates_rows<typename P::View>) {
      rotate_row(p.cache.view.rotation, at, reinterpret_cast<E*>(key));
      __syncwarp();
    }
    std::int64_t const own_query = (at - rows.length) * p.shape.group() - job.first_query;
    if (own_query < 0 || own_query >= job.query_count) continue;
    std::int64_t const of_head = rows.tokens.kept_before(at);
    auto const key_channels = static_cast<std::int32_t>(p.shape.head_dim);
    auto const value_channels = static_cast<std::int32_t>(p.shape.output_dim());
    store_row(p.cache.view.news.cache_keys + rows.offset(of_head, key_channels), key, key_channels);
    store_row(p.cache.view.news.cache_values + rows.offset(of_head, value_channels), key + P::value_offset,
              value_channels);
  }
}

/// Says which sequences are refused, and counts the new tokens, by the last block to have read the lengths.
template <class P>
__device__ void finish_append(P const& p) {
  AppendCounters const& counters = p.cache.view.counters;
  if (counters.ticket != nullptr) {
    SignedTicket* const ticket = p.arrays.tickets + 4 * gridDim.x;
    if (threadIdx.x == 0) sign_ticket(ticket, p.arrays.signature);
    if (!is_last_block(ticket, p.arrays.signature, gridDim.x)) return;
  } else if (counters.status == nullptr || blockIdx.x != 0) {
    return;
  }
  advance_lengths(counters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
