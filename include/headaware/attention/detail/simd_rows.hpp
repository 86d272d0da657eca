#pragma once

// Rows of cache elements as vectors of floats, and sums across vectors.

#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

HEADAWARE_NAMESPACE_BEGIN
namespace detail::simd {
HEADAWARE_TARGET_BEGIN

using Shorts [[gnu::vector_size(lanes * 2)]] = std::uint16_t;

/// Keeps a value in a register: g++ would load it again in every multiplication, and loads bound the score kernel.
inline Floats in_register(Floats value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__SSE2__)
  asm("" : "+x"(value));
#endif
  return value;
}

/// Fetches the cache line of an address.
inline void prefetch(unsigned char const* data) {
#if defined(__SSE2__)
  // g++ 12 takes functions that only call `__builtin_prefetch` for ones without effect, and leaves them out.
  asm volatile("prefetcht0 %0" : : "m"(*data));
#else
  __builtin_prefetch(data);
#endif
}

inline Floats load_floats(float const* data) { return load(data); }

inline Floats load_floats(bfloat16 const* data) {
  Shorts bits;
  std::memcpy(&bits, data, sizeof(bits));
  Ints const wide = __builtin_convertvector(bits, Ints) << 16;
  Floats result;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
}

inline Floats load_floats(float16 const* data) {
#if defined(__F16C__) && defined(__AVX512F__)
  // With a mask, because g++ 12 warns of the undefined vector that the unmasked intrinsic begins from.
  __m256i const bits = _mm256_loadu_si256(reinterpret_cast<__m256i_u const*>(data));
  return reinterpret_cast<Floats>(_mm512_maskz_cvtph_ps(0xffff, bits));
#elif defined(__F16C__)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i_u const*>(data))));
#else
  float values[lanes];
  for (int i = 0; i < lanes; ++i) values[i] = to_float(data[i]);
  return load(values);
#endif
}

/// Source of lane `lane` in a step of `sums`: blocks of `half` lanes of the first vector and of the
/// second in turn. `upper`: the other half of each.
constexpr int pair_source(int half, int lane, bool upper) {
  int const within = lane % (2 * half);
  int const vector = within < half ? 0 : lanes;
  return vector + lane / (2 * half) * (2 * half) + within % half + (upper ? half : 0);
}

/// Adds the two halves of each block of 2 · Half lanes of a and of b: their sums side by side.
template <int Half>
inline Floats add_halves(Floats a, Floats b) {
#define HEADAWARE_DETAIL_LANES_4(first, upper)                                                                     \
  pair_source(Half, (first), upper), pair_source(Half, (first) + 1, upper), pair_source(Half, (first) + 2, upper), \
      pair_source(Half, (first) + 3, upper)
#if defined(__AVX512F__)
#define HEADAWARE_DETAIL_LANES(upper)                                                                         \
  HEADAWARE_DETAIL_LANES_4(0, upper), HEADAWARE_DETAIL_LANES_4(4, upper), HEADAWARE_DETAIL_LANES_4(8, upper), \
      HEADAWARE_DETAIL_LANES_4(12, upper)
#elif defined(__AVX__)
#define HEADAWARE_DETAIL_LANES(upper) HEADAWARE_DETAIL_LANES_4(0, upper), HEADAWARE_DETAIL_LANES_4(4, upper)
#else
#define HEADAWARE_DETAIL_LANES(upper) HEADAWARE_DETAIL_LANES_4(0, upper)
#endif
#if defined(__clang__)
  return __builtin_shufflevector(a, b, HEADAWARE_DETAIL_LANES(false)) +
         __builtin_shufflevector(a, b, HEADAWARE_DETAIL_LANES(true));
#else  // g++ 11 does not have the other, clang not this
  return __builtin_shuffle(a, b, Ints{HEADAWARE_DETAIL_LANES(false)}) +
         __builtin_shuffle(a, b, Ints{HEADAWARE_DETAIL_LANES(true)});
#endif
#undef HEADAWARE_DETAIL_LANES
#undef HEADAWARE_DETAIL_LANES_4
}

template <int Half>
inline Floats sums_from(Floats* vectors) {
  for (int i = 0; i < Half; ++i) vectors[i] = add_halves<Half>(vectors[i], vectors[i + Half]);
  if constexpr (Half == 1) {
    return vectors[0];
  } else {
    return sums_from<Half / 2>(vectors);
  }
}

/// Sums the lanes of each vector: lane i has the sum of vector i. @param vectors  [lanes], overwritten
inline Floats sums(Floats* vectors) { return sums_from<lanes / 2>(vectors); }

HEADAWARE_TARGET_END
}  // namespace detail::simd
HEADAWARE_NAMESPACE_END
