#pragma once

// Weights of a tile's encoded values: scaled by ranges of channels, and free of what queries do not see.

#include <headaware/attention/detail/cuda/coded_segment.cuh>
#include <headaware/attention/detail/cuda/coded_sums.cuh>
#include <headaware/attention/detail/cuda/mma_numbers.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_tile.cuh>
#include <headaware/attention/detail/cuda/mma_weights.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// What is the same for all tiles of a warp.
template <class P>
struct CodedSetup {
  MmaLogits<P> logits;
  CodeShape const& key;
  CodeShape const& value;
  std::uint32_t queries;    ///< shared address: `query_address`
  float const* origins;     ///< of the lane's queries
  std::int32_t pitch;       ///< bytes between rows
  std::int32_t row;         ///< bytes of a tile before the first of the lane's rows as keys; 8 rows on is the other one
  std::int32_t matrix_row;  ///< the same of a row of matrices of elements
  std::int32_t tokens;      ///< the same of its values: two rows, and two 8 rows on
  std::int32_t scales;      ///< the same of values' scales, in the rows of keys
  std::int32_t key_bytes;   ///< of 64 channels
  std::int32_t value_bytes;
  std::int32_t key_channels;
  std::int32_t value_channels;

  __device__ CodedSetup(P const& p, MmaShared<P::queries> const& shared, CodedSegmentRows<P> const& rows,
                        unsigned char const* queries_at, unsigned char const*)
      : logits(p, shared),
        key(rows.codes->key),
        value(rows.codes->value),
        queries(query_address<P>(queries_at)),
        key_bytes(key.words * 4),
        value_bytes(value.words * 4),
        key_channels(static_cast<std::int32_t>(p.shape.head_dim)),
        value_channels(static_cast<std::int32_t>(p.shape.output_dim())) {
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
    std::int32_t const values = rows.codes->key_words * 4;
    origins = reinterpret_cast<float const*>(queries_at + P::origin_offset) + lane % 4 * 2;
    pitch = static_cast<std::int32_t>(CodedRowSizes<typename P::Registry>::pitch(rows.codes->units));
    row = lane / 4 * pitch;
    matrix_row = lane % 16 * pitch + lane / 16 * 16;
    tokens = lane % 4 * 2 * pitch + values;
    scales = row + values + value.scale_at;
    hold(pitch);
    hold(row);
    hold(tokens);
    hold(scales);
    hold(key_bytes);
    hold(value_bytes);
    hold(key_channels);
    hold(value_channels);
  }
};

__device__ inline std::uint32_t const* words_at(unsigned char const* tile, std::int32_t bytes) {
  return reinterpret_cast<std::uint32_t const*>(tile + bytes);
}
/// A scale, or a minimum, in half precision.
__device__ inline float half_at(unsigned char const* tile, std::int32_t bytes) {
  return element_value(*reinterpret_cast<float16 const*>(tile + bytes));
}

/// Makes zeros of a range of a row that queries do not see, which may be anything: 0 · NaN is no 0, and units follow
/// scales. Queries that do see a row that is no number get it by what their sums have in common. By all lanes
/// @param row  scale and minimum of a range in the lane's first or second row, `half`
template <class P>
__device__ __forceinline__ void hide_no_numbers(float2& row, int half, float const (&powers)[P::query_tiles][4],
                                                float (&common)[P::query_tiles][2]) {
  bool const bad = !(fabsf(row.x) + fabsf(row.y) < INFINITY);
  float seen_by_own = 0;
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) seen_by_own += powers[n][2 * half] + powers[n][2 * half + 1];
  if (bad || seen_by_own == 0) row = {};
  if (!__any_sync(~0U, bad)) return;
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      // The lanes of a query are those that are 4 apart.
      unsigned const seen = __ballot_sync(~0U, bad && powers[n][2 * half + j] != 0);
      if ((seen >> (threadIdx.x % 4) & 0x11111111U) != 0) common[n][j] = NAN;
    }
  }
}

/// Weights as values' products take them, by ranges of 32 channels, or of 64 the first of two; [0]: of all channels.
template <class P>
struct CodedWeights {
  static constexpr int parts = parts_of<float16, typename P::Output>;
  static constexpr int count = P::channel_tiles / 2;
  std::uint32_t of[count][parts][P::query_tiles][2];

  /// Scales weights by ranges, and adds up what these have in common. By all lanes
  __device__ __forceinline__ CodedWeights(CodedSums<P>& sums, CodedSetup<P> const& setup, unsigned char const* tile,
                                          HiddenWeights const& hidden, float const (&powers)[P::query_tiles][4]) {
    std::int32_t const ranges = setup.value.ranges;
    if (ranges == 0) {
      float own[P::query_tiles][4];
      copy(powers, own);
      transpose_weights<float16>(own, of[0]);
      return;
    }
    bool const minima = setup.value.has_min;
    float2 rows[count][2] = {};
    float largest = 0;
    unsigned char const* at[2] = {tile + setup.scales, tile + setup.scales + 8 * setup.pitch};
    unrolled<count / 2>([&]<int Block>() {
      if (Block * 64 >= setup.value_channels) return;
      float2(&first)[2] = rows[2 * Block];
      float2(&second)[2] = rows[2 * Block + 1];
      first[0].x = half_at(at[0], 0);
      first[1].x = half_at(at[1], 0);
      largest = fmaxf(largest, fmaxf(fabsf(first[0].x), fabsf(first[1].x)));
      if (minima) {
        first[0].y = half_at(at[0], 2);
        first[1].y = half_at(at[1], 2);
      } else if (ranges == 2) {
        second[0].x = half_at(at[0], setup.value.range_bytes);
        second[1].x = half_at(at[1], setup.value.range_bytes);
        largest = fmaxf(largest, fmaxf(fabsf(second[0].x), fabsf(second[1].x)));
      }
      at[0] += setup.value_bytes;
      at[1] += setup.value_bytes;
    });
    if (hidden.any) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) hide_no_numbers<P>(rows[i][half], half, powers, sums.common[i]);
      }
      largest = 0;
#pragma unroll
      for (auto const& range : rows) largest = fmaxf(largest, fmaxf(fabsf(range[0].x), fabsf(range[1].x)));
    }
    if (__any_sync(~0U, largest * sums.unit > 1)) sums.take_unit(largest, minima);
    // The code of a channel that is 0, or in the middle of those above a minimum, in all channels: the product is what
    // it counts for with rounded weights; with a minimum, channels are distances from the middle, which has weights as
    // they are. The eight lanes of a query add up what they have in common then.
    auto const middle = static_cast<float>(setup.value.origin);
    float const counted = minima ? setup.value.factor / sums.unit / 8 : 1.0F;
    std::uint32_t const origin = 0x80008000U | static_cast<std::uint32_t>(setup.value.origin) * 0x00010001U;
    unrolled<count>([&]<int I>() {
      if (I / 2 * 64 >= setup.value_channels || I % 2 >= ranges) return;
      float scaled[P::query_tiles][4];
#pragma unroll
      for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scaled[n][i] = powers[n][i] * (rows[I][i / 2].x * sums.unit);
      }
      transpose_weights<float16>(scaled, of[I]);
      if (minima) {
        float const middles[2] = {fmaf(middle, rows[I][0].x, rows[I][0].y), fmaf(middle, rows[I][1].x, rows[I][1].y)};
#pragma unroll
        for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& common = sums.common[I][n][i % 2];
            common = fmaf(powers[n][i], middles[i / 2], common);
          }
        }
      }
      std::uint32_t const a[4] = {origin, origin, origin, origin};
#pragma unroll
      for (int n = 0; n < P::query_tiles; ++n) {
        float counts[4] = {};
#pragma unroll
        for (int part = 0; part < parts; ++part) {
          multiply_add<float16>(counts, a, of[I][part][n][0], of[I][part][n][1]);
        }
        sums.common[I][n][0] = fmaf(counts[0], counted, sums.common[I][n][0]);
        sums.common[I][n][1] = fmaf(counts[1], counted, sums.common[I][n][1]);
      }
    });
  }

  __device__ static void copy(float const (&from)[P::query_tiles][4], float (&to)[P::query_tiles][4]) {
#pragma unroll
    for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[n][i] = from[n][i];
    }
  }
};

/// Makes zeros of values that are no numbers in rows that some queries do not see: 0 · NaN is no 0. Sums of queries
/// that do see them become NaN. By all lanes; of values without ranges
template <class P>
__device__ void clear_no_numbers(CodedSums<P>& sums, CodedSetup<P> const& setup, unsigned char* tile,
                                 HiddenWeights const& hidden) {
  CodeShape const& shape = setup.value;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  std::int32_t const row = lane % mma_rows;
  std::uint32_t seen = 0;  // by query 8 n + 2 t + j: bit 8 n + 4 j + t
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::uint32_t const rows[2] = {__ballot_sync(~0U, !hidden.is(n, j)), __ballot_sync(~0U, !hidden.is(n, j + 2))};
      seen |= ((row < 8 ? rows[0] : rows[1]) >> (row % 8 * 4) & 15U) << (8 * n + 4 * j);
    }
  }
  std::int32_t const values_at = setup.tokens - lane % 4 * 2 * setup.pitch;
  auto* const words = reinterpret_cast<std::uint32_t*>(tile + row * setup.pitch + values_at);
  std::int32_t const per_word = (shape.signs & 0x80U) != 0 ? 4 : 2;
#pragma unroll 1
  for (std::int32_t pair = 0; pair < shape.row_words(setup.value_channels); pair += 2) {
    std::uint32_t word = words[pair + lane / mma_rows];
    std::uint32_t bad = ((word & ~shape.signs) + shape.beyond) & shape.signs;
    if (seen == 0) word = bad = 0;
    for (std::uint32_t lanes = __ballot_sync(~0U, bad != 0); lanes != 0; lanes = __ballot_sync(~0U, bad != 0)) {
      std::int32_t const leader = __ffs(static_cast<int>(lanes)) - 1;
      std::uint32_t const queries = __shfl_sync(~0U, seen, leader);
      std::int32_t const sign = __ffs(static_cast<int>(__shfl_sync(~0U, bad, leader))) - 1;
      std::int32_t const channel = (pair + leader / mma_rows) * per_word + sign * per_word / 32;
      if (lane == leader) {
        word &= ~((per_word == 4 ? 0xffU : 0xffffU) << (sign / (32 / per_word) * (32 / per_word)));
        bad &= bad - 1;
      }
#pragma unroll
      for (int m = 0; m < P::channel_tiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          CodePlaces const& places = shape.places;
          std::int32_t const own = m / 4 * 64 + half * places.of_half + m % 4 / 2 * places.of_pair +
                                   m % 2 * places.of_tile + lane / 4 * places.of_lane;
          if (own != channel) continue;
#pragma unroll
          for (int i = 0; i < P::query_tiles * 2; ++i) {
            if ((queries >> (4 * i + lane % 4) & 1U) != 0) sums.values[m][i / 2][i % 2 + 2 * half] = NAN;
          }
        }
      }
    }
    __syncwarp();  // products of keys may have looked at what follows them
    words[pair + lane / mma_rows] = word;
  }
  __syncwarp();
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
