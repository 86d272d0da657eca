#pragma once

#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/format/detail/block_range.hpp>

#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// An 8-bit floating-point number of `Mantissa` explicit bits and as many of exponent as are left, as bits. Rounds to
/// nearest even; what is beyond `largest` becomes that, NaN stays NaN, as CUDA's saturating conversions have it.
template <std::int32_t Mantissa>
struct Float8 {
  static constexpr std::int32_t exponent_bits = 7 - Mantissa;
  static constexpr std::int32_t bias = (1 << (exponent_bits - 1)) - 1;
  /// e4m3 has no infinities: all but the last number of its last exponent are finite (its "fn" variant).
  static constexpr std::uint32_t largest_bits = Mantissa == 3 ? 0x7eU : 0x7bU;
  static constexpr std::uint32_t nan_bits = 0x7fU;

  HEADAWARE_HOST_DEVICE static constexpr std::uint32_t encode(float x) {
    auto const bits = bits_as<std::uint32_t>(x);
    std::uint32_t const sign = bits >> 24 & 0x80U;
    std::uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) return sign | nan_bits;
    constexpr std::int32_t dropped = 23 - Mantissa;
    constexpr std::uint32_t least_normal = static_cast<std::uint32_t>(127 - bias + 1) << 23;
    std::uint32_t result = 0;
    if (magnitude < least_normal) {
      // Subnormal: adding a power of two lets the float unit align and round the significand.
      constexpr auto aligner = static_cast<std::uint32_t>(127 - bias + 1 + dropped) << 23;
      float const aligned = bits_as<float>(magnitude) + bits_as<float>(aligner);
      result = bits_as<std::uint32_t>(aligned) - aligner;
    } else {
      magnitude += (1U << (dropped - 1)) - 1 + (magnitude >> dropped & 1U);
      result = (magnitude - (static_cast<std::uint32_t>(127 - bias) << 23)) >> dropped;
    }
    return sign | (result < largest_bits ? result : largest_bits);
  }

  HEADAWARE_HOST_DEVICE static constexpr float decode(std::uint32_t bits) {
    std::uint32_t const magnitude = bits & 0x7fU;
    std::uint32_t const sign = (bits & 0x80U) << 24;
    if (magnitude > largest_bits) {
      bool const infinite = Mantissa == 2 && magnitude == largest_bits + 1;
      return bits_as<float>(sign | (infinite ? 0x7f800000U : 0x7fc00000U));
    }
    // Moving the exponent field and scaling rebiases normal and subnormal numbers alike.
    constexpr auto scale = static_cast<std::uint32_t>(127 + 127 - bias) << 23;
    float const value = bits_as<float>(magnitude << (23 - Mantissa)) * bits_as<float>(scale);
    return bits_as<float>(bits_as<std::uint32_t>(value) | sign);
  }
};

}  // namespace detail

/// @brief Floating-point numbers of 8 bits with one scale per head: vLLM's `fp8_e4m3` and `fp8_e5m2` caches. Byte i of
/// a row is channel i divided by the scale. What is beyond the largest number saturates (448 · scale, 57,344 · scale),
/// NaN stays NaN.
///
/// The scale is none of a row's bytes: it is the format's field, and lies in the table of formats, a number for each
/// head's keys and one for its values. An engine's scales come in so: one for a tensor (vLLM's `k_scale` and `v_scale`)
/// is given to all heads of the layer, one for a head to that head (`FormatTable::set(layer, head, {Fp8E4M3{k},
/// ...})`). They go out as `AnyFormat::scale` of what is in the table: the bytes are the engine's as long as it reads
/// them with that number. Rows for an engine with one scale for a layer must all have it; `transcode` gives them
/// another.
/// @tparam Mantissa  explicit bits: 3 (e4m3, the variant without infinities) or 2 (e5m2)
/// @par Source  Micikevicius et al., FP8 formats for deep learning, arXiv:2209.05433; vllm-project/vllm,
///              csrc/quantization/fp8 (stored value = value / scale)
template <std::int32_t Mantissa>
struct Fp8 {
  static_assert(Mantissa == 2 || Mantissa == 3, "headaware: fp8 is e4m3 or e5m2");
  static constexpr std::string_view name = Mantissa == 3 ? "fp8_e4m3" : "fp8_e5m2";
  static constexpr std::int32_t group = 4;
  static constexpr std::int32_t block_words = 1;
  static constexpr bool rotated = false;
  static constexpr std::int32_t engine_group = 1;
  static constexpr std::int32_t engine_bytes = 1;
  static constexpr std::int32_t engine_alignment = 1;

  float scale = 1;  ///< vLLM's `k_scale` or `v_scale` of the layer

  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    std::uint32_t word = 0;
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < group; ++i) word |= detail::Float8<Mantissa>::encode(x[i] / scale) << (8 * i);
    words[0] = word;
  }
  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < group; ++i)
      x[i] = detail::Float8<Mantissa>::decode(words[0] >> (8 * i) & 255U) * scale;
  }
  /// @throws ArgumentError if the scale is not a positive number
  void validate() const { require(scale > 0 && scale <= 3e38F, "scale", "> 0 and finite", scale, "Fp8"); }

  friend constexpr bool operator==(Fp8 const&, Fp8 const&) = default;
};
using Fp8E4M3 = Fp8<3>;
using Fp8E5M2 = Fp8<2>;

HEADAWARE_NAMESPACE_END
