#pragma once

// Encoded rows on the device, four neighbouring channels at a time: the values that a format's `decode` gives, from the
// same bytes, without decoding the rest of their block.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/element.hpp>
#include <headaware/format/concept.hpp>
#include <headaware/format/int8.hpp>
#include <headaware/format/llama_blocks.hpp>
#include <headaware/format/packed.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Half word `index` of words.
__device__ inline float half_value(std::uint32_t const* words, std::int32_t index) {
  return element_value(float16{static_cast<std::uint16_t>(words[index / 2] >> (index % 2 * 16))});
}
/// Four bytes that begin at half word `index`.
__device__ inline std::uint32_t four_bytes(std::uint32_t const* words, std::int32_t index) {
  std::int32_t const odd = index % 2;
  return __funnelshift_r(words[index / 2], words[index / 2 + odd], 16 * odd);
}

/// Byte `i` of a word as a number: 2^23 + byte has the byte as its last bits.
__device__ inline float unsigned_byte(std::uint32_t bytes, std::int32_t i) {
  return __uint_as_float(__byte_perm(bytes, 0x4b000000U, 0x7440U | static_cast<std::uint32_t>(i))) - 8388608.0F;
}
__device__ inline float signed_byte(std::uint32_t bytes, std::int32_t i) {
  return unsigned_byte(bytes ^ 0x80808080U, i) - 128.0F;
}

/// Reads channels [within, within + 4) of a run: `run` channels in `run_words` words, every `ranged` of which have one
/// range. This one serves formats whose blocks are up to four channels, and, slowly, any other: a user's own.
template <class F>
struct CodedChannels {
  static constexpr bool small = F::group <= 4 && 4 % F::group == 0;
  static constexpr std::int32_t run = small ? 64 : 1 << 20;  ///< a whole row
  static constexpr std::int32_t run_words = small ? 64 / F::group * F::block_words : 0;
  static constexpr std::int32_t ranged = run;
  struct Range {};

  __device__ static Range range(std::uint32_t const*, std::int32_t) { return {}; }
  /// @param coded  channels of the run that are there: whole blocks; zeros are read beyond
  __device__ static void read(F const& format, Range, std::uint32_t const* words, std::int32_t within,
                              std::int32_t coded, float (&x)[4]) {
    if constexpr (small) {
#pragma unroll
      for (std::int32_t i = 0; i < 4; i += F::group) {
        float block[F::group] = {};
        if (F::group == 4 || within + i < coded) {
          format.decode(words + (within + i) / F::group * F::block_words, block);
        }
#pragma unroll
        for (std::int32_t j = 0; j < F::group; ++j) x[i + j] = block[j];
      }
    } else {
#pragma unroll
      for (std::int32_t i = 0; i < 4; ++i) {
        std::int32_t const channel = within + i;
        float block[F::group] = {};
        if (channel < coded) format.decode(words + channel / F::group * F::block_words, block);
        x[i] = 0;
#pragma unroll
        for (std::int32_t j = 0; j < F::group; ++j) x[i] = channel % F::group == j ? block[j] : x[i];
      }
    }
  }
};

template <std::int32_t Bits>
struct CodedChannels<Packed<Bits>> {
  using Format = Packed<Bits>;
  static constexpr std::int32_t run = Format::group;
  static constexpr std::int32_t run_words = Format::block_words;
  static constexpr std::int32_t ranged = run;
  struct Range {
    float scale;
    float min;
  };

  __device__ static Range range(std::uint32_t const* words, std::int32_t) {
    float2 const both = unpack_pair<float16>(words[run_words - 1]);
    return {both.x, both.y};
  }
  __device__ static void read(Format const&, Range const& range, std::uint32_t const* words, std::int32_t within,
                              std::int32_t, float (&x)[4]) {
    std::uint32_t codes = 0;
    if constexpr (Format::nibble_words > 0) codes = words[within % 32 / 4] >> (within / 32 * 4) & 0x0f0f0f0fU;
#pragma unroll
    for (std::int32_t p = 0; p < Format::plane_bits; ++p) {
      std::uint32_t const bits = words[Format::nibble_words + 2 * p + within / 32] >> (within % 32) & 15U;
      // A bit into each byte.
      codes |= (bits * 0x00204081U & 0x01010101U) << (Bits - Format::plane_bits + p);
    }
#pragma unroll
    for (std::int32_t i = 0; i < 4; ++i) x[i] = fused(unsigned_byte(codes, i), range.scale, range.min);
  }
};

template <>
struct CodedChannels<Int8> {
  static constexpr std::int32_t run = Int8::group;
  static constexpr std::int32_t run_words = Int8::block_words;
  static constexpr std::int32_t ranged = run;
  using Range = float;

  __device__ static Range range(std::uint32_t const* words, std::int32_t) { return half_value(words, 32); }
  __device__ static void read(Int8 const&, Range scale, std::uint32_t const* words, std::int32_t within, std::int32_t,
                              float (&x)[4]) {
    std::uint32_t const codes = words[within / 4];
#pragma unroll
    for (std::int32_t i = 0; i < 4; ++i) x[i] = signed_byte(codes, i) * scale;
  }
};

template <>
struct CodedChannels<LlamaQ8> {
  static constexpr std::int32_t run = LlamaQ8::group;
  static constexpr std::int32_t run_words = LlamaQ8::block_words;
  static constexpr std::int32_t ranged = 32;
  using Range = float;

  __device__ static Range range(std::uint32_t const* words, std::int32_t within) {
    return half_value(words, within / 32 * 17);
  }
  __device__ static void read(LlamaQ8 const&, Range scale, std::uint32_t const* words, std::int32_t within,
                              std::int32_t, float (&x)[4]) {
    std::uint32_t const codes = four_bytes(words, within / 32 * 17 + 1 + within % 32 / 2);
#pragma unroll
    for (std::int32_t i = 0; i < 4; ++i) x[i] = signed_byte(codes, i) * scale;
  }
};

template <>
struct CodedChannels<LlamaQ4> {
  static constexpr std::int32_t run = LlamaQ4::group;
  static constexpr std::int32_t run_words = LlamaQ4::block_words;
  static constexpr std::int32_t ranged = 32;
  using Range = float;

  __device__ static Range range(std::uint32_t const* words, std::int32_t within) {
    return half_value(words, within / 32 * 9);
  }
  __device__ static void read(LlamaQ4 const&, Range scale, std::uint32_t const* words, std::int32_t within,
                              std::int32_t, float (&x)[4]) {
    std::uint32_t const pairs = four_bytes(words, within / 32 * 9 + 1 + within % 16 / 2);
    std::uint32_t const codes = pairs >> (within % 32 / 16 * 4) & 0x0f0f0f0fU;
#pragma unroll
    for (std::int32_t i = 0; i < 4; ++i) x[i] = (unsigned_byte(codes, i) - 8) * scale;
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
