#pragma once

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The largest size below `end` that fits, where all below a size that fits do; `least` where no larger one does.
template <class Fits>
[[nodiscard]] std::int64_t largest_fitting(std::int64_t least, std::int64_t end, Fits const& fits) {
  while (end - least > 1) {
    std::int64_t const middle = least + (end - least) / 2;
    (fits(middle) ? least : end) = middle;
  }
  return least;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
