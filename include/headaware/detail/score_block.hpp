#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Blocking of the score computation: `rows` queries against `strip` keys in registers, `block_rows`
/// queries against `block_keys` keys in the first-level caches, `pack_rows` queries to each packed key block.
struct ScoreBlocking {
  static constexpr int vectors = simd::registers == 32 ? 3 : 2;
  static constexpr int rows = simd::registers == 32 ? 8 : 6;
  static constexpr int strip = vectors * simd::lanes;
  static constexpr int block_rows = rows * 8;
  static constexpr int block_keys = strip * (simd::registers == 32 ? 8 : 16);
  static constexpr int pack_rows = block_rows * 8;
};

/// Computes scores[row][key] = queries[row] · keys[key] for `num_rows` rows, a multiple of ScoreBlocking::rows, and the
/// strips that `keys` reach.
/// @param queries  [num_rows, head_dim]; @param packed  [strips, head_dim, strip]; @param scores  [num_rows,
/// block_keys]
inline void score_block(float const* queries, float const* packed, std::int64_t head_dim, std::int64_t keys,
                        float* scores, std::int64_t num_rows = ScoreBlocking::block_rows) {
  using B = ScoreBlocking;
  for (std::int64_t first = 0; first < keys; first += B::strip) {
    float const* const strip = packed + first * head_dim;
    for (std::int64_t row = 0; row < num_rows; row += B::rows) {
      simd::Floats sums[B::rows][B::vectors] = {};
      for (std::int64_t d = 0; d < head_dim; ++d) {
        simd::Floats key[B::vectors];
        for (int v = 0; v < B::vectors; ++v) key[v] = simd::load(strip + d * B::strip + v * simd::lanes);
        for (int r = 0; r < B::rows; ++r) {
          float const query = queries[(row + r) * head_dim + d];
          for (int v = 0; v < B::vectors; ++v) sums[r][v] += query * key[v];
        }
      }
      for (int r = 0; r < B::rows; ++r) {
        for (int v = 0; v < B::vectors; ++v) {
          simd::store(scores + (row + r) * B::block_keys + first + v * simd::lanes, sums[r][v]);
        }
      }
    }
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
