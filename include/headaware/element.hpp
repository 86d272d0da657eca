#pragma once

/// @file
/// Element types of a cache. Moving a row needs only their size; rotating a key needs their value.

#include <headaware/config.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// `std::bit_cast`, which device code may not call.
template <class To, class From>
[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr To bits_as(From const& value) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, value);
}

}  // namespace detail

/// @brief IEEE 754 binary16, as bits; the same bytes as CUDA's `__half`.
struct float16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(float16 const&, float16 const&) = default;
};

/// @brief bfloat16, as bits; the same bytes as CUDA's `__nv_bfloat16`.
struct bfloat16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(bfloat16 const&, bfloat16 const&) = default;
};

/// @brief Two packed 4-bit values. A layout over this element counts pairs of channels: give it
/// `head_dim / 2` channels.
struct int4x2 {
  std::uint8_t bits = 0;
  friend constexpr bool operator==(int4x2 const&, int4x2 const&) = default;
};

namespace detail {

/// True of floating-point element types.
template <class T>
inline constexpr bool holds_floats =
    std::is_same_v<T, float> || std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;

}  // namespace detail

[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr float to_float(float value) { return value; }

[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr float to_float(bfloat16 value) {
  return detail::bits_as<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr float to_float(float16 value) {
  std::uint32_t const sign = static_cast<std::uint32_t>(value.bits & 0x8000U) << 16;
  std::uint32_t const magnitude = value.bits & 0x7fffU;
  // Moving the exponent field by 13 bits and scaling by 2^112 rebiases normal and subnormal numbers alike.
  std::uint32_t bits = detail::bits_as<std::uint32_t>(detail::bits_as<float>(magnitude << 13) * 0x1p112F);
  if (magnitude >= 0x7c00U) bits = (magnitude << 13) | 0x7f800000U;
  return detail::bits_as<float>(bits | sign);
}

/// @brief Converts with rounding to nearest even; NaN stays NaN.
template <class T>
[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr T from_float(float value);

template <>
HEADAWARE_HOST_DEVICE constexpr float from_float<float>(float value) {
  return value;
}

template <>
HEADAWARE_HOST_DEVICE constexpr bfloat16 from_float<bfloat16>(float value) {
  std::uint32_t const bits = detail::bits_as<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return {static_cast<std::uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

template <>
HEADAWARE_HOST_DEVICE constexpr float16 from_float<float16>(float value) {
  std::uint32_t const bits = detail::bits_as<std::uint32_t>(value);
  std::uint32_t const sign = (bits >> 16) & 0x8000U;
  std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t result = 0;
  if (magnitude > 0x7f800000U) {
    result = 0x7e00U;  // NaN
  } else if (magnitude >= 0x477ff000U) {
    result = 0x7c00U;  // rounds beyond 65504
  } else if (magnitude < 0x38800000U) {
    // Subnormal: adding 0.5 lets the float unit align and round the significand.
    float const aligned = detail::bits_as<float>(magnitude) + 0.5F;
    result = detail::bits_as<std::uint32_t>(aligned) - detail::bits_as<std::uint32_t>(0.5F);
  } else {
    magnitude += 0xfffU + ((magnitude >> 13) & 1U);
    result = (magnitude - 0x38000000U) >> 13;
  }
  return {static_cast<std::uint16_t>(result | sign)};
}

HEADAWARE_NAMESPACE_END
