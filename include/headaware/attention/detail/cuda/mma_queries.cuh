#pragma once

#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/element.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Reads 8 channels of a query.
template <class P>
__device__ void load_query(P const& p, MmaShared<P::queries> const& shared, std::int64_t sequence, std::int32_t q,
                           std::int32_t channel, float (&x)[8]) {
  using Q = typename P::Query;
  auto const at = [&](std::int32_t c) {
    return global_pointer(p.queries_in.data) +
           p.queries_in.layout.offset(sequence, shared.heads[q], shared.tokens[q], c);
  };
  if (p.wide_queries) {
    constexpr int width = 16 / sizeof(Q);
    auto const* const from = reinterpret_cast<Pack<Q, width> const*>(at(channel));
#pragma unroll
    for (int i = 0; i < 8 / width; ++i) {
      Pack<Q, width> const piece = from[i];
#pragma unroll
      for (int j = 0; j < width; ++j) x[i * width + j] = element_value(piece.elements[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = element_value(*at(channel + i));
  }
}

/// Turns 8 channels of a query to its position, rounded as a rotated query of its type is.
template <class P>
__device__ void rotate_query(P const& p, MmaShared<P::queries> const& shared, std::int64_t sequence, std::int32_t q,
                             std::int32_t channel, float (&x)[8]) {
  using Q = typename P::Query;
  auto const& rotation = p.cache.view.rotation;
  if (channel >= rotation.rotary_dim()) return;
  std::int64_t const position = p.cache.view.length(sequence) + shared.tokens[q];
  auto const turn = [&](std::int32_t i, float& a, float& b) {
    rotation.turn_back(-position, i, a, b);
    a = to_float(from_float<Q>(a));
    b = to_float(from_float<Q>(b));
  };
  if (rotation.pairing() == RotaryPairing::interleaved) {
#pragma unroll
    for (int i = 0; i < 4; ++i) turn(channel / 2 + i, x[2 * i], x[2 * i + 1]);
    return;
  }
  std::int32_t const half = rotation.rotary_dim() / 2;
  bool const upper = channel >= half;
  float y[8];  // their partners
  load_query(p, shared, sequence, q, upper ? channel - half : channel + half, y);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (upper) {
      turn(channel - half + i, y[i], x[i]);
    } else {
      turn(channel + i, x[i], y[i]);
    }
  }
}

/// The power of two by which a query is divided, so that its elements fit 16 bits: that of its largest element.
__device__ inline float query_scale(float largest) {
  std::uint32_t const exponent = __float_as_uint(largest) & 0x7f800000U;
  bool const possible = exponent >= 0x01000000U && exponent <= 0x7e000000U;
  return possible ? __uint_as_float(exponent) : 1.0F;
}

/// Finds a query of a job, and reads 8 channels of it, turned where the view's keys are turned here. By all lanes
/// @param x  zeros, and so where there is no query or channel
template <class P>
__device__ void find_query(P const& p, MmaShared<P::queries>& shared, MmaJob const& job, std::int32_t q,
                           std::int32_t column, float (&x)[8]) {
  bool const has = q < job.query_count;
  if (column == 0) {  // after the last query comes the last: it sees no more and no less
    std::int32_t const own = has ? q : job.query_count - 1;
    QueryRow const row(p.shape, job.sequence, job.kv_head, job.first_query + own);
    shared.heads[q] = row.head;
    shared.tokens[q] = row.token;
  }
  __syncwarp();
  if (!has || column * 8 >= p.shape.head_dim) return;
  load_query(p, shared, job.sequence, q, column * 8, x);
  if constexpr (rotates_rows<typename P::View>) rotate_query(p, shared, job.sequence, q, column * 8, x);
}

/// Divides a query by a power of two, so that its elements fit 16 bits. By all lanes
/// @tparam Lanes  that have a query, `Channels` each
template <int Lanes, int Channels>
__device__ float take_scale(float (&x)[Channels]) {
  float largest = 0;
#pragma unroll
  for (float const each : x) largest = fmaxf(largest, fabsf(each));
#pragma unroll
  for (int i = Lanes / 2; i > 0; i /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, i));
  float const scale = query_scale(largest);
#pragma unroll
  for (float& each : x) each /= scale;
  return scale;
}

/// Reads a job's queries into shared memory as sums of the cache's elements, by all warps.
/// @param to  shared, [query_parts, queries, pitch]; zeros where there is no query or channel
template <class P, class Rows>
__device__ void take_mma_queries(P const& p, MmaShared<P::queries>& shared, Rows const&, MmaJob const& job,
                                 unsigned char* to) {
  using E = typename P::Element;
  constexpr bool scaled = std::is_same_v<E, float16> && !std::is_same_v<typename P::Query, float16>;
  constexpr int lanes = P::row_lanes < warp_threads ? P::row_lanes : warp_threads;
  constexpr int pieces = (P::row_lanes + lanes - 1) / lanes;  // of a lane, 8 channels each
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto const first = thread % lanes;
  for (std::int32_t q = thread / lanes; q < P::queries; q += static_cast<std::int32_t>(blockDim.x) / lanes) {
    float x[8 * pieces];
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      float piece[8] = {};
      find_query(p, shared, job, q, first + i * lanes, piece);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[8 * i + j] = piece[j];
    }
    float scale = 1;
    if constexpr (scaled) scale = take_scale<lanes>(x);
    if (first == 0) shared.scales[q] = scale * p.map.factor();
#pragma unroll
    for (int part = 0; part < P::query_parts; ++part) {
#pragma unroll
      for (int piece = 0; piece < pieces; ++piece) {
        std::uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& a = x[8 * piece + 2 * i];
          float& b = x[8 * piece + 2 * i + 1];
          words[i] = pack_pair<E>(a, b);
          float2 const rounded = unpack_pair<E>(words[i]);
          a -= rounded.x;
          b -= rounded.y;
        }
        std::int32_t const column = first + piece * lanes;
        if (P::row_lanes % lanes != 0 && column >= P::row_lanes) continue;
        *reinterpret_cast<uint4*>(to + part * P::query_bytes + q * P::pitch + column * 16) = {words[0], words[1],
                                                                                              words[2], words[3]};
      }
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
