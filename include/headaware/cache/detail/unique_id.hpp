#pragma once

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Returns a number that is unique in the process and never 0. Thread-safe.
[[nodiscard]] inline std::uint64_t unique_id() {
  static std::uint64_t last = 0;
  return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
