#pragma once

/// @file
/// llama.cpp's blocks of 32 quantised channels as row formats, as its reference functions make them, so that its caches
/// come in and go out. A block here is two of llama.cpp's, which makes whole words.
/// @par Source  ggml-org/llama.cpp, ggml/src/ggml-common.h (block_q8_0, block_q4_0) and ggml-quants.c
///              (quantize_row_q8_0_ref, quantize_row_q4_0_ref)

#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/format/detail/block_range.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Half words of a block, two llama.cpp blocks of `Halves` each, put together to words.
template <std::int32_t Halves>
struct BlockHalves {
  std::uint16_t halves[static_cast<std::size_t>(2 * Halves)] = {};

  HEADAWARE_HOST_DEVICE static BlockHalves load(std::uint32_t const* words) {
    BlockHalves result;
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < 2 * Halves; ++i) {
      result.halves[i] = static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
    return result;
  }
  HEADAWARE_HOST_DEVICE void store(std::uint32_t* words) const {
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < Halves; ++i) {
      words[i] = halves[2 * i] | static_cast<std::uint32_t>(halves[2 * i + 1]) << 16;
    }
  }
};

/// Rounds half away from zero, as C's roundf. @pre  |x| < 2^22
HEADAWARE_HOST_DEVICE inline std::int32_t round_away(float x) {
  auto const whole = static_cast<std::int32_t>(x);
  float const rest = x - static_cast<float>(whole);
  return whole + (rest >= 0.5F ? 1 : 0) - (rest <= -0.5F ? 1 : 0);
}

}  // namespace detail

/// @brief llama.cpp's `q8_0`: 32 signed bytes and a half-precision scale, 8.5 bits per channel, not rotated.
/// A block with NaN or an infinity decodes to NaN.
struct LlamaQ8 {
  static constexpr std::string_view name = "q8_0";
  static constexpr std::int32_t group = 64;
  static constexpr std::int32_t block_words = 17;
  static constexpr bool rotated = false;

  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    detail::BlockHalves<17> to;
    HEADAWARE_UNROLL
    for (std::int32_t b = 0; b < 2; ++b) {
      auto const range = detail::BlockRange::of<32>(x + 32 * b);
      float const scale = range.largest() / 127;
      float const inverse = scale >= detail::least_float && range.finite ? 1 / scale : 0.0F;
      to.halves[17 * b] = range.finite ? from_float<float16>(scale).bits : std::uint16_t{0x7e00};
      HEADAWARE_UNROLL
      for (std::int32_t i = 0; i < 16; ++i) {
        auto const code = [&](float y) {
          float const scaled = detail::clamped(y * inverse, -127, 127);
          return range.finite ? static_cast<std::uint32_t>(detail::round_away(scaled)) & 255U : 0U;
        };
        to.halves[17 * b + 1 + i] =
            static_cast<std::uint16_t>(code(x[32 * b + 2 * i]) | code(x[32 * b + 2 * i + 1]) << 8);
      }
    }
    to.store(words);
  }

  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    auto const from = detail::BlockHalves<17>::load(words);
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < group; ++i) {
      std::int32_t const b = i / 32;
      auto const code = static_cast<std::int8_t>(from.halves[17 * b + 1 + i % 32 / 2] >> (i % 2 * 8) & 255U);
      x[i] = static_cast<float>(code) * to_float(float16{from.halves[17 * b]});
    }
  }

  friend constexpr bool operator==(LlamaQ8 const&, LlamaQ8 const&) = default;
};

/// @brief llama.cpp's `q4_0`: 32 codes of 4 bits around 8 and a half-precision scale, 4.5 bits per channel, not rotated
/// (llama.cpp rotates rows itself where it does). Byte j holds code j and, above it, code j + 16. A block with NaN or
/// an infinity decodes to NaN.
struct LlamaQ4 {
  static constexpr std::string_view name = "q4_0";
  static constexpr std::int32_t group = 64;
  static constexpr std::int32_t block_words = 9;
  static constexpr bool rotated = false;

  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    detail::BlockHalves<9> to;
    HEADAWARE_UNROLL
    for (std::int32_t b = 0; b < 2; ++b) {
      float const* const y = x + 32 * b;
      auto const range = detail::BlockRange::of<32>(y);
      float most = 0;  // of largest magnitude, with its sign
      HEADAWARE_UNROLL
      for (std::int32_t i = 0; i < 32; ++i) {
        float const size = y[i] < 0 ? -y[i] : y[i];
        most = size > (most < 0 ? -most : most) ? y[i] : most;
      }
      float const scale = detail::clamped(most, -detail::largest_half, detail::largest_half) / -8;
      bool const divides = range.finite && (scale >= detail::least_float || scale <= -detail::least_float);
      float const inverse = divides ? 1 / scale : 0.0F;
      to.halves[9 * b] = range.finite ? from_float<float16>(scale).bits : std::uint16_t{0x7e00};
      auto const code = [&](std::int32_t i) {
        float const scaled = range.finite ? detail::fused(y[i], inverse, 8.5F) : 0.0F;
        return static_cast<std::uint32_t>(detail::clamped(scaled, 0, 15));
      };
      HEADAWARE_UNROLL
      for (std::int32_t i = 0; i < 8; ++i) {
        std::uint32_t const low = code(2 * i) | code(2 * i + 16) << 4;
        std::uint32_t const high = code(2 * i + 1) | code(2 * i + 17) << 4;
        to.halves[9 * b + 1 + i] = static_cast<std::uint16_t>(low | high << 8);
      }
    }
    to.store(words);
  }

  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    auto const from = detail::BlockHalves<9>::load(words);
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < group; ++i) {
      std::int32_t const b = i / 32;
      std::int32_t const j = i % 16;
      std::int32_t const shift = j % 2 * 8 + i % 32 / 16 * 4;
      auto const code = static_cast<std::int32_t>(from.halves[9 * b + 1 + j / 2] >> shift & 15U);
      x[i] = static_cast<float>(code - 8) * to_float(float16{from.halves[9 * b]});
    }
  }

  friend constexpr bool operator==(LlamaQ4 const&, LlamaQ4 const&) = default;
};

HEADAWARE_NAMESPACE_END
