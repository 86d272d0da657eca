#pragma once

// Encoded rows as vectors of floats, and the two products of attention over them: what attention on the CPU reads
// without decoding rows to memory first.

#include <headaware/attention/detail/row_kernels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>
#include <headaware/format/fp8.hpp>
#include <headaware/format/int8.hpp>
#include <headaware/format/llama_blocks.hpp>
#include <headaware/format/packed.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

HEADAWARE_NAMESPACE_BEGIN
namespace detail::simd {
HEADAWARE_TARGET_BEGIN

/// A channel is scale · number + min.
struct CodeRange {
  float scale;
  float min;
};

/// As many bytes as there are lanes. By intrinsics where there are any: g++ 12 converts short vectors lane by lane.
inline Ints load_bytes(unsigned char const* data) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i_u const*>(data))));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i_u const*>(data))));
#else
  Ints result{};
  for (int i = 0; i < lanes; ++i) result[i] = data[i];
  return result;
#endif
}
inline Floats load_signed_bytes(unsigned char const* data) {
  // The sign's place is the top of each lane.
  return __builtin_convertvector((load_bytes(data) << 24) >> 24, Floats);
}
inline float load_half(unsigned char const* data) {
  float16 half;
  std::memcpy(&half.bits, data, sizeof(half.bits));
#if defined(__F16C__)
  return _cvtsh_ss(half.bits);
#else
  return to_float(half);
#endif
}

/// x, with `value` set in the lanes whose bit is.
inline Ints or_bits(Ints x, std::uint32_t bits, std::int32_t value) {
#if defined(__AVX512F__)
  auto const v = reinterpret_cast<__m512i>(x);
  return reinterpret_cast<Ints>(_mm512_mask_or_epi32(v, static_cast<__mmask16>(bits), v, _mm512_set1_epi32(value)));
#else
  Ints bit;
  for (int i = 0; i < lanes; ++i) bit[i] = 1 << i;
  return x | ((((static_cast<std::int32_t>(bits) - Ints{}) & bit) == bit) & value);
#endif
}

/// How a format's rows are read: `channels` that share a range lie in `bytes` bytes, `range` and `numbers` of them.
template <class F>
struct CodeReader {
  static constexpr bool reads = false;
};

template <std::int32_t Bits>
struct CodeReader<Packed<Bits>> {
  using Format = Packed<Bits>;
  static constexpr bool reads = true;
  static constexpr int channels = Format::group;
  static constexpr std::int64_t bytes = 4 * Format::block_words;

  static CodeRange range(Format const&, unsigned char const* block) {
    return {load_half(block + bytes - 4), load_half(block + bytes - 2)};
  }
  template <int Within>
  static Floats numbers(unsigned char const* block) {
    Ints codes{};
    if constexpr (Format::nibble_words > 0) {
      codes = load_bytes(block + Within % 32);
      codes = Within < 32 ? codes & 15 : codes >> 4;
    }
    for (std::int32_t p = 0; p < Format::plane_bits; ++p) {
      std::uint16_t plane = 0;
      std::memcpy(&plane, block + 4 * Format::nibble_words + 8 * p + Within / 16 * 2, sizeof(plane));
      codes = or_bits(codes, static_cast<std::uint32_t>(plane) >> (Within % 16), 1 << (Bits - Format::plane_bits + p));
    }
    return __builtin_convertvector(codes, Floats);
  }
};

template <>
struct CodeReader<Int8> {
  static constexpr bool reads = true;
  static constexpr int channels = Int8::group;
  static constexpr std::int64_t bytes = 4 * Int8::block_words;

  static CodeRange range(Int8 const&, unsigned char const* block) { return {load_half(block + 64), 0}; }
  template <int Within>
  static Floats numbers(unsigned char const* block) {
    return load_signed_bytes(block + Within);
  }
};

template <>
struct CodeReader<LlamaQ8> {
  static constexpr bool reads = true;
  static constexpr int channels = 32;
  static constexpr std::int64_t bytes = 34;

  static CodeRange range(LlamaQ8 const&, unsigned char const* block) { return {load_half(block), 0}; }
  template <int Within>
  static Floats numbers(unsigned char const* block) {
    return load_signed_bytes(block + 2 + Within);
  }
};

template <>
struct CodeReader<LlamaQ4> {
  static constexpr bool reads = true;
  static constexpr int channels = 32;
  static constexpr std::int64_t bytes = 18;

  static CodeRange range(LlamaQ4 const&, unsigned char const* block) {
    float const scale = load_half(block);
    return {scale, -8 * scale};
  }
  template <int Within>
  static Floats numbers(unsigned char const* block) {
    Ints const both = load_bytes(block + 2 + Within % 16);
    return __builtin_convertvector(Within < 16 ? both & 15 : both >> 4, Floats);
  }
};

template <std::int32_t Mantissa>
struct CodeReader<Fp8<Mantissa>> {
  using Number = Float8<Mantissa>;
  static constexpr bool reads = true;
  static constexpr int channels = 32;
  static constexpr std::int64_t bytes = 32;

  static CodeRange range(Fp8<Mantissa> const& format, unsigned char const*) { return {format.scale, 0}; }
  template <int Within>
  static Floats numbers(unsigned char const* block) {
    Ints const code = load_bytes(block + Within);
    Ints const magnitude = code & 0x7f;
    // As `Float8::decode`.
    Floats value;
    Ints const shifted = magnitude << (23 - Mantissa);
    std::memcpy(&value, &shifted, sizeof(value));
    value *= bits_as<float>(static_cast<std::uint32_t>(127 + 127 - Number::bias) << 23);
    Ints bits;
    std::memcpy(&bits, &value, sizeof(bits));
    constexpr auto largest = static_cast<std::int32_t>(Number::largest_bits);
    constexpr std::int32_t nan = 0x7fc00000;
    constexpr std::int32_t next = Mantissa == 2 ? 0x7f800000 : nan;
    bits = magnitude > largest ? (magnitude == largest + 1 ? next - Ints{} : nan - Ints{}) : bits;
    bits |= (code & 0x80) << 24;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

/// Calls `f(channel, numbers)` with all vectors of a range's channels, unrolled.
template <class F, class Each, int... Vector>
[[gnu::always_inline]] inline void for_each_vector(unsigned char const* block, Each const& f,
                                                   std::integer_sequence<int, Vector...>) {
  (f(Vector * lanes, CodeReader<F>::template numbers<Vector * lanes>(block)), ...);
}
template <class F>
using VectorsOf = std::make_integer_sequence<int, CodeReader<F>::channels / lanes>;

HEADAWARE_TARGET_END
}  // namespace detail::simd

namespace detail {
HEADAWARE_TARGET_BEGIN

/// A row as its format has it, and its ranges, which are converted once.
template <class F>
struct CodedRow {
  unsigned char const* bytes = nullptr;
  simd::CodeRange const* ranges = nullptr;
};

/// As for rows of elements. A row at a time: its range stays in registers, and sums of rows are independent.
template <int Queries, class F>
inline void score_keys(float const* queries, CodedRow<F> const* rows, std::int64_t channels, float* scores) {
  using Reader = simd::CodeReader<F>;
  constexpr int keys = simd::lanes / Queries;
  simd::Floats sums[simd::lanes];
  for (int k = 0; k < keys; ++k) {
    simd::Floats own[std::size_t{Queries}] = {};
    unsigned char const* block = rows[k].bytes;
    simd::CodeRange const* range = rows[k].ranges;
    for (std::int64_t c = 0; c < channels; c += Reader::channels, block += Reader::bytes, ++range) {
      simd::Floats const scale = simd::broadcast(range->scale);
      simd::Floats const min = simd::broadcast(range->min);
      simd::for_each_vector<F>(
          block,
          [&](int within, simd::Floats numbers) __attribute__((always_inline)) {
            simd::Floats const key = numbers * scale + min;
            for (int q = 0; q < Queries; ++q) own[q] += simd::load(queries + q * channels + c + within) * key;
          },
          simd::VectorsOf<F>{});
    }
    for (int q = 0; q < Queries; ++q) sums[q * keys + k] = own[q];
  }
  float results[simd::lanes];
  simd::store(results, simd::sums(sums));
  for (int q = 0; q < Queries; ++q) {
    for (int k = 0; k < keys; ++k) scores[q * attend_block + k] = results[q * keys + k];
  }
}

template <int Queries, class F>
inline void weigh_values(float const* weights, CodedRow<F> const* rows, std::int64_t channels, float* sums) {
  using Reader = simd::CodeReader<F>;
  constexpr int keys = 4;
  std::int64_t offset = 0;
  std::int64_t range = 0;
  for (std::int64_t c = 0; c < channels; c += Reader::channels, offset += Reader::bytes, ++range) {
    // weight · (scale · number + min), so that numbers need not become channels.
    simd::Floats scaled[std::size_t{Queries}][keys];
    simd::Floats common[std::size_t{Queries}];
    for (int q = 0; q < Queries; ++q) {
      float constant = 0;
      for (int k = 0; k < keys; ++k) {
        float const weight = weights[q * attend_block + k];
        // A weight of 0 is one of a row beyond the end, or hidden, and the range of such a row may be no number.
        scaled[q][k] = simd::broadcast(weight == 0 ? 0.0F : weight * rows[k].ranges[range].scale);
        constant += weight == 0 ? 0.0F : weight * rows[k].ranges[range].min;
      }
      common[q] = simd::broadcast(constant);
    }
    auto const add = [&]<int Within>(std::integral_constant<int, Within>) {
      simd::Floats numbers[keys];
      for (int k = 0; k < keys; ++k) numbers[k] = Reader::template numbers<Within>(rows[k].bytes + offset);
      for (int q = 0; q < Queries; ++q) {
        float* const to = sums + q * channels + c + Within;
        simd::Floats sum = simd::load(to) + common[q];
        for (int k = 0; k < keys; ++k) sum += scaled[q][k] * numbers[k];
        simd::store(to, sum);
      }
    };
    [&]<int... Vector>(std::integer_sequence<int, Vector...>) {
      (add(std::integral_constant<int, Vector * simd::lanes>{}), ...);
    }
    (simd::VectorsOf<F>{});
  }
}

/// Writes a row's channels as floats, [channels].
template <class F>
inline void decode_codes(CodedRow<F> const& row, std::int64_t channels, float* to) {
  using Reader = simd::CodeReader<F>;
  unsigned char const* block = row.bytes;
  simd::CodeRange const* range = row.ranges;
  for (std::int64_t c = 0; c < channels; c += Reader::channels, block += Reader::bytes, ++range) {
    simd::for_each_vector<F>(
        block,
        [&](int within, simd::Floats numbers) { simd::store(to + c + within, numbers * range->scale + range->min); },
        simd::VectorsOf<F>{});
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
