#pragma once

// Arithmetic on a caller's 64-bit numbers that says when they are too large.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
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

/// @brief The elements of a tensor or of a part of it. A negative extent makes 0: whoever takes the extents names it.
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

/// One direction of a tensor.
struct Direction {
  std::int64_t count = 0;   ///< elements
  std::int64_t stride = 0;  ///< elements from one to the next
  bool by_table = false;    ///< a table says which of them are in use
};

/// @brief Elements from a tensor's base pointer to its end; 0 of an empty one.
/// @param first  elements before the tensor's first
/// @throws ArgumentError beyond 64 bits
/// @pre  nothing is negative
inline std::int64_t check_extent(char const* where, std::int64_t first, std::span<Direction const> directions) {
  for (Direction const& d : directions) {
    if (d.count == 0) return 0;
  }
  std::int64_t last = first;
  bool fits = first < largest_int64;
  for (Direction const& d : directions) {
    fits = fits && !product_overflows(d.count - 1, d.stride) && !sum_overflows(last, (d.count - 1) * d.stride);
    if (!fits) break;
    last += (d.count - 1) * d.stride;
  }
  if (!fits || last == largest_int64) {
    std::string got;
    for (Direction const& d : directions) {
      got += (got.empty() ? "" : ", ") + std::to_string(d.count) + " by a stride of " + std::to_string(d.stride);
    }
    refuse_size(got, where);
  }
  return last + 1;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
