#pragma once

// Arithmetic on a caller's 64-bit numbers that says when they are too large.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int64_t largest_int64 = std::numeric_limits<std::int64_t>::max();

/// True if `a + b` overflows. @pre  a, b >= 0
[[nodiscard]] constexpr bool sum_overflows(std::int64_t a, std::int64_t b) { return b > largest_int64 - a; }
/// True if `a * b` overflows. @pre  a, b >= 0
[[nodiscard]] constexpr bool product_overflows(std::int64_t a, std::int64_t b) {
  return a != 0 && b > largest_int64 / a;
}

[[noreturn]] inline void refuse_size(std::string const& got, char const* where) {
  throw ArgumentError({"elements of a tensor, or its bytes", "at most " + std::to_string(largest_int64), got, where});
}

[[noreturn]] inline void refuse_product(char const* where, std::initializer_list<std::int64_t> extents) {
  std::string got;
  for (std::int64_t const each : extents) got += (got.empty() ? "" : " * ") + std::to_string(each);
  refuse_size(got, where);
}

/// @brief Multiplies the extents of a tensor or of a part of it; 0 where one is negative, which callers refuse by name.
/// @throws ArgumentError on a product beyond 64 bits
[[nodiscard]] constexpr std::int64_t elements(char const* where, std::initializer_list<std::int64_t> extents) {
  std::int64_t result = 1;
  for (std::int64_t const extent : extents) {
    if (extent <= 0) return 0;
  }
  for (std::int64_t const extent : extents) {
    if (product_overflows(result, extent)) refuse_product(where, extents);
    result *= extent;
  }
  return result;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
