#pragma once

#include <headaware/config.hpp>

#include <limits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// `std::isfinite`; <cmath> would be a tenth of what the front door costs to compile.
[[nodiscard]] constexpr bool is_finite(double value) {
  return value >= std::numeric_limits<double>::lowest() && value <= std::numeric_limits<double>::max();
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
