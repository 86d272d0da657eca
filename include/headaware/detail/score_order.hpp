#pragma once

// The order of scores, by which all that choose tokens choose them.

#include <headaware/config.hpp>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Scores as unsigned numbers of the same order: NaN 0, -inf after it, +inf last; -0 is 0.
[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::uint32_t score_key(float score) {
  if (score != score) return 0;
  auto const bits = bits_as<std::uint32_t>(score + 0.0F);  // -0 becomes 0
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
