#pragma once

#include <headaware/error.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/window_rule.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps the last `window` tokens.
struct WindowOnly {
  static constexpr std::string_view name = "window_only";

  std::int32_t window = 512;  ///< newest tokens kept, the current one included

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return WindowRule{0, window}.keeps(token, length);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token, std::int64_t length) const {
    return WindowRule{0, window}.range(length).kept_before(token);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t row, std::int64_t length) const {
    return WindowRule{0, window}.range(length).token(row);
  }
  friend constexpr bool operator==(WindowOnly const&, WindowOnly const&) = default;

  /// @throws ArgumentError if `window` is negative
  void validate() const { require(window >= 0, "negative window", "window >= 0", window, "WindowOnly"); }
};
static_assert(HeadPolicy<WindowOnly>);

HEADAWARE_NAMESPACE_END
