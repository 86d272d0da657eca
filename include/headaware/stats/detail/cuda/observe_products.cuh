#pragma once

// Matrix products whose rows are a warp's own: queries or weights in its registers.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Sums over a row's four lanes, in all of them.
__device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(~0U, value, 1);
  return value + __shfl_xor_sync(~0U, value, 2);
}

/// The sum over a warp, in all lanes.
__device__ inline float warp_total(float value) {
#pragma unroll
  for (int lanes = 1; lanes < warp_threads; lanes *= 2) value += __shfl_xor_sync(~0U, value, lanes);
  return value;
}

/// @brief 16 query rows of a warp as operands, up to 128 channels.
template <class E>
struct HeldQueries {
  static constexpr int steps = 8;  ///< of 16 channels
  std::uint32_t rows[steps][4];

  /// @param queries  [16, pitch], shared
  __device__ void load(E const* queries, int pitch, int channels) {
    int const lane = static_cast<int>(threadIdx.x) % warp_threads;
    std::uint32_t const from = shared_address(queries + lane % 16 * pitch + lane / 16 * 8);
    unrolled<steps>([&]<int I>() {
      if (I * 16 < channels) load_matrices<I * 32>(rows[I], from);
    });
  }
  /// As `WarpProducts::scores`.
  template <int Tiles>
  __device__ void scores(float (&scores)[Tiles][4], E const* keys, int pitch, int channels) const {
    int const lane = static_cast<int>(threadIdx.x) % warp_threads;
    std::uint32_t const from = shared_address(keys + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
    auto const tile_bytes = static_cast<std::uint32_t>(16 * pitch * static_cast<int>(sizeof(E)));
    unrolled<steps>([&]<int I>() {
      if (I * 16 >= channels) return;
#pragma unroll
      for (int n = 0; n < Tiles; n += 2) {
        std::uint32_t b[4];
        load_matrices<I * 32>(b, from + n / 2 * tile_bytes);
        multiply_add<E>(scores[n], rows[I], b[0], b[1]);
        multiply_add<E>(scores[n + 1], rows[I], b[2], b[3]);
      }
    });
  }
};

/// @brief Weights of 16 rows and 16 keys as an operand: each the sum of two elements, so that it keeps its precision.
template <class E>
struct WeightOperand {
  std::uint32_t high[4];
  std::uint32_t low[4];

  WeightOperand() = default;
  /// @param first, second  this lane's weights of 8 keys each @param scale  factors of its two rows
  __device__ WeightOperand(float const (&first)[4], float const (&second)[4], float const (&scale)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float const(&weights)[4] = i < 2 ? first : second;
      float const a = weights[i % 2 * 2] * scale[i % 2];
      float const b = weights[i % 2 * 2 + 1] * scale[i % 2];
      high[i] = pack_pair<E>(a, b);
      float2 const rounded = unpack_pair<E>(high[i]);
      low[i] = pack_pair<E>(a - rounded.x, b - rounded.y);
    }
  }

  /// Gives the weights back.
  __device__ void unpack(float (&first)[4], float (&second)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float(&weights)[4] = i < 2 ? first : second;
      float2 const a = unpack_pair<E>(high[i]);
      float2 const b = unpack_pair<E>(low[i]);
      weights[i % 2 * 2] = a.x + b.x;
      weights[i % 2 * 2 + 1] = a.y + b.y;
    }
  }
  /// Clears the weights of all keys but [begin, end), counted from the first.
  __device__ void keep(std::int32_t begin, std::int32_t end) {
    int const own = static_cast<int>(threadIdx.x) % 4 * 2;
    auto const mask_of = [&](std::int32_t key) {
      return (key >= begin && key < end ? 0xFFFFU : 0) | (key + 1 >= begin && key + 1 < end ? 0xFFFF0000U : 0);
    };
    std::uint32_t const masks[2] = {mask_of(own), mask_of(own + 8)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] &= masks[i / 2];
      low[i] &= masks[i / 2];
    }
  }

  /// sums += weights · values of 16 channels, 8 to each of the sums.
  /// @tparam Offset  bytes from `values` to the channels @param values  `value_address` of the keys
  template <int Offset>
  __device__ void multiply(float (&first)[4], float (&second)[4], std::uint32_t values) const {
    std::uint32_t b[4];
    load_matrices_transposed<Offset>(b, values);
    multiply_add<E>(first, high, b[0], b[1]);
    multiply_add<E>(second, high, b[2], b[3]);
    multiply_add<E>(first, low, b[0], b[1]);
    multiply_add<E>(second, low, b[2], b[3]);
  }
};
/// Where this lane loads the values of 16 keys from. @param values  [16, pitch], shared
template <class E>
__device__ std::uint32_t value_address(E const* values, int pitch) {
  int const lane = static_cast<int>(threadIdx.x) % warp_threads;
  return shared_address(values + lane % 16 * pitch + lane / 16 * 8);
}

/// @brief Sums of weight · value of a warp's own 16 rows, all channels, relative to a maximum of each row.
template <class Tile>
struct ValueSums {
  float sums[Tile::channel_tiles][4];

  __device__ void begin() {
#pragma unroll
    for (int n = 0; n < Tile::channel_tiles; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
  }
  __device__ void rescale(float const (&factor)[2]) {
    if (!__any_sync(~0U, factor[0] != 1 || factor[1] != 1)) return;
#pragma unroll
    for (int n = 0; n < Tile::channel_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= factor[i / 2];
    }
  }
  /// Adds 16 keys. @param values  `value_address` of them
  __device__ void add(WeightOperand<typename Tile::E> const& weights, std::uint32_t values) {
    unrolled<Tile::channel_tiles / 2>(
        [&]<int I>() { weights.template multiply<I * 32>(sums[2 * I], sums[2 * I + 1], values); });
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
