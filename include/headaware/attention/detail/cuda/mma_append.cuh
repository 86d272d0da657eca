#pragma once

// New tokens on their way through attention into the cache: a warp finds them in its tiles, turns their keys, and
// writes them, once for all query rows. So do pages that are copied on write.

#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/cache/page_step.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/signed_ticket.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/detail/global_pointer.hpp>
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

/// Turns a new token's key, and writes its row to the cache if told to. By one warp
/// @param key  shared, the row's key; its value is `P::value_offset` bytes after it
/// @param at   the token's position; @param offset  (channels) to where its row begins
template <class P, class Offset>
__device__ void place_new_row(P const& p, unsigned char* key, std::int64_t at, bool write, Offset const& offset) {
  using E = typename P::Element;
  if constexpr (rotates_rows<typename P::View>) {
    rotate_row(p.cache.view.rotation, at, reinterpret_cast<E*>(key));
    __syncwarp();
  }
  if (!write) return;
  auto const key_channels = static_cast<std::int32_t>(p.shape.head_dim);
  auto const value_channels = static_cast<std::int32_t>(p.shape.output_dim());
  store_row(p.cache.view.news.cache_keys + offset(key_channels), key, key_channels);
  store_row(p.cache.view.news.cache_values + offset(value_channels), key + P::value_offset, value_channels);
}

/// Turns a tile's new keys, and writes those new rows to the cache whose own queries the job has: by these they are
/// seen. By one warp
/// @param tile  shared, a stage of the warp's ring that has arrived
template <class P, class Rows>
__device__ void take_new_rows(P const& p, MmaJob const& job, Rows const& rows, unsigned char* tile) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x % warp_threads);
  std::int64_t position = no_position;
  if (lane < mma_rows) position = *reinterpret_cast<std::int64_t const*>(tile + (lane + 1) * P::pitch - 16);
  for (std::uint32_t left = __ballot_sync(~0U, rows.is_new(position)); left != 0; left &= left - 1) {
    int const row = __ffs(static_cast<int>(left)) - 1;
    std::int64_t const at = __shfl_sync(~0U, position, row);
    std::int64_t const own_query = (at - rows.length) * p.shape.group() - job.first_query;
    std::int64_t const of_head = rows.tokens.kept_before(at);
    place_new_row(p, tile + row * P::pitch, at, own_query >= 0 && own_query < job.query_count,
                  [&](std::int32_t channels) { return rows.offset(of_head, channels); });
  }
}

/// Finds the copy on write, if any, of the page that a segment's new tokens are written to. By all threads, before and
/// after which the block synchronises
template <class P, class Rows>
__device__ void find_page_copy(P const& p, MmaJob const& job, Rows& rows) {
  PagedLayer const& layer = p.cache.view.layer;
  std::int32_t const length = rows.length;
  auto const index = static_cast<std::int32_t>(rows.page_size.quotient(length));
  bool const held = index < rows.sink_pages || rows.ring_pages > 0;
  if (job.end == 0 || !held || index * rows.page_size.value() == length) return;
  std::int32_t const to = rows.page(index);
#pragma unroll 4
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < layer.num_copies;
       i += static_cast<std::int32_t>(blockDim.x)) {
    PageCopy const& copy = global_pointer(layer.copies)[i];
    if (copy.to != to || copy.layer != layer.layer || copy.tokens == 0) continue;
    rows.copy = copy;
    rows.written = length;
  }
}

/// Writes what no query sees of the pages that new tokens are written to: the page that is copied, and new tokens after
/// the sinks of a head without a window. By all threads, where the job is the first of its segment, and the piece its
/// last. @param memory  shared, the block's, which no thread uses yet
template <class P, class Rows>
__device__ void write_unseen_rows(P const& p, MmaJob const& job, Rows const& rows, unsigned char* memory) {
  bool const copied = rows.copy.to >= 0;
  if (!copied && rows.window != 0) return;
  if (job.first_query != 0 || job.end != p.kv.splits(rows.rows())) return;
  using E = typename P::Element;
  auto const& news = p.cache.view.news;
  auto const key_channels = static_cast<std::int32_t>(p.shape.head_dim);
  auto const value_channels = static_cast<std::int32_t>(p.shape.output_dim());
  if (copied) {
    auto const move = [&](E* tensor, std::int32_t channels) {
      constexpr std::int64_t size = sizeof(E);
      copy_bytes(reinterpret_cast<char*>(tensor), rows.page_offset(rows.copy.from, channels) * size,
                 rows.page_offset(rows.copy.to, channels) * size, rows.copy.tokens * channels * size, 16);
    };
    move(news.cache_keys, key_channels);
    move(news.cache_values, value_channels);
  }
  if (rows.window != 0) return;
  auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
  unsigned char* const row = memory + P::query_space + warp * p.stages * P::stage_bytes;
  std::int64_t const end = min(std::int64_t{rows.tokens.length}, rows.sink_pages * rows.page_size.value());
  for (std::int64_t at = max(rows.length, rows.tokens.sinks) + warp; at < end; at += blockDim.x / warp_threads) {
    E const* keys = nullptr;
    E const* values = nullptr;
    rows.redirect(at, keys, values);
    store_row(reinterpret_cast<E*>(row), reinterpret_cast<unsigned char const*>(keys), key_channels);
    store_row(reinterpret_cast<E*>(row + P::value_offset), reinterpret_cast<unsigned char const*>(values),
              value_channels);
    __syncwarp();
    place_new_row(p, row, at, true, [&](std::int32_t channels) { return rows.token_offset(at, channels); });
    __syncwarp();
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
