#pragma once

#include <headaware/config.hpp>

#include <utility>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Number that is 0 once moved from, as a vector is empty: its owner is then empty as a whole.
template <class T>
class ZeroWhenMoved {
 public:
  constexpr ZeroWhenMoved() = default;
  constexpr ZeroWhenMoved(T value) : value_(value) {}
  constexpr ZeroWhenMoved(ZeroWhenMoved const&) = default;
  constexpr ZeroWhenMoved& operator=(ZeroWhenMoved const&) = default;
  constexpr ZeroWhenMoved(ZeroWhenMoved&& other) noexcept : value_(std::exchange(other.value_, T{})) {}
  constexpr ZeroWhenMoved& operator=(ZeroWhenMoved&& other) noexcept {
    value_ = std::exchange(other.value_, T{});
    return *this;
  }
  ~ZeroWhenMoved() = default;
  constexpr operator T() const { return value_; }

 private:
  T value_{};
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
