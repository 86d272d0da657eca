#pragma once

// Encoded rows as vectors of floats: what attention on the CPU reads without decoding a row to memory first.

#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>
#include <headaware/format/int8.hpp>
#include <headaware/format/packed.hpp>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

HEADAWARE_NAMESPACE_BEGIN
namespace detail::simd {
HEADAWARE_TARGET_BEGIN

using Bytes [[gnu::vector_size(lanes)]] = std::uint8_t;
using SignedBytes [[gnu::vector_size(lanes)]] = std::int8_t;

/// Scale and minimum of a block.
struct CodeRange {
  float scale;
  float min;
};

/// A row of blocks of `F`, and their scales, which are converted once for all vectors of a block.
template <class F>
struct CodedRow {
  std::uint32_t const* words = nullptr;
  CodeRange const* ranges = nullptr;  ///< [blocks]
};

template <class F>
inline constexpr bool reads_codes = false;
template <std::int32_t Bits>
inline constexpr bool reads_codes<Packed<Bits>> = true;
template <>
inline constexpr bool reads_codes<Int8> = true;

template <std::int32_t Bits>
inline CodeRange code_range(Packed<Bits> const&, std::uint32_t const* block) {
  std::uint32_t const both = block[Packed<Bits>::block_words - 1];
  return {to_float(float16{static_cast<std::uint16_t>(both & 0xffffU)}),
          to_float(float16{static_cast<std::uint16_t>(both >> 16)})};
}
inline CodeRange code_range(Int8 const&, std::uint32_t const* block) {
  return {to_float(float16{static_cast<std::uint16_t>(block[16])}), 0};
}

/// Adds `value` to the lanes whose bit is set.
inline Ints or_bits(Ints x, std::uint32_t bits, std::int32_t value) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_mask_or_epi32(reinterpret_cast<__m512i>(x), static_cast<__mmask16>(bits),
                                                     reinterpret_cast<__m512i>(x), _mm512_set1_epi32(value)));
#else
  Ints lane;
  for (int i = 0; i < lanes; ++i) lane[i] = i;
  return x | ((((static_cast<std::int32_t>(bits) - Ints{}) >> lane) & 1) * value);
#endif
}

template <std::int32_t Bits>
inline Floats load_floats(CodedRow<Packed<Bits>> const& row, std::int64_t c) {
  using Format = Packed<Bits>;
  std::int64_t const block = c / Format::group;
  auto const within = static_cast<std::int32_t>(c % Format::group);
  std::uint32_t const* const words = row.words + block * Format::block_words;
  Ints codes{};
  if constexpr (Format::nibble_words > 0) {
    Bytes bytes;
    std::memcpy(&bytes, reinterpret_cast<unsigned char const*>(words) + within % 32, sizeof(bytes));
    codes = __builtin_convertvector(bytes, Ints);
    codes = within < 32 ? codes & 15 : codes >> 4;
  }
  for (std::int32_t p = 0; p < Format::plane_bits; ++p) {
    std::uint32_t const plane = words[Format::nibble_words + 2 * p + within / 32] >> (within % 32);
    codes = or_bits(codes, plane, 1 << (Bits - Format::plane_bits + p));
  }
  CodeRange const& range = row.ranges[block];
  return __builtin_convertvector(codes, Floats) * range.scale + range.min;
}

inline Floats load_floats(CodedRow<Int8> const& row, std::int64_t c) {
  std::int64_t const block = c / Int8::group;
  SignedBytes bytes;
  std::memcpy(&bytes, reinterpret_cast<unsigned char const*>(row.words + block * Int8::block_words) + c % Int8::group,
              sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats) * row.ranges[block].scale;
}

HEADAWARE_TARGET_END
}  // namespace detail::simd
HEADAWARE_NAMESPACE_END
