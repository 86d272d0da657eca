#pragma once

// Vectors of floats as wide as the target has them, by the vector extension that g++ and clang share:
// measured against `omp simd` loops it keeps the accumulators of the score kernel in registers, and it
// needs no library and no intrinsics. Whatever uses them stands in the target's namespace, as they do.

#include <headaware/config.hpp>

#include <cstdint>
#include <cstring>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// A template argument of members that depend on the target, of types that do not.
struct Target {};

HEADAWARE_TARGET_END
}  // namespace detail
namespace detail::simd {
HEADAWARE_TARGET_BEGIN

#if defined(__AVX512F__)
inline constexpr int lanes = 16;
inline constexpr int registers = 32;
#elif defined(__AVX__)
inline constexpr int lanes = 8;
inline constexpr int registers = 16;
#else
inline constexpr int lanes = 4;
inline constexpr int registers = 16;
#endif

using Floats [[gnu::vector_size(lanes * 4)]] = float;
using Ints [[gnu::vector_size(lanes * 4)]] = std::int32_t;

inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats load(float const* data) {
  Floats result;
  std::memcpy(&result, data, sizeof(result));
  return result;
}
inline void store(float* data, Floats value) { std::memcpy(data, &value, sizeof(value)); }

inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

inline float sum(Floats value) {
  float result = 0;
  for (int i = 0; i < lanes; ++i) result += value[i];
  return result;
}
inline float largest(Floats value) {
  float result = value[0];
  for (int i = 1; i < lanes; ++i) result = value[i] > result ? value[i] : result;
  return result;
}

/// 0, or NaN where x is NaN or infinite.
inline Floats zero_or_nan(Floats x) { return x * 0.0F; }

/// 2^x for -126 <= x <= 0 to about 2 units in the last place.
inline Floats exp2(Floats x) {
  Floats const shifted = x + 12582912.0F;  // 1.5 · 2^23: the integer part lands in the low bits
  Floats const fraction = x - (shifted - 12582912.0F);
  Floats p = fraction * 1.33336498402e-3F + 9.61793571697e-3F;
  p = p * fraction + 5.55036048e-2F;
  p = p * fraction + 2.40226507e-1F;
  p = p * fraction + 6.93147182e-1F;
  p = p * fraction + 1.0F;
  Ints exponent;
  Ints bits;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  std::memcpy(&bits, &p, sizeof(bits));
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}

HEADAWARE_TARGET_END
}  // namespace detail::simd
HEADAWARE_NAMESPACE_END
