#pragma once

// One tile of 16 rows by one warp: scores, weights, sums. Fragments: lane l holds keys (or channels) l / 4 and
// l / 4 + 8 of query rows 2 · (l % 4) and the next.

#include <headaware/attention/detail/cuda/mma_fetch.cuh>
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
  /// Moves the origins of queries with a logit that is too large. By all lanes
  __device__ void move_origins(float const (&logits)[P::query_tiles][4]) {
#pragma unroll
    for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float largest = fmaxf(logits[n][j], logits[n][j + 2]);
#pragma unroll
        for (int i = 4; i < warp_threads; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, i));
        float const to = largest - origin[n][j] > most ? largest - head_room : origin[n][j];
        float const by = exp2_fast(origin[n][j] - to);
        origin[n][j] = to;
        weights[n][j] *= by;
#pragma unroll
        for (auto& tile : values) {
          tile[n][j] *= by;
          tile[n][j + 2] *= by;
        }
      }
    }
  }
};

/// Adds keys · queries of 32 channels, or of 16, to the scores. @param odd  adds up every second product of one tile of
/// queries, so that they wait for each other half as long
template <class P, int Offset, bool Both>
__device__ void score_step(float (&scores)[P::query_tiles][4], float (&odd)[4], std::uint32_t keys,
                           std::uint32_t queries) {
  using E = typename P::Element;
  std::uint32_t a[4];
  std::uint32_t next[4];
  load_matrices<Offset>(a, keys);
  if constexpr (Both) load_matrices<Offset + 32>(next, keys);
  unrolled<P::query_parts>([&]<int Part>() {
    constexpr int at = Part * P::query_bytes + Offset;
    std::uint32_t b[4];
    load_matrices<at>(b, queries);
    multiply_add<E>(scores[0], a, b[0], b[1]);
    if constexpr (P::query_tiles == 1) {
      if constexpr (Both) multiply_add<E>(odd, next, b[2], b[3]);
    } else {
      multiply_add<E>(scores[1], a, b[2], b[3]);
      if constexpr (Both) {
        load_matrices<at + 32>(b, queries);
        multiply_add<E>(scores[0], next, b[0], b[1]);
        multiply_add<E>(scores[1], next, b[2], b[3]);
      }
    }
  });
}

/// Adds keys · queries to the scores. @param keys, queries  shared addresses of the lane's rows
/// @param steps  of 16 channels
template <class P>
__device__ void score_keys(float (&scores)[P::query_tiles][4], std::uint32_t keys, std::uint32_t queries,
                           std::int32_t steps) {
  float odd[4] = {};
  unrolled<P::channel_tiles / 4>([&]<int I>() {
    if (steps < 4 * I + 4) return;
    score_step<P, I * 128, true>(scores, odd, keys, queries);
    score_step<P, I * 128 + 64, true>(scores, odd, keys, queries);
  });
#pragma unroll 1
  for (std::int32_t step = steps / 4 * 4; step < steps; ++step) {
    auto const at = static_cast<std::uint32_t>(step) * 32;
    score_step<P, 0, false>(scores, odd, keys + at, queries + at);
  }
  if constexpr (P::query_tiles == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[0][i] += odd[i];
  }
}

/// The shared address at which a lane's row of the queries begins, as `score_keys` takes it.
template <class P>
__device__ std::uint32_t query_address(unsigned char const* queries) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  std::int32_t const row = P::query_tiles == 1 ? lane % 8 : lane % 8 + lane / 16 * 8;
  std::int32_t const column = P::query_tiles == 1 ? lane / 8 : lane / 8 % 2;
  return shared_address(queries + row * P::pitch + column * 16);
}

/// The same of keys and of values, from a stage of the ring on.
template <class P>
__device__ std::uint32_t key_address(unsigned char const* stage) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  return shared_address(stage + lane % 16 * P::pitch + lane / 16 * 16);
}
template <class P>
__device__ std::uint32_t value_address(unsigned char const* stage) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  return shared_address(stage + P::value_offset + (lane % 8 + lane / 16 * 8) * P::pitch + lane / 8 % 2 * 16);
}

/// Which of a tile's weights a lane holds are of rows that their query does not see: bit 4n + i.
template <class P, class Rows>
__device__ std::uint32_t hidden_weights(P const& p, Rows const& rows, MmaShared<P::queries> const& shared,
                                        unsigned char const* keys, std::int32_t count) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  std::uint32_t hidden = 0;
  if constexpr (has_positions<typename P::View>) {
    if (shared.mask.masked) {
      std::int64_t positions[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        positions[half] = *reinterpret_cast<std::int64_t const*>(keys + (lane / 4 + half * 8 + 1) * P::pitch - 16);
      }
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

/// What is the same for all tiles of a warp.
template <class P>
struct MmaTileSetup {
  std::uint32_t queries;  ///< shared addresses: `query_address`
  std::uint32_t keys;     ///< of the ring's first stage, where the lane's matrices begin
  std::uint32_t values;
  float scales[P::query_tiles][2];
  std::int32_t key_steps;  ///< 16 channels each
  std::int32_t value_channels;
  bool masked;  ///< as of `MmaMask`
  float inner;  ///< of the logit map
  float outer;
};

/// Adds weights · values to a warp's sums. @param values  shared address
template <class P>
__device__ void add_values(MmaSums<P>& sums, std::uint32_t const (&weights)[P::weight_parts][P::query_tiles][2],
                           std::uint32_t values, std::int32_t channels) {
  using E = typename P::Element;
  unrolled<P::channel_tiles / 4>([&]<int I>() {
    if (I * 64 >= channels) return;
    unrolled<4>([&]<int K>() {  // after the last channel comes what no output shows
      constexpr int tile = I * 4 + K;
      std::uint32_t a[4];
      load_matrices_transposed<tile * 32>(a, values);
#pragma unroll
      for (int part = 0; part < P::weight_parts; ++part) {
#pragma unroll
        for (int n = 0; n < P::query_tiles; ++n) {
          multiply_add<E>(sums.values[tile][n], a, weights[part][n][0], weights[part][n][1]);
        }
      }
    });
  });
}

/// Two elements 1 side by side.
template <class E>
inline constexpr std::uint32_t ones = std::is_same_v<E, float16> ? 0x3c003c00U : 0x3f803f80U;

/// All bits of those of two elements side by side that are no numbers, or infinite: whose exponent has all bits.
template <class E>
__device__ std::uint32_t no_number_mask(std::uint32_t pair) {
  constexpr std::uint32_t exponents = std::is_same_v<E, float16> ? 0x7c007c00U : 0x7f807f80U;
  constexpr std::uint32_t last = exponents & ~(exponents << 1);  // of the exponents' bits
  std::uint32_t const carries = ((pair & exponents) + last) & 0x80008000U;
  return (carries >> 15) * 0xffffU;
}

/// The same where queries do not see some rows, whose values may be no numbers: 0 · NaN is no 0. The product takes
/// zeros for such values, and another one counts those that a query sees, which make its sum NaN.
/// @param seen  1 where the query sees the row, as the product takes it
template <class P>
__device__ void add_seen_values(MmaSums<P>& sums, std::uint32_t const (&weights)[P::weight_parts][P::query_tiles][2],
                                std::uint32_t const (&seen)[P::query_tiles][2], std::uint32_t values,
                                std::int32_t channels) {
  using E = typename P::Element;
#pragma unroll
  for (int tile = 0; tile < P::channel_tiles; ++tile) {
    if (tile * 16 >= channels) break;
    std::uint32_t a[4];
    std::uint32_t bad[4];
    load_matrices_transposed(a, values + tile * 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t const no_numbers = no_number_mask<E>(a[i]);
      a[i] &= ~no_numbers;
      bad[i] = no_numbers & ones<E>;
    }
#pragma unroll
    for (int n = 0; n < P::query_tiles; ++n) {
      float counts[4] = {};
      multiply_add<E>(counts, bad, seen[n][0], seen[n][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (counts[i] != 0) sums.values[tile][n][i] = NAN;
      }
#pragma unroll
      for (int part = 0; part < P::weight_parts; ++part) {
        multiply_add<E>(sums.values[tile][n], a, weights[part][n][0], weights[part][n][1]);
      }
    }
  }
}

/// Adds one tile of rows to a warp's sums.
/// @param ring  the warp's; @param stage  bytes of it before the tile; @param count  rows that are there
template <class P, class Rows>
__device__ void add_tile(P const& p, MmaSums<P>& sums, Rows const& rows, MmaShared<P::queries> const& shared,
                         MmaTileSetup<P> const& setup, unsigned char const* ring, std::uint32_t stage,
                         std::int32_t count) {
  using E = typename P::Element;
  constexpr int tiles = P::query_tiles;
  auto const each = [](auto const& f) {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(n, i);
    }
  };
  float logits[tiles][4] = {};
  score_keys<P>(logits, setup.keys + stage, setup.queries, setup.key_steps);
  each([&](int n, int i) { logits[n][i] *= setup.scales[n][i % 2]; });
  if (setup.inner != 0) each([&](int n, int i) { logits[n][i] = tanhf(logits[n][i]) * setup.outer; });
  each([&](int n, int i) { logits[n][i] = __fmaf_rn(logits[n][i], 0.0F, logits[n][i]); });  // NaN where it is infinite
  std::uint32_t hidden = 0;
  auto const is_hidden = [&](int n, int i) { return (hidden >> (4 * n + i) & 1U) != 0; };
  bool const hiding = setup.masked || count < mma_rows;
  if (hiding) {
    hidden = hidden_weights(p, rows, shared, ring + stage, count);
    each([&](int n, int i) { logits[n][i] = is_hidden(n, i) ? hidden_logit : logits[n][i]; });
  }
  float powers[tiles][4];
  float largest = hidden_logit;
  auto const subtract = [&](int n, int i) { powers[n][i] = logits[n][i] - sums.origin[n][i % 2]; };
  each(subtract);
  each([&](int n, int i) { largest = fmaxf(largest, powers[n][i]); });
  if (__any_sync(~0U, largest > MmaSums<P>::most)) {
    sums.move_origins(logits);
    each(subtract);
  }
  each([&](int n, int i) { powers[n][i] = exp2_fast(powers[n][i]); });
  if (hiding) each([&](int n, int i) { powers[n][i] = is_hidden(n, i) ? 0 : powers[n][i]; });
  each([&](int n, int i) { sums.weights[n][i % 2] += powers[n][i]; });
  std::uint32_t weights[P::weight_parts][tiles][2];
#pragma unroll
  for (int part = 0; part < P::weight_parts; ++part) {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
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
  if (hiding && __any_sync(~0U, hidden != 0)) {
    std::uint32_t seen[tiles][2];
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t const low = is_hidden(n, 2 * half) ? 0 : 0x0000ffffU;
        std::uint32_t const high = is_hidden(n, 2 * half + 1) ? 0 : 0xffff0000U;
        seen[n][half] = transpose_matrix((low | high) & ones<E>);
      }
    }
    add_seen_values(sums, weights, seen, setup.values + stage, setup.value_channels);
  } else {
    add_values(sums, weights, setup.values + stage, setup.value_channels);
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
