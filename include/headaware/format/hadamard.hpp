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

/// Replaces channels `Half` apart by their sums and differences, then those twice as far apart, and so on. Distances
/// are known to the compiler, which turns runs of channels into vectors.
template <std::int32_t Size, std::int32_t Half>
HEADAWARE_HOST_DEVICE void add_and_subtract(float* x) {
  if constexpr (Half < Size) {
    HEADAWARE_UNROLL
    for (std::int32_t first = 0; first < Size; first += 2 * Half) {
      HEADAWARE_UNROLL
      for (std::int32_t i = first; i < first + Half; ++i) {
        float const a = x[i];
        float const b = x[i + Half];
        x[i] = a + b;
        x[i + Half] = a - b;
      }
    }
    add_and_subtract<Size, 2 * Half>(x);
  }
}

}  // namespace detail

/// @brief Multiplies a block by the normalised Hadamard matrix of its size, in place; twice gives the block again.
///
/// In natural (Sylvester's) order, i and j counted from 0:
/// y(i) = Size^(-1/2) · Σ_j (-1)^popcount(i & j) · x(j). Sums and differences only, in one order on every back end,
/// then one multiplication: the same bits everywhere.
/// @tparam Size  channels, a power of two
/// @param x      [Size]
/// @par Cost  Size · log2(Size) additions
/// @par Source  Ashkboos et al., QuaRot, arXiv:2404.00456
template <std::int32_t Size>
HEADAWARE_HOST_DEVICE void rotate_block(float* x) {
  static_assert(Size > 0 && (Size & (Size - 1)) == 0, "headaware: a rotated block has a power of two of channels");
  detail::add_and_subtract<Size, 1>(x);
  constexpr float norm = detail::inverse_root(Size);
  HEADAWARE_UNROLL
  for (std::int32_t i = 0; i < Size; ++i) x[i] *= norm;
}

HEADAWARE_NAMESPACE_END
