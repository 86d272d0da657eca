#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/simd.hpp>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

[[nodiscard]] inline std::int64_t whole_vectors(std::int64_t channels) {
  return (channels + simd::lanes - 1) / simd::lanes * simd::lanes;
}

/// 2^x for x <= 0, 0 below 2^-126; NaN stays.
inline simd::Floats weights_of(simd::Floats x) {
  simd::Floats const least = simd::broadcast(-126.0F);
  simd::Floats const clamped = x < least ? least : x;
  simd::Floats const power = simd::exp2(clamped) + simd::zero_or_nan(x);
  return x < least ? simd::Floats{} : power;
}

/// Turns a block of a row's logits into weights relative to the largest logit so far, adds them to the row's softmax,
/// and rescales what it has summed.
/// @param scores  [count] logits, `hidden_logit` where the row does not see a key; a NaN or infinite one makes NaN of
///                the row
/// @param sums    [channels] weighted values of earlier blocks
/// @pre   count and channels are whole vectors, count > 0
template <class Sum>
inline void weigh_logits(OnlineSoftmax<Sum>& softmax, float* scores, std::int64_t count, float* sums,
                         std::int64_t channels) {
  simd::Floats largest = simd::load(scores);
  simd::Floats poison = simd::zero_or_nan(largest);
  for (std::int64_t k = simd::lanes; k < count; k += simd::lanes) {
    simd::Floats const x = simd::load(scores + k);
    largest = simd::maximum(largest, x);
    poison += simd::zero_or_nan(x);
  }
  float const block_max = simd::largest(largest) + simd::sum(poison);
  if (block_max == hidden_logit) {  // nothing of the block is seen
    std::fill_n(scores, count, 0.0F);
    return;
  }
  bool const empty = softmax.sum == 0;
  float const max = larger_or_nan(softmax.max, block_max);
  auto const factor = static_cast<float>(softmax.rescale(max));
  if (factor != 1 && !empty) {
    for (std::int64_t c = 0; c < channels; c += simd::lanes) simd::store(sums + c, simd::load(sums + c) * factor);
  }
  simd::Floats sum{};
  for (std::int64_t k = 0; k < count; k += simd::lanes) {
    simd::Floats const weight = weights_of(simd::load(scores + k) - max);
    sum += weight;
    simd::store(scores + k, weight);
  }
  softmax.sum += static_cast<Sum>(simd::sum(sum));
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
