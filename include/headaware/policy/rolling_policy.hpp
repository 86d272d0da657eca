#pragma once

/// @file
/// Policies that can be kept up token by token: those that keep sinks and a window.

#include <headaware/config.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/window_only.hpp>
#include <headaware/policy/window_rule.hpp>

#include <concepts>
#include <cstdint>
#include <limits>

HEADAWARE_NAMESPACE_BEGIN

/// A sink of this many tokens means all: a cache reserves room for as many as its limits say.
inline constexpr std::int32_t all_tokens = std::numeric_limits<std::int32_t>::max();

[[nodiscard]] constexpr WindowRule window_rule(SinkWindow const& policy) { return {policy.sink, policy.window}; }
[[nodiscard]] constexpr WindowRule window_rule(WindowOnly const& policy) { return {0, policy.window}; }
[[nodiscard]] constexpr WindowRule window_rule(Full const&) { return {all_tokens, 0}; }
[[nodiscard]] constexpr WindowRule window_rule(Prune const&) { return {0, 0}; }

/// @brief A policy that can be kept up token by token in place. Your own policy becomes one with a host function
/// `WindowRule window_rule(Mine const&)` in its namespace (found by its argument).
/// @pre  `keeps(token, length)` is that of the rule
template <class P>
concept RollingPolicy = requires(P const policy) {
  { window_rule(policy) } -> std::same_as<WindowRule>;
};

HEADAWARE_NAMESPACE_END
