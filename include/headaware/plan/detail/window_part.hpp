#pragma once

#include <headaware/config.hpp>

#include <cmath>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The part of the way between two windows at which another one lies, in the logarithm of the window: how errors
/// between windows of a grid are read.
[[nodiscard]] inline double window_part(std::int64_t window, std::int64_t low, std::int64_t high) {
  auto const from = static_cast<double>(low);
  return std::log(static_cast<double>(window) / from) / std::log(static_cast<double>(high) / from);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
