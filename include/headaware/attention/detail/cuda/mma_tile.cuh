#pragma once

// One tile of 16 rows of 16-bit elements by one warp: scores, and sums.

#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_weights.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/element.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Adds products of 16 keys, and of the next 16 channels if `Both`, to the scores. @param odd  adds up every second
/// product of one tile of queries, so that they wait for each other half as long
/// @tparam E  elements, of which a query is the sum of `Parts`
template <class P, class E, int Parts, int Offset, bool Both>
__device__ void multiply_queries(float (&scores)[P::query_tiles][4], float (&odd)[4], std::uint32_t const (&a)[4],
                                 std::uint32_t const (&next)[4], std::uint32_t queries) {
  unrolled<Parts>([&]<int Part>() {
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

/// Adds keys · queries of 32 channels, or of 16, to the scores. @param odd  as `multiply_queries`
template <class P, int Offset, bool Both>
__device__ void score_step(float (&scores)[P::query_tiles][4], float (&odd)[4], std::uint32_t keys,
                           std::uint32_t queries) {
  std::uint32_t a[4];
  std::uint32_t next[4];
  load_matrices<Offset>(a, keys);
  if constexpr (Both) load_matrices<Offset + 32>(next, keys);
  multiply_queries<P, typename P::Element, P::query_parts, Offset, Both>(scores, odd, a, next, queries);
}

/// Adds keys · queries to the scores. @param keys, queries  shared addresses of the lane's rows
/// @param steps  of 16 channels
/// @tparam Steps  the most of them
template <class P, int Steps = P::channel_tiles>
__device__ void score_keys(float (&scores)[P::query_tiles][4], std::uint32_t keys, std::uint32_t queries,
                           std::int32_t steps) {
  float odd[4] = {};
  unrolled<Steps / 4>([&]<int I>() {
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

/// What is the same for all tiles of a warp.
template <class P>
struct MmaTileSetup {
  MmaLogits<P> logits;
  std::uint32_t queries;  ///< shared addresses: `query_address`
  std::uint32_t keys;     ///< of the ring's first stage, where the lane's matrices begin
  std::uint32_t values;
  std::int32_t key_steps;  ///< 16 channels each
  std::int32_t value_channels;

  /// @param queries, ring  the block's, and the warp's
  template <class Rows>
  __device__ MmaTileSetup(P const& p, MmaShared<P::queries> const& shared, Rows const&, unsigned char const* queries_at,
                          unsigned char const* ring)
      : logits(p, shared),
        queries(query_address<P>(queries_at)),
        keys(key_address<P>(ring)),
        values(value_address<P>(ring)),
        key_steps(static_cast<std::int32_t>(p.shape.head_dim) / 16),
        value_channels(static_cast<std::int32_t>(p.shape.output_dim())) {
    hold(key_steps);
    hold(value_channels);
    hold(keys);
    hold(values);
  }
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

/// All bits of those of two elements side by side that are no numbers, or infinite: whose exponent has all bits.
template <class E>
__device__ std::uint32_t no_number_mask(std::uint32_t pair) {
  constexpr std::uint32_t exponents = std::is_same_v<E, float16> ? 0x7c007c00U : 0x7f807f80U;
  constexpr std::uint32_t last = exponents & ~(exponents << 1);  // of the exponents' bits
  std::uint32_t const carries = ((pair & exponents) + last) & 0x80008000U;
  return (carries >> 15) * 0xffffU;
}

/// Adds weights · values of 16 channels to their sums, where queries do not see some rows, whose values may be no
/// numbers: 0 · NaN is no 0. The product takes zeros for such values, and another one counts those that a query sees,
/// which make its sum NaN.
/// @param seen  1 where the query sees the row, as the product takes it
template <class P, class E, int Parts>
__device__ void multiply_seen(float (&sums)[P::query_tiles][4], std::uint32_t (&a)[4],
                              std::uint32_t const (&weights)[Parts][P::query_tiles][2],
                              std::uint32_t const (&seen)[P::query_tiles][2]) {
  std::uint32_t bad[4];
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
      if (counts[i] != 0) sums[n][i] = NAN;
    }
#pragma unroll
    for (int part = 0; part < Parts; ++part) multiply_add<E>(sums[n], a, weights[part][n][0], weights[part][n][1]);
  }
}

/// The same of all channels.
template <class P>
__device__ void add_seen_values(MmaSums<P>& sums, std::uint32_t const (&weights)[P::weight_parts][P::query_tiles][2],
                                std::uint32_t const (&seen)[P::query_tiles][2], std::uint32_t values,
                                std::int32_t channels) {
#pragma unroll
  for (int tile = 0; tile < P::channel_tiles; ++tile) {
    if (tile * 16 >= channels) break;
    std::uint32_t a[4];
    load_matrices_transposed(a, values + tile * 32);
    multiply_seen<P, typename P::Element, P::weight_parts>(sums.values[tile], a, weights, seen);
  }
}

/// Adds one tile of rows to a warp's sums.
/// @param ring  the warp's; @param stage  bytes of it before the tile; @param count  rows that are there
template <class P, class Rows>
__device__ void add_tile(P const& p, MmaSums<P>& sums, Rows const& rows, MmaShared<P::queries> const& shared,
                         MmaTileSetup<P> const& setup, unsigned char const* ring, std::uint32_t stage,
                         std::int32_t count) {
  using E = typename P::Element;
  float logits[P::query_tiles][4] = {};
  score_keys<P>(logits, setup.keys + stage, setup.queries, setup.key_steps);
  float powers[P::query_tiles][4];
  HiddenWeights const hidden = weigh_logits(p, sums, rows, shared, setup.logits,
                                            {ring + stage + P::pitch - 16, P::pitch}, count, logits, powers);
  std::uint32_t weights[P::weight_parts][P::query_tiles][2];
  transpose_weights<E>(powers, weights);
  if (hidden.any) {
    std::uint32_t seen[P::query_tiles][2];
    transpose_seen<E>(hidden, seen);
    add_seen_values(sums, weights, seen, setup.values + stage, setup.value_channels);
  } else {
    add_values(sums, weights, setup.values + stage, setup.value_channels);
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
