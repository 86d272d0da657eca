#pragma once

// One tile of 16 encoded rows by one warp: scores, and sums. As mma_tile, but operands are made of codes in registers
// (mma_codes), and ranges of channels have products of their own, by which their scales are multiplied: those of keys
// with the products, those of values with the weights. What a range adds to every channel, a minimum or the origin of
// its codes, counts once, with the sum of a query's channels or of all weights.

#include <headaware/attention/detail/cuda/coded_segment.cuh>
#include <headaware/attention/detail/cuda/coded_sums.cuh>
#include <headaware/attention/detail/cuda/coded_weights.cuh>
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
    // Products of 16 channels and the next; numbers, unlike codes, end with the row.
    auto const multiply = [&]<bool Plane, int Step>(auto& products, float(&others)[4], std::uint32_t const(&a)[4],
                                                    std::uint32_t(&next)[4]) {
      if constexpr (!Family::ranged) {
        std::int32_t const left = setup.key_channels - block * 64 - Step * 16;
        if (left <= 0) return;
        if (left <= 16) next[0] = next[1] = next[2] = next[3] = 0;
      }
      constexpr int from = (Plane ? P::plane_offset : 0) + Step * 32;
      multiply_queries<P, E, parts, from, true>(products, others, a, next, queries);
    };
    if constexpr (is_halves<Family>) {
      unrolled<2>([&]<int Two>() {
        std::uint32_t a[4];
        std::uint32_t next[4];
        if (block * 64 + Two * 32 >= setup.key_channels) return;
        load_matrices<Two * 64>(a, matrices);
        if (block * 64 + Two * 32 + 16 < setup.key_channels) load_matrices<Two * 64 + 32>(next, matrices);
        multiply.template operator()<false, Two * 2>(scores, odd, a, next);
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
            setup.key, rows, t, [&]<bool Plane, int Step>(std::uint32_t const(&a)[4], std::uint32_t(&next)[4]) {
              multiply.template operator()<Plane, Step>(own, own[0], a, next);
            });
        if constexpr (Family::ranged) {
          std::int32_t const scale_at = setup.key.scale_at + R * setup.key.range_bytes;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            auto const* const row = reinterpret_cast<unsigned char const*>(rows[half]);
            float2 range;
            if constexpr (Family::has_min) {
              range = unpack_pair<float16>(*words_at(row, scale_at));
            } else {
              range.x = half_at(row, scale_at);
            }
#pragma unroll
            for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                float& score = scores[n][2 * half + j];
                score = fmaf(own[n][2 * half + j], range.x, score);
                if constexpr (Family::has_min) score = fmaf(origin[n * 8 + j], range.y, score);
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
                                          CodedWeights<P> const& weights, float (&powers)[P::query_tiles][4]) {
  using E = typename Family::Element;
  constexpr int parts = parts_of<E, typename P::Output>;
  auto const add = [&](auto& into, auto const& a, auto const& by) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int n = 0; n < P::query_tiles; ++n) multiply_add<E>(into[n], a, by[part][n][0], by[part][n][1]);
    }
  };
  if constexpr (std::is_same_v<E, float16>) {
    for_values<P, Family>(sums, setup, tile, [&]<int Tile>(auto& into, auto const& a) {
      constexpr int range = !Family::ranged ? 0 : Family::ranges == 2 ? Tile / 2 : Tile / 4 * 2;
      add(into, a, weights.of[range]);
    });
  } else {
    std::uint32_t own[parts][P::query_tiles][2];
    transpose_weights<E>(powers, own);
    for_values<P, Family>(sums, setup, tile, [&]<int>(auto& into, auto const& a) { add(into, a, own); });
  }
}

/// Adds one tile of rows to a warp's sums.
/// @param ring  the warp's; @param stage  bytes of it before the tile; @param count  rows that are there
template <class P>
__device__ void add_tile(P const& p, CodedSums<P>& sums, CodedSegmentRows<P> const& rows,
                         MmaShared<P::queries> const& shared, CodedSetup<P> const& setup, unsigned char* ring,
                         std::uint32_t stage, std::int32_t count) {
  using Registry = typename P::Registry;
  unsigned char* const tile = ring + stage;
  float logits[P::query_tiles][4] = {};
  visit_family<Registry>(setup.key.family, [&]<class Family>(Family) { score_codes<P, Family>(setup, tile, logits); });
  float powers[P::query_tiles][4];
  HiddenWeights const hidden =
      weigh_logits(p, sums, rows, shared, setup.logits, {tile + mma_rows * setup.pitch, 8}, count, logits, powers);
  CodedWeights<P> const weights(sums, setup, tile, hidden, powers);
  if (hidden.any && setup.value.ranges == 0) clear_no_numbers(sums, setup, tile, hidden);
  visit_family<Registry>(setup.value.family,
                         [&]<class Family>(Family) { add_codes<P, Family>(sums, setup, tile, weights, powers); });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
