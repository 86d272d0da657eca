#pragma once

#include <headaware/error.hpp>
#include <headaware/policy/concept.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps the last `window` tokens.
struct WindowOnly {
  static constexpr std::string_view name = "window_only";

  std::int32_t window = 512;  ///< newest tokens kept, the current one included

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token >= length - window;
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token, std::int64_t length) const {
    return token > window_start(length) ? token - window_start(length) : 0;
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t slot, std::int64_t length) const {
    return slot + window_start(length);
  }
  friend constexpr bool operator==(WindowOnly const&, WindowOnly const&) = default;

  /// @throws ArgumentError if `window` is negative
  void validate() const { require(window >= 0, "negative window", "window >= 0", window, "WindowOnly"); }

 private:
  HEADAWARE_HOST_DEVICE constexpr std::int64_t window_start(std::int64_t length) const {
    return length > window ? length - window : 0;
  }
};
static_assert(HeadPolicy<WindowOnly>);

HEADAWARE_NAMESPACE_END
