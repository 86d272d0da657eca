#pragma once

/// @file
/// llama.cpp's blocks of 32 quantised channels as row formats, as its reference functions make them, so that its caches
/// come in and go out (`import_rows`, `export_rows`). A block here is two of llama.cpp's, which makes whole words: a
/// row whose channels are no multiple of 64 ends with one of llama.cpp's blocks that is none of it.
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

/// @brief llama.cpp's `q8_0`: a half-precision scale and 32 signed bytes, 8.5 bits per channel, not rotated.
///
/// Channel i of 32 is d · code(i), code(i) = round(x(i) / d) in [-127, 127], halves away from zero, d = largest
/// magnitude / 127; codes are made with d before it is rounded to half precision. Bytes of 32 channels: d, then the
/// codes, 34 in all, and the next 32 channels follow. A block with NaN or an infinity decodes to NaN. Channels beyond
/// ±65,504 count as that, so no scale made here exceeds 65,504 / 127; a block of llama.cpp's may have one of up to
/// 65,504, the largest that half precision holds, and decodes with it.
///
/// A row takes 34 · ⌈channels / 32⌉ bytes in llama.cpp and 68 · ⌈channels / 64⌉ here: the same for 64 and 128 channels,
/// 102 and 136 for 96. Of llama.cpp's rows the bytes that there are come in, then zeros, and go out again.
struct LlamaQ8 {
  static constexpr std::string_view name = "q8_0";
  static constexpr std::int32_t group = 64;
  static constexpr std::int32_t block_words = 17;
  static constexpr bool rotated = false;
  static constexpr std::int32_t engine_group = 32;
  static constexpr std::int32_t engine_bytes = 34;
  static constexpr std::int32_t engine_alignment = 2;

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

/// @brief llama.cpp's `q4_0`: a half-precision scale and 32 codes of 4 bits, 4.5 bits per channel, not rotated
/// (llama.cpp rotates rows itself where it does).
///
/// Channel i of 32 is d · (code(i) - 8), code(i) = ⌊x(i) / d + 8.5⌋ in [0, 15], d = the channel of largest magnitude,
/// with its sign, / -8: that channel has code 0. Codes are made with d before it is rounded to half precision. Bytes of
/// 32 channels: d, then byte j = 0 … 15 with code(j) in its low and code(j + 16) in its high four bits, 18 in all, and
/// the next 32 channels follow. A block with NaN or an infinity decodes to NaN. Channels beyond ±65,504 count as that,
/// so no scale made here exceeds 65,504 / 8; a block of llama.cpp's may have one of up to 65,504, the largest that half
/// precision holds, and decodes with it.
///
/// A row takes 18 · ⌈channels / 32⌉ bytes in llama.cpp and 36 · ⌈channels / 64⌉ here: the same for 64 and 128 channels,
/// 54 and 72 for 96. Of llama.cpp's rows the bytes that there are come in, then zeros, and go out again.
struct LlamaQ4 {
  static constexpr std::string_view name = "q4_0";
  static constexpr std::int32_t group = 64;
  static constexpr std::int32_t block_words = 9;
  static constexpr bool rotated = false;
  static constexpr std::int32_t engine_group = 32;
  static constexpr std::int32_t engine_bytes = 18;
  static constexpr std::int32_t engine_alignment = 2;

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
