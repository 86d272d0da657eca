#pragma once

// From a tile's logits to its weights, by one warp. Fragments: lane l holds keys (or channels) l / 4 and l / 4 + 8 of
// query rows 2 · (l % 4) and the next.

#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/element.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A warp's weighted values and weights. Weights are 2^(logit - origin): the origin follows the largest logit only
/// where weights would not fit 16 bits, so that sums are seldom rescaled. It lies `head_room` below the largest logit
/// then, which keeps small weights above the smallest element.
template <class P>
struct MmaSums {
  static constexpr float most = 15;
  static constexpr float head_room = 8;

  float values[P::channel_tiles][P::query_tiles][4] = {};  ///< [channels, queries]
  float weights[P::query_tiles][2] = {};                   ///< of the lane's rows; of all rows after `gather`
  float origin[P::query_tiles][2];

  __device__ MmaSums() {
#pragma unroll
    for (auto& pair : origin) pair[0] = pair[1] = hidden_logit;
  }

  /// Adds up the lanes' weights. By all lanes
  __device__ void gather() {
#pragma unroll
    for (auto& pair : weights) {
#pragma unroll
      for (float& weight : pair) {
#pragma unroll
        for (int i = 4; i < warp_threads; i *= 2) weight += __shfl_xor_sync(~0U, weight, i);
      }
    }
  }
  /// Multiplies what query (n, j) has by a factor.
  __device__ void rescale(int n, int j, float by) {
    weights[n][j] *= by;
#pragma unroll
    for (auto& tile : values) {
      tile[n][j] *= by;
      tile[n][j + 2] *= by;
    }
  }
};

/// Moves the origins of queries with a logit that is too large. By all lanes
template <class P, class Sums>
__device__ void move_origins(Sums& sums, float const (&logits)[P::query_tiles][4]) {
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float largest = fmaxf(logits[n][j], logits[n][j + 2]);
#pragma unroll
      for (int i = 4; i < warp_threads; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, i));
      float& origin = sums.origin[n][j];
      float const to = largest - origin > Sums::most ? largest - Sums::head_room : origin;
      float const by = exp2_fast(origin - to);
      origin = to;
      sums.rescale(n, j, by);
    }
  }
}

/// From products to logits, the same for all tiles of a warp.
template <class P>
struct MmaLogits {
  float scales[P::query_tiles][2];
  bool masked;  ///< as of `MmaMask`
  float inner;  ///< of the logit map
  float outer;

  __device__ MmaLogits(P const& p, MmaShared<P::queries> const& shared)
      : masked(shared.mask.masked), inner(p.map.inner), outer(p.map.outer) {
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
#pragma unroll
    for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) scales[n][j] = shared.scales[n * 8 + lane % 4 * 2 + j];
    }
    hold(inner);
  }
};

/// Positions of a tile's rows in shared memory.
struct TilePositions {
  unsigned char const* first;
  std::int32_t pitch;  ///< bytes

  [[nodiscard]] __device__ std::int64_t of(std::int32_t row) const {
    return *reinterpret_cast<std::int64_t const*>(first + row * pitch);
  }
};

/// Which of a tile's weights a lane holds are of rows that their query does not see: bit 4n + i.
template <class P, class Rows>
__device__ std::uint32_t hidden_weights(P const& p, Rows const& rows, MmaShared<P::queries> const& shared,
                                        TilePositions const& at, std::int32_t count) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  std::uint32_t hidden = 0;
  if constexpr (has_positions<typename P::View>) {
    if (shared.mask.masked) {
      std::int64_t const positions[2] = {at.of(lane / 4), at.of(lane / 4 + 8)};
#pragma unroll
      for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          std::int64_t const query = shared.mask.first_position + shared.tokens[n * 8 + lane % 4 * 2 + j];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            bool const seen = is_seen(rows, positions[half], query, p.window);
            if (!seen) hidden |= 1U << (4 * n + 2 * half + j);
          }
        }
      }
      return hidden;
    }
  }
  if (lane / 4 >= count) hidden |= 0x33U;
  if (lane / 4 + 8 >= count) hidden |= 0xccU;
  return hidden;
}

/// The weights of a tile that queries do not see.
struct HiddenWeights {
  std::uint32_t bits = 0;  ///< the lane's: 4n + i
  bool any = false;        ///< of some lane

  [[nodiscard]] __device__ bool is(int n, int i) const { return (bits >> (4 * n + i) & 1U) != 0; }
};

/// Turns a tile's products into weights, and adds these up. @param powers  the weights
template <class P, class Sums, class Rows>
__device__ HiddenWeights weigh_logits(P const& p, Sums& sums, Rows const& rows, MmaShared<P::queries> const& shared,
                                      MmaLogits<P> const& map, TilePositions const& positions, std::int32_t count,
                                      float (&logits)[P::query_tiles][4], float (&powers)[P::query_tiles][4]) {
  auto const each = [](auto const& f) {
#pragma unroll
    for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(n, i);
    }
  };
  each([&](int n, int i) { logits[n][i] *= map.scales[n][i % 2]; });
  if (map.inner != 0) each([&](int n, int i) { logits[n][i] = tanhf(logits[n][i]) * map.outer; });
  each([&](int n, int i) { logits[n][i] = __fmaf_rn(logits[n][i], 0.0F, logits[n][i]); });  // NaN where it is infinite
  HiddenWeights hidden;
  bool const hiding = map.masked || count < mma_rows;
  if (hiding) {
    hidden.bits = hidden_weights(p, rows, shared, positions, count);
    each([&](int n, int i) { logits[n][i] = hidden.is(n, i) ? hidden_logit : logits[n][i]; });
  }
  float largest = hidden_logit;
  auto const subtract = [&](int n, int i) { powers[n][i] = logits[n][i] - sums.origin[n][i % 2]; };
  each(subtract);
  each([&](int n, int i) { largest = fmaxf(largest, powers[n][i]); });
  if (__any_sync(~0U, largest > Sums::most)) {
    move_origins<P>(sums, logits);
    each(subtract);
  }
  each([&](int n, int i) { powers[n][i] = exp2_fast(powers[n][i]); });
  if (hiding) {
    each([&](int n, int i) { powers[n][i] = hidden.is(n, i) ? 0 : powers[n][i]; });
    hidden.any = __any_sync(~0U, hidden.bits != 0) != 0;
  }
  each([&](int n, int i) { sums.weights[n][i % 2] += powers[n][i]; });
  return hidden;
}

/// Rounds weights to sums of elements, as the second product takes them. @param powers  what is left then
template <class E, int Parts, int Tiles>
__device__ void transpose_weights(float (&powers)[Tiles][4], std::uint32_t (&weights)[Parts][Tiles][2]) {
#pragma unroll
  for (int part = 0; part < Parts; ++part) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& a = powers[n][2 * half];
        float& b = powers[n][2 * half + 1];
        std::uint32_t const pair = pack_pair<E>(a, b);
        weights[part][n][half] = transpose_matrix(pair);
        float2 const rounded = unpack_pair<E>(pair);
        a -= rounded.x;
        b -= rounded.y;
      }
    }
  }
}

/// Two elements 1 side by side.
template <class E>
inline constexpr std::uint32_t ones = std::is_same_v<E, float16> ? 0x3c003c00U : 0x3f803f80U;

/// Which rows queries see, 1 or 0, as the second product takes it.
template <class E, int Tiles>
__device__ void transpose_seen(HiddenWeights const& hidden, std::uint32_t (&seen)[Tiles][2]) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t const low = hidden.is(n, 2 * half) ? 0 : 0x0000ffffU;
      std::uint32_t const high = hidden.is(n, 2 * half + 1) ? 0 : 0xffff0000U;
      seen[n][half] = transpose_matrix((low | high) & ones<E>);
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
