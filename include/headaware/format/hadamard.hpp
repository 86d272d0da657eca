#pragma once

/// @file
/// The Hadamard rotation of a block of channels, which spreads outliers over the block before it is rounded.

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// 1 / sqrt(n) of a power of two, exact for even powers.
HEADAWARE_HOST_DEVICE constexpr float inverse_root(std::int32_t n) {
  float result = 1;
  for (; n >= 4; n /= 4) result /= 2;
  return n == 2 ? result * 0.70710678118654752440F : result;
}

}  // namespace detail

/// @brief Multiplies a block by the normalised Hadamard matrix of its size, in place; twice gives the block again.
///
/// Sums and differences only, in one order on every back end, then one multiplication: the same bits everywhere.
/// @tparam Size  channels, a power of two
/// @param x      [Size]
/// @par Cost  Size · log2(Size) additions
/// @par Source  Ashkboos et al., QuaRot, arXiv:2404.00456
template <std::int32_t Size>
HEADAWARE_HOST_DEVICE void rotate_block(float* x) {
  static_assert(Size > 0 && (Size & (Size - 1)) == 0, "headaware: a rotated block has a power of two of channels");
  HEADAWARE_UNROLL
  for (std::int32_t half = 1; half < Size; half *= 2) {
    HEADAWARE_UNROLL
    for (std::int32_t i = 0; i < Size; ++i) {
      if ((i & half) != 0) continue;
      float const a = x[i];
      float const b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
  constexpr float norm = detail::inverse_root(Size);
  HEADAWARE_UNROLL
  for (std::int32_t i = 0; i < Size; ++i) x[i] *= norm;
}

HEADAWARE_NAMESPACE_END
