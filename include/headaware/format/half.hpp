#pragma once

#include <headaware/config.hpp>
#include <headaware/element.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Elements of 16 bits: a row is its channels, as engines have them. Half precision makes infinities of what is
/// beyond 65504.
/// @tparam T  float16 or bfloat16
template <class T>
struct HalfRows {
  static constexpr std::string_view name = std::is_same_v<T, float16> ? "fp16" : "bf16";
  static constexpr std::int32_t group = 2;
  static constexpr std::int32_t block_words = 1;
  static constexpr bool rotated = false;
  static constexpr std::int32_t engine_group = 1;
  static constexpr std::int32_t engine_bytes = 2;
  static constexpr std::int32_t engine_alignment = 2;

  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    words[0] = from_float<T>(x[0]).bits | static_cast<std::uint32_t>(from_float<T>(x[1]).bits) << 16;
  }
  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    x[0] = to_float(T{static_cast<std::uint16_t>(words[0] & 0xffffU)});
    x[1] = to_float(T{static_cast<std::uint16_t>(words[0] >> 16)});
  }

  friend constexpr bool operator==(HalfRows const&, HalfRows const&) = default;
};
using Fp16 = HalfRows<float16>;
using Bf16 = HalfRows<bfloat16>;

HEADAWARE_NAMESPACE_END
