#pragma once

#include <headaware/attention/detail/cuda/coded_queries.cuh>
#include <headaware/attention/detail/cuda/coded_segment.cuh>
#include <headaware/attention/detail/cuda/mma_numbers.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_weights.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A warp's sums over encoded values: of numbers, as products take them, by weights that a range's scale times `unit`
/// is part of. The unit follows the largest scale, so that scaled weights fit 16 bits as weights do.
template <class P>
struct CodedSums : MmaSums<P> {
  static constexpr int ranges = P::channel_tiles / 2;  ///< of 32 channels

  /// What is added to 32 channels, or to 64 the first of two: weighted minima, of the lane's rows, or what codes'
  /// origin counts for.
  float common[ranges][P::query_tiles][2] = {};
  float unit = 0x1p60F;  ///< a power of two; scales times it are at most 1

  /// Multiplies what query (n, j) has by a factor.
  __device__ void rescale(int n, int j, float by) {
    MmaSums<P>::rescale(n, j, by);
#pragma unroll
    for (auto& range : common) range[n][j] *= by;
  }
  /// Takes a smaller unit. By all lanes. @param largest  scale that the lane has; @param minima  common sums are minima
  __device__ void take_unit(float largest, bool minima) {
    constexpr float largest_half = 65504;
    constexpr std::uint32_t exponents = 0x7f800000U;
    constexpr std::uint32_t room = 4U << 23;  // for larger scales, so that they seldom change the unit
#pragma unroll
    for (int i = 1; i < warp_threads; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, i));
    std::uint32_t const exponent = __float_as_uint(fminf(largest, largest_half)) & exponents;
    float const to = __uint_as_float((254U << 23) - exponent - room);
    float const by = to / unit;
    unit = to;
#pragma unroll
    for (auto& tile : this->values) {
#pragma unroll
      for (auto& query : tile) {
#pragma unroll
        for (float& sum : query) sum *= by;
      }
    }
    if (minima) return;
#pragma unroll
    for (auto& range : common) {
#pragma unroll
      for (auto& query : range) {
        query[0] *= by;
        query[1] *= by;
      }
    }
  }
};

/// Writes a warp's sums as values. By all lanes. @param to  shared, [queries, sum_pitch]
template <class P>
__device__ void store_sums(P const& p, CodedSegmentRows<P> const& rows, CodedSums<P> const& sums,
                           std::int32_t query_count, float* to) {
  CodeShape const& shape = rows.codes->value;
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  float const factor = shape.ranges != 0 ? shape.factor / sums.unit : shape.factor;
  float const second = shape.shifted_half ? factor / 16 : factor;
  CodePlaces const places = shape.places;
  std::int32_t const first_place = lane / 4 * places.of_lane;
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::int32_t const q = n * 8 + lane % 4 * 2 + j;
      float* const own = to + q * P::sum_pitch + first_place;
      unrolled<P::channel_tiles / 2>([&]<int Pair>() {  // of tiles, which may have a range
        if (Pair / 2 * 64 >= channels) return;
        float common = sums.common[Pair][n][j];
        if (Pair % 2 != 0 && shape.ranges != 2) common = sums.common[Pair - Pair % 2][n][j];
        if (shape.has_min) {
#pragma unroll
          for (int i = 4; i < warp_threads; i *= 2) common += __shfl_xor_sync(~0U, common, i);
        } else {
          common *= factor;
        }
        if (q >= query_count) return;
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          float const(&four)[4] = sums.values[Pair * 2 + tile][n];
          std::int32_t const at = Pair / 2 * 64 + Pair % 2 * places.of_pair + tile * places.of_tile;
          own[at] = fmaf(four[j], factor, common);
          own[at + places.of_half] = fmaf(four[j + 2], second, common);
        }
      });
    }
  }
}

/// Channels of which sums are wanted: whole blocks of those that are turned back.
template <class P>
__device__ std::int64_t summed_channels(P const& p, CodedSegmentRows<P> const& rows) {
  std::int64_t const channels = p.shape.output_dim();
  return rows.codes->value.turned ? (channels + turned_channels - 1) / turned_channels * turned_channels : channels;
}
/// Turns four channels of a result back, where values are turned. By 16 lanes that have a block of channels
template <class P>
__device__ void turn_result(CodedSegmentRows<P> const& rows, float4& sums) {
  if (!rows.codes->value.turned) return;
  float x[4] = {sums.x, sums.y, sums.z, sums.w};
  turn_channels(x);
  sums = {x[0], x[1], x[2], x[3]};
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
