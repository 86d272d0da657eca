#pragma once

/// @file
/// Sinks and window of the policies that a planner chooses from.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/registry.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Sinks and window of a policy, if it has any.
struct PolicyWindow {
  bool windowed = false;    ///< false: `Full` or `Prune`, which have neither
  std::int32_t sink = 0;    ///< tokens
  std::int32_t window = 0;  ///< tokens
};

/// @brief Returns sinks and window of `SinkWindow` and `WindowOnly`, and neither for `Full` and `Prune`.
/// @throws ArgumentError for any other policy
template <class = void>
[[nodiscard]] PolicyWindow policy_window(AnyPolicy<> const& policy, Text const& where) {
  if (policy.is<SinkWindow>()) {
    auto const p = policy.get<SinkWindow>();
    return {true, p.sink, p.window};
  }
  if (policy.is<WindowOnly>()) return {true, 0, policy.get<WindowOnly>().window};
  bool const known = policy.is<Full>() || policy.is<Prune>();
  require(known, "policy", "full, prune, sink_window or window_only", policy.name(), where);
  return {};
}

HEADAWARE_NAMESPACE_END
