#pragma once

#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/format/detail/block_range.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Codes of 3 to 6 bits with a scale and a minimum per 64 rotated channels: `Bits` + 0.5 bits per channel.
///
/// Channel i of a block is minimum + scale · code(i), code(i) = round((x(i) - minimum) / scale), scale = (largest -
/// smallest) / (2^Bits - 1); minimum and scale are rounded to half precision before codes are made.
///
/// Bytes of a block, little-endian, of 4 bits and more:
/// | byte | |
/// |---|---|
/// | j = 0 … 31 | low 4 bits of code(j), and above them those of code(j + 32) |
/// | 32 + 8 p … 39 + 8 p | plane p of `Bits` - 4: bit i is bit 4 + p of code(i) |
/// | last 4 | scale, minimum |
///
/// Of 3 bits: planes of bits 0, 1, 2 instead. A block with a NaN or an infinity decodes to NaN; channels beyond ±65504
/// count as that.
///
/// Rotated channels that are all equal have scale 0 and codes 0, and decode to the minimum, their number in half
/// precision (equal channels x of a row are another thing: rotated they are 8 x and 63 zeros). So do channels so close
/// that the scale rounds to 0 in half precision, (largest - smallest) / (2^Bits - 1) of at most 2^-25; a minimum of at
/// most 2^-25 in magnitude rounds to 0, so a block of numbers that are denormal in single precision decodes to zeros.
/// @par Source  asymmetric groups: Liu et al., KIVI, arXiv:2402.02750; rotation: QuaRot, arXiv:2404.00456
template <std::int32_t Bits>
struct Packed {
  static_assert(Bits >= 3 && Bits <= 6, "headaware: packed codes have 3 to 6 bits");
  static constexpr std::string_view name = Bits == 3   ? "packed3"
                                           : Bits == 4 ? "packed4"
                                           : Bits == 5 ? "packed5"
                                                       : "packed6";
  static constexpr std::int32_t group = 64;
  static constexpr bool rotated = true;
  /// Words of the low four bits; bits that are in planes of 64.
  static constexpr std::int32_t nibble_words = Bits >= 4 ? 8 : 0;
  static constexpr std::int32_t plane_bits = Bits >= 4 ? Bits - 4 : Bits;
  static constexpr std::int32_t block_words = nibble_words + 2 * plane_bits + 1;

  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    auto const range = detail::BlockRange::of<group>(x);
    float16 const stored_min = range.finite ? from_float<float16>(range.min) : float16{0x7e00U};
    float const min = to_float(stored_min);
    constexpr float largest = (1 << Bits) - 1;
    auto const scale = detail::BlockScale::of((range.max - range.min) / largest, range.finite);
    auto const code = [&](std::int32_t i) {
      return range.finite ? static_cast<std::uint32_t>(detail::code_of(x[i], min, scale, 0, largest)) : 0U;
    };
    std::uint32_t planes[static_cast<std::size_t>(plane_bits > 0 ? 2 * plane_bits : 1)] = {};
    HEADAWARE_UNROLL
    for (std::int32_t w = 0; w < 8; ++w) {
      std::uint32_t nibbles = 0;
      HEADAWARE_UNROLL
      for (std::int32_t j = 0; j < 4; ++j) {
        std::uint32_t const low = code(4 * w + j);
        std::uint32_t const high = code(4 * w + j + 32);
        nibbles |= ((low & 15U) | (high & 15U) << 4) << (8 * j);
        HEADAWARE_UNROLL
        for (std::int32_t p = 0; p < plane_bits; ++p) {
          constexpr std::int32_t first = Bits - plane_bits;
          planes[2 * p] |= (low >> (first + p) & 1U) << (4 * w + j);
          planes[2 * p + 1] |= (high >> (first + p) & 1U) << (4 * w + j);
        }
      }
      if constexpr (nibble_words > 0) words[w] = nibbles;
    }
    HEADAWARE_UNROLL
    for (std::int32_t p = 0; p < 2 * plane_bits; ++p) words[nibble_words + p] = planes[p];
    words[block_words - 1] = scale.stored.bits | static_cast<std::uint32_t>(stored_min.bits) << 16;
  }

  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    std::uint32_t const both = words[block_words - 1];
    float const scale = to_float(float16{static_cast<std::uint16_t>(both & 0xffffU)});
    float const min = to_float(float16{static_cast<std::uint16_t>(both >> 16)});
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < group; ++i) {
      std::uint32_t code = 0;
      if constexpr (nibble_words > 0) code = words[i % 32 / 4] >> (8 * (i % 4) + i / 32 * 4) & 15U;
      HEADAWARE_UNROLL
      for (std::int32_t p = 0; p < plane_bits; ++p) {
        code |= (words[nibble_words + 2 * p + i / 32] >> (i % 32) & 1U) << (Bits - plane_bits + p);
      }
      x[i] = detail::fused(static_cast<float>(code), scale, min);
    }
  }

  friend constexpr bool operator==(Packed const&, Packed const&) = default;
};

HEADAWARE_NAMESPACE_END
