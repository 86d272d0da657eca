#pragma once

/// @file
/// Sinks and window of the policies that a planner chooses from.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/registry.hpp>
#include <headaware/policy/rolling_policy.hpp>
#include <headaware/policy/window_rule.hpp>

#include <optional>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Returns sinks and window of `SinkWindow` and `WindowOnly`; nothing for any other policy.
template <class Registry>
[[nodiscard]] std::optional<WindowRule> policy_window(AnyPolicy<Registry> const& policy) {
  return policy.visit([]<class P>(P const& p) -> std::optional<WindowRule> {
    if constexpr (std::is_same_v<P, SinkWindow> || std::is_same_v<P, WindowOnly>) return window_rule(p);
    return std::nullopt;
  });
}

/// @brief The same for a policy that must be one of a planner's; nothing for `Full` and `Prune`.
/// @throws ArgumentError for any other policy
template <class = void>
[[nodiscard]] std::optional<WindowRule> policy_window(AnyPolicy<> const& policy, Text const& where) {
  auto const window = policy_window(policy);
  bool const known = window || policy.is<Full>() || policy.is<Prune>();
  require(known, "policy", "full, prune, sink_window or window_only", policy.name(), where);
  return window;
}

HEADAWARE_NAMESPACE_END
