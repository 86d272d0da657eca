#pragma once

// Scores of a row's keys to weights of the softmax.

#include <headaware/config.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/simd.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// The largest of `count` scores, or NaN if one is NaN or infinite; fills the buffer up to whole vectors.
inline float largest_score(float* scores, std::int64_t count) {
  std::int64_t const vectors = (count + simd::lanes - 1) / simd::lanes;
  for (std::int64_t i = count; i < vectors * simd::lanes; ++i) scores[i] = hidden_logit;
  simd::Floats largest = simd::load(scores);
  simd::Floats poison = simd::zero_or_nan(largest);
  for (std::int64_t v = 1; v < vectors; ++v) {
    simd::Floats const x = simd::load(scores + v * simd::lanes);
    largest = simd::maximum(largest, x);
    poison += simd::zero_or_nan(x);
  }
  return simd::largest(largest) + simd::sum(poison);
}

/// The softmax state, relative to `max`, of scores filled up to whole vectors.
/// @tparam Keep  leave the weights 2^(score - max) where the scores were
template <bool Keep>
EntropySoftmax<double> weigh_scores(float* scores, std::int64_t count, float max) {
  simd::Floats const least = simd::broadcast(-126.0F);
  simd::Floats sum{};
  simd::Floats weighted{};
  for (std::int64_t i = 0; i < count; i += simd::lanes) {
    simd::Floats const x = simd::maximum(simd::load(scores + i) - max, least);
    simd::Floats const e = simd::exp2(x);
    sum += e;
    weighted += e * x;
    if constexpr (Keep) simd::store(scores + i, e);
  }
  return {{max, simd::sum(sum)}, simd::sum(weighted)};
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
