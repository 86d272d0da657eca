#pragma once

// Scales of a block's codes, on host and device alike. Nothing here may be contracted to another rounding: products and
// sums that belong together are fused by name.

#include <headaware/config.hpp>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The largest half-precision number: what scales and minima hold, so larger channels are rounded to it.
inline constexpr float largest_half = 65504.0F;

/// The least number whose inverse is finite.
inline constexpr float least_float = 1.1754944e-38F;

HEADAWARE_HOST_DEVICE inline float nearest_integer(float x) {
#if defined(__CUDA_ARCH__)
  return rintf(x);
#else
  return __builtin_rintf(x);
#endif
}
/// a · b + c, rounded once.
HEADAWARE_HOST_DEVICE inline float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
HEADAWARE_HOST_DEVICE constexpr float clamped(float x, float low, float high) {
  return x < low ? low : (x > high ? high : x);
}

/// Least and greatest channel of a block, in the range of half precision.
struct BlockRange {
  float min = largest_half;
  float max = -largest_half;
  bool finite = true;  ///< no channel is NaN or infinite

  template <std::int32_t Size>
  HEADAWARE_HOST_DEVICE static BlockRange of(float const* x) {
    BlockRange range;
    float zero = 0;
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < Size; ++i) {
      zero += x[i] - x[i];
      range.min = x[i] < range.min ? x[i] : range.min;
      range.max = x[i] > range.max ? x[i] : range.max;
    }
    range.finite = zero == 0;
    range.min = clamped(range.min, -largest_half, largest_half);
    range.max = clamped(range.max, -largest_half, largest_half);
    return range;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE float largest() const { return -min > max ? -min : max; }
};

/// A scale, as it is stored: what codes are made with, so that rounding it costs no accuracy twice.
struct BlockScale {
  float value = 0;
  float inverse = 0;  ///< 0 where all channels have one code
  float16 stored;

  HEADAWARE_HOST_DEVICE static BlockScale of(float scale, bool finite) {
    BlockScale result;
    result.stored = finite ? from_float<float16>(scale) : float16{0x7e00U};
    result.value = to_float(result.stored);
    result.inverse = result.value > 0 ? 1 / result.value : 0.0F;
    return result;
  }
};

/// The code of a channel: its distance from `origin` in steps of the scale, within [low, high].
HEADAWARE_HOST_DEVICE inline std::int32_t code_of(float x, float origin, BlockScale const& scale, float low,
                                                  float high) {
  return static_cast<std::int32_t>(clamped(nearest_integer((x - origin) * scale.inverse), low, high));
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
