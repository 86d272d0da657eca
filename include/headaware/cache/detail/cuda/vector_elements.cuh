#pragma once

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The widest power-of-two access, in elements, that `run` elements and all the addresses allow.
/// @param addresses  all of them, joined by `|`
template <class T>
std::int64_t vector_elements(std::int64_t run, std::uintptr_t addresses) {
  std::int64_t width = 16 / static_cast<std::int64_t>(sizeof(T));
  auto const fits = [&](std::int64_t elements) {
    return run % elements == 0 && addresses % (static_cast<std::uintptr_t>(elements) * sizeof(T)) == 0;
  };
  while (width > 1 && !fits(width)) width /= 2;
  return width;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
