#pragma once

// One tile of 16 encoded rows by one warp: scores, and sums. As mma_tile, but operands are made of codes in registers
// (mma_codes), and ranges of channels have products of their own, by which their scales are multiplied: those of keys
// with the products, those of values with the weights. What a range adds to every channel, a minimum or the origin of
// its codes, counts once, with the sum of a query's channels or of all weights.

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
#include <type_traits>

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

/// Adds keys · queries to the scores.
template <class P, class Family>
__device__ __forceinline__ void score_codes(CodedSetup<P> const& setup, unsigned char const* tile,
                                            float (&scores)[P::query_tiles][4]) {
  using E = typename Family::Element;
  constexpr int parts = parts_of<E, typename P::Query>;
  std::int32_t at = setup.row;
  std::uint32_t matrices = shared_address(tile) + static_cast<std::uint32_t>(setup.matrix_row);
  std::uint32_t queries = setup.queries;
  float const* origins = setup.origins;
  float odd[4] = {};
#pragma unroll(P::channel_tiles == 8 ? 2 : 1)
  for (std::int32_t block = 0; block < P::channel_tiles / 4; ++block) {
    if (block * 64 >= setup.key_channels) break;
    if constexpr (is_halves<Family>) {
      unrolled<2>([&]<int Two>() {
        std::uint32_t a[4];
        std::uint32_t next[4];
        load_matrices<Two * 64>(a, matrices);
        load_matrices<Two * 64 + 32>(next, matrices);
        multiply_queries<P, E, parts, Two * 64, true>(scores, odd, a, next, queries);
      });
      matrices += 128;
    } else {
      std::uint32_t const* const rows[2] = {words_at(tile, at), words_at(tile, at + 8 * setup.pitch)};
      auto const t = static_cast<std::int32_t>(threadIdx.x) % 4;
      unrolled<Family::ranges>([&]<int R>() {
        float own[P::query_tiles][4] = {};
        [[maybe_unused]] float const* const origin = origins + R * P::queries;
        if constexpr (!Family::has_min && Family::ranged) {
#pragma unroll
          for (int n = 0; n < P::query_tiles; ++n) {
            own[n][0] = own[n][2] = origin[n * 8];
            own[n][1] = own[n][3] = origin[n * 8 + 1];
          }
        }
        Family::template multiply_keys<R>(
            setup.key, rows, t, [&]<bool Plane, int Step>(std::uint32_t const(&a)[4], std::uint32_t const(&next)[4]) {
              constexpr int from = (Plane ? P::plane_offset : 0) + Step * 32;
              multiply_queries<P, E, parts, from, true>(own, own[0], a, next, queries);
            });
        if constexpr (Family::ranged) {
          std::int32_t const scale = at + setup.key.scale_at + R * setup.key.range_bytes;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float const by = half_at(tile, scale + half * 8 * setup.pitch);
            [[maybe_unused]] float minimum = 0;
            if constexpr (Family::has_min) minimum = half_at(tile, scale + half * 8 * setup.pitch + 2);
#pragma unroll
            for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                float& score = scores[n][2 * half + j];
                score = fmaf(own[n][2 * half + j], by, score);
                if constexpr (Family::has_min) score = fmaf(origin[n * 8 + j], minimum, score);
              }
            }
          }
        } else {
#pragma unroll
          for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[n][i] += own[n][i];
          }
        }
      });
      at += setup.key_bytes;
      origins += 2 * P::queries;
    }
    queries += 128;
  }
  if constexpr (is_halves<Family> && P::query_tiles == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[0][i] += odd[i];
  }
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
    float2 rows[count][2];
    float largest = 0;
    unrolled<count>([&]<int I>() {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        rows[I][half] = {};
        if (I * 32 >= setup.value_channels || I % 2 >= ranges) continue;
        std::int32_t const at =
            setup.scales + half * 8 * setup.pitch + I / 2 * setup.value_bytes + I % 2 * setup.value.range_bytes;
        rows[I][half].x = half_at(tile, at);
        if (I % 2 == 0 && minima) rows[I][half].y = half_at(tile, at + 2);
      }
    });
    if (hidden.any) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) hide_no_numbers<P>(rows[i][half], half, powers, sums.common[i]);
      }
    }
#pragma unroll
    for (auto const& range : rows) largest = fmaxf(largest, fmaxf(fabsf(range[0].x), fabsf(range[1].x)));
    if (__any_sync(~0U, largest * sums.unit > 1)) sums.take_unit(largest, minima);
    // The code of a channel that is 0, in all channels: the product is what it counts for.
    std::uint32_t const origin = 0x80008000U | static_cast<std::uint32_t>(setup.value.origin) * 0x00010001U;
    unrolled<count>([&]<int I>() {
      if (I * 32 >= setup.value_channels || I % 2 >= ranges) return;
      float scaled[P::query_tiles][4];
#pragma unroll
      for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scaled[n][i] = powers[n][i] * (rows[I][i / 2].x * sums.unit);
      }
      transpose_weights<float16>(scaled, of[I]);
      if (I % 2 == 0 && minima) {
#pragma unroll
        for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& common = sums.common[I][n][i % 2];
            common = fmaf(powers[n][i], rows[I][i / 2].y, common);
          }
        }
        return;
      }
      std::uint32_t const a[4] = {origin, origin, origin, origin};
#pragma unroll
      for (int n = 0; n < P::query_tiles; ++n) {
        float counts[4] = {};
#pragma unroll
        for (int part = 0; part < parts; ++part) {
          multiply_add<float16>(counts, a, of[I][part][n][0], of[I][part][n][1]);
        }
        sums.common[I][n][0] += counts[0];
        sums.common[I][n][1] += counts[1];
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

/// Calls `multiply.operator()<Tile>(sums, a)` with the operands of every 16 channels of values.
template <class P, class Family, class Multiply>
__device__ __forceinline__ void for_values(CodedSums<P>& sums, CodedSetup<P> const& setup, unsigned char const* tile,
                                           Multiply const& multiply) {
  auto const g = static_cast<std::int32_t>(threadIdx.x) % warp_threads / 4;
  unrolled<P::channel_tiles / 4>([&]<int Block>() {
    if (Block * 64 >= setup.value_channels) return;
    unsigned char const* const rows = tile + setup.tokens + Block * setup.value_bytes;
    auto const values = [&](std::int32_t row) {
      return typename Family::Values(setup.value, words_at(rows, row * setup.pitch),
                                     words_at(rows, (row + 1) * setup.pitch), g);
    };
    typename Family::Values const first = values(0);
    typename Family::Values const second = values(8);
    unrolled<4>([&]<int I>() {
      std::uint32_t a[4];
      first.template rows<I>(a[0], a[1]);
      second.template rows<I>(a[2], a[3]);
      multiply.template operator()<Block * 4 + I>(sums.values[Block * 4 + I], a);
    });
  });
}

/// Adds weights · values to a warp's sums.
template <class P, class Family>
__device__ __forceinline__ void add_codes(CodedSums<P>& sums, CodedSetup<P> const& setup, unsigned char const* tile,
                                          HiddenWeights const& hidden, CodedWeights<P> const& weights,
                                          float const (&powers)[P::query_tiles][4]) {
  using E = typename Family::Element;
  constexpr int parts = parts_of<E, typename P::Output>;
  auto const add = [&](auto& into, auto const& a, auto const& by) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int n = 0; n < P::query_tiles; ++n) multiply_add<E>(into[n], a, by[part][n][0], by[part][n][1]);
    }
  };
  if constexpr (Family::ranged) {
    for_values<P, Family>(sums, setup, tile, [&]<int Tile>(auto& into, auto const& a) {
      add(into, a, weights.of[Family::ranges == 2 ? Tile / 2 : Tile / 4 * 2]);
    });
  } else {
    std::uint32_t own[parts][P::query_tiles][2];
    if constexpr (std::is_same_v<E, float16>) {
#pragma unroll
      for (int i = 0; i < parts * P::query_tiles * 2; ++i) {
        own[i / 2 / P::query_tiles][i / 2 % P::query_tiles][i % 2] =
            weights.of[0][i / 2 / P::query_tiles][i / 2 % P::query_tiles][i % 2];
      }
    } else {
      float rest[P::query_tiles][4];
      CodedWeights<P>::copy(powers, rest);
      transpose_weights<E>(rest, own);
    }
    if (hidden.any) {
      std::uint32_t seen[P::query_tiles][2];
      transpose_seen<E>(hidden, seen);
      for_values<P, Family>(sums, setup, tile,
                            [&]<int>(auto& into, auto& a) { multiply_seen<P, E, parts>(into, a, own, seen); });
    } else {
      for_values<P, Family>(sums, setup, tile, [&]<int>(auto& into, auto const& a) { add(into, a, own); });
    }
  }
}

/// Adds one tile of rows to a warp's sums.
/// @param ring  the warp's; @param stage  bytes of it before the tile; @param count  rows that are there
template <class P>
__device__ void add_tile(P const& p, CodedSums<P>& sums, CodedSegmentRows<P> const& rows,
                         MmaShared<P::queries> const& shared, CodedSetup<P> const& setup, unsigned char const* ring,
                         std::uint32_t stage, std::int32_t count) {
  using Registry = typename P::Registry;
  unsigned char const* const tile = ring + stage;
  float logits[P::query_tiles][4] = {};
  visit_family<Registry>(setup.key.family, [&]<class Family>(Family) { score_codes<P, Family>(setup, tile, logits); });
  float powers[P::query_tiles][4];
  HiddenWeights const hidden =
      weigh_logits(p, sums, rows, shared, setup.logits, {tile + mma_rows * setup.pitch, 8}, count, logits, powers);
  CodedWeights<P> const weights(sums, setup, tile, hidden, powers);
  visit_family<Registry>(setup.value.family, [&]<class Family>(Family) {
    add_codes<P, Family>(sums, setup, tile, hidden, weights, powers);
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
