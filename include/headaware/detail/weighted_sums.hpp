#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Adds sums[r][·] += Σ_k weights[r][k] · values[k][·] for ScoreBlocking::rows rows.
/// @param weights  rows at `weight_pitch`; @param values  [keys, channels]; @param sums  rows at `sum_pitch`
/// @param channels a multiple of 2 · lanes (padded)
inline void add_weighted(float const* weights, std::int64_t weight_pitch, float const* values, std::int64_t keys,
                         std::int64_t channels, float* sums, std::int64_t sum_pitch) {
  constexpr int rows = ScoreBlocking::rows;
  for (std::int64_t c = 0; c < channels; c += 2 * simd::lanes) {
    simd::Floats total[rows][2];
    for (int r = 0; r < rows; ++r) {
      total[r][0] = simd::load(sums + r * sum_pitch + c);
      total[r][1] = simd::load(sums + r * sum_pitch + c + simd::lanes);
    }
    for (std::int64_t k = 0; k < keys; ++k) {
      simd::Floats const a = simd::load(values + k * channels + c);
      simd::Floats const b = simd::load(values + k * channels + c + simd::lanes);
      for (int r = 0; r < rows; ++r) {
        float const weight = weights[r * weight_pitch + k];
        total[r][0] += weight * a;
        total[r][1] += weight * b;
      }
    }
    for (int r = 0; r < rows; ++r) {
      simd::store(sums + r * sum_pitch + c, total[r][0]);
      simd::store(sums + r * sum_pitch + c + simd::lanes, total[r][1]);
    }
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
