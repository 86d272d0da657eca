#pragma once

#include <headaware/attention/detail/cuda/coded_segment.cuh>
#include <headaware/attention/detail/cuda/mma_numbers.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_queries.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/format/hadamard.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Channels that are turned together.
inline constexpr int turned_channels = 64;

/// Multiplies blocks of 64 channels by the Hadamard matrix, in the order of `rotate_block`: lanes that follow each
/// other have `Count` channels each. By all lanes of a block
template <int Count>
__device__ void turn_channels(float (&x)[Count]) {
  constexpr int lanes = turned_channels / Count;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  std::uint32_t const together = lanes == warp_threads ? ~0U : ((1U << lanes) - 1) << (lane / lanes * lanes);
  add_and_subtract<Count, 1>(x);
#pragma unroll
  for (int i = 1; i < lanes; i *= 2) {
    float const sign = (lane & i) != 0 ? -1.0F : 1.0F;
#pragma unroll
    for (float& each : x) each = fmaf(each, sign, __shfl_xor_sync(together, each, i));
  }
  constexpr float norm = inverse_root(turned_channels);
#pragma unroll
  for (float& each : x) each *= norm;
}

/// Queries are that much larger than 1, so that shifted codes meet none that are too small.
inline constexpr float coded_query_size = 256;

/// Writes 8 channels of a query, which are elements by now, in the order of codes.
/// @param row  of the query; @param column  of the channels, in eights; @param shape  of keys
template <class E>
__device__ void store_code_query(unsigned char* row, std::int32_t column, float const (&x)[8], CodeShape const& shape) {
  float const by = (column * 8 & shape.shifted) != 0 ? 0.0625F : 1.0F;
  unsigned char* const at = row + column / 2 * 32 + column % 2 * 8;
  *reinterpret_cast<uint2*>(at) = {pack_pair<E>(x[0] * by, x[2] * by), pack_pair<E>(x[4] * by, x[6] * by)};
  *reinterpret_cast<uint2*>(at + 16) = {pack_pair<E>(x[1] * by, x[3] * by), pack_pair<E>(x[5] * by, x[7] * by)};
}
/// The same in the order of planes.
template <class E>
__device__ void store_plane_query(unsigned char* row, std::int32_t column, float const (&x)[8]) {
  auto* const elements = reinterpret_cast<E*>(row) + column / 8 * 64;
  float by = 1;
#pragma unroll
  for (int i = 0; i < 4; ++i, by /= 2) {
    std::uint32_t const both = pack_pair<E>(x[i] * by, x[i + 4] * by);
    elements[plane_place(column % 8 * 8 + i)] = E{static_cast<std::uint16_t>(both & 0xffffU)};
    elements[plane_place(column % 8 * 8 + i + 4)] = E{static_cast<std::uint16_t>(both >> 16)};
  }
}

/// Writes 8 channels of a query as sums of elements. @return the sum of the channels as they are now
template <class P, class E>
__device__ float store_coded_query(unsigned char* to, std::int32_t column, float (&x)[8], CodeShape const& shape) {
  float sum = 0;
#pragma unroll
  for (int part = 0; part < parts_of<E, typename P::Query>; ++part) {
    float rounded[8];
    std::uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] = pack_pair<E>(x[2 * i], x[2 * i + 1]);
      float2 const pair = unpack_pair<E>(pairs[i]);
      rounded[2 * i] = pair.x;
      rounded[2 * i + 1] = pair.y;
      x[2 * i] -= pair.x;
      x[2 * i + 1] -= pair.y;
      sum += pair.x + pair.y;
    }
    unsigned char* const row = to + part * P::query_bytes;
    if (std::is_same_v<E, bfloat16> || shape.ordered) {
      *reinterpret_cast<uint4*>(row + column * 16) = {pairs[0], pairs[1], pairs[2], pairs[3]};
      continue;
    }
    if (shape.nibbles) store_code_query<E>(row, column, rounded, shape);
    if (shape.planes != 0) store_plane_query<E>(row + P::plane_offset, column, rounded);
  }
  return sum;
}

/// Reads a job's queries into shared memory as keys of a segment take them, by all warps: turned where keys are.
template <class P>
__device__ void take_mma_queries(P const& p, MmaShared<P::queries>& shared, CodedSegmentRows<P> const& rows,
                                 MmaJob const& job, unsigned char* to) {
  CodeShape const& shape = rows.codes->key;
  constexpr int lanes = P::row_lanes;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto const column = thread % lanes;
  for (std::int32_t q = thread / lanes; q < P::queries; q += static_cast<std::int32_t>(blockDim.x) / lanes) {
    float x[8] = {};
    find_query(p, shared, job, q, column, x);
    if (shape.turned) turn_channels(x);
    float const scale = take_scale<lanes>(x);
    if (column == 0) shared.scales[q] = scale * (p.map.factor() * (shape.factor / coded_query_size));
#pragma unroll
    for (float& each : x) each *= coded_query_size;
    float sum = 0;
    if (shape.family == MmaHalves<bfloat16>::id) {
      store_coded_query<P, bfloat16>(to + q * P::pitch, column, x, shape);
    } else {
      sum = store_coded_query<P, float16>(to + q * P::pitch, column, x, shape);
    }
    if (shape.ranges == 0) continue;
    sum += __shfl_xor_sync(~0U, sum, 1);
    sum += __shfl_xor_sync(~0U, sum, 2);
    float const others = __shfl_xor_sync(~0U, sum, 4);
    if (shape.ranges == 1) sum += others;
    // What is multiplied by a minimum, or what a code of 0 counts for in a product: of 32 channels.
    float const factor = shape.has_min ? 1 : -static_cast<float>(shape.origin);
    auto* const origins = reinterpret_cast<float*>(to + P::origin_offset);
    if (column % 4 == 0) origins[column / 4 * P::queries + q] = sum * (factor / shape.factor);
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
