#pragma once

#include <headaware/config.hpp>

#include <atomic>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A number that nothing else in the process has; never 0. Any thread.
[[nodiscard]] inline std::uint64_t unique_id() {
  static std::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
