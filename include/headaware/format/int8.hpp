#pragma once

#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/format/detail/block_range.hpp>

#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Codes of 8 bits with one scale per 64 channels, symmetric and not rotated: 8.5 bits per channel.
///
/// Channel i of a block is scale · code(i), code(i) = round(x(i) / scale) in [-127, 127], scale = largest magnitude /
/// 127 in half precision. Bytes of a block: 64 codes, the scale, two of zero. A block with a NaN or an infinity decodes
/// to NaN; channels beyond ±65504 count as that.
struct Int8 {
  static constexpr std::string_view name = "int8";
  static constexpr std::int32_t group = 64;
  static constexpr std::int32_t block_words = 17;
  static constexpr bool rotated = false;

  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    auto const range = detail::BlockRange::of<group>(x);
    auto const scale = detail::BlockScale::of(range.largest() / 127, range.finite);
    HEADAWARE_UNROLL
    for (std::int32_t w = 0; w < 16; ++w) {
      std::uint32_t word = 0;
      HEADAWARE_UNROLL
      for (std::int32_t j = 0; j < 4; ++j) {
        std::int32_t const code = range.finite ? detail::code_of(x[4 * w + j], 0, scale, -127, 127) : 0;
        word |= (static_cast<std::uint32_t>(code) & 255U) << (8 * j);
      }
      words[w] = word;
    }
    words[16] = scale.stored.bits;
  }

  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    float const scale = to_float(float16{static_cast<std::uint16_t>(words[16])});
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < group; ++i) {
      auto const code = static_cast<std::int8_t>(words[i / 4] >> (8 * (i % 4)) & 255U);
      x[i] = static_cast<float>(code) * scale;
    }
  }

  friend constexpr bool operator==(Int8 const&, Int8 const&) = default;
};

HEADAWARE_NAMESPACE_END
