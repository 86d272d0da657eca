#pragma once

/// @file
/// Folds the policies of the query heads of a group (grouped-query attention) into one for their KV head, which keeps
/// what each of them needs.

#include <headaware/error.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/registry.hpp>

#include <algorithm>
#include <optional>
#include <span>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Whether a policy is a `P`; false also where the registry knows no `P`.
template <class P, class Registry>
[[nodiscard]] bool holds(AnyPolicy<Registry> const& policy) {
  if constexpr (Registry::template contains<P>) {
    return policy.template is<P>();
  } else {
    return false;
  }
}

/// A window policy as one with scored tokens, of which most have none; nothing for any other policy.
template <class Registry>
[[nodiscard]] std::optional<SinkWindowScored> as_scored(AnyPolicy<Registry> const& policy) {
  if (holds<SinkWindowScored>(policy)) {
    if constexpr (Registry::template contains<SinkWindowScored>) return policy.template get<SinkWindowScored>();
  }
  auto const window = policy_window(policy);
  if (!window) return std::nullopt;
  return SinkWindowScored{.sink = window->sink, .window = window->window, .scored = 0};
}

/// The smallest window policy that keeps what both keep; nothing if one of them is no window policy.
template <class Registry>
[[nodiscard]] std::optional<AnyPolicy<Registry>> fold_windows(AnyPolicy<Registry> const& a,
                                                              AnyPolicy<Registry> const& b) {
  auto const window_a = as_scored(a);
  auto const window_b = as_scored(b);
  if (!window_a || !window_b) return std::nullopt;
  SinkWindow const both{.sink = std::max(window_a->sink, window_b->sink),
                        .window = std::max(window_a->window, window_b->window)};
  if constexpr (Registry::template contains<SinkWindowScored>) {
    // The best of the tokens that have left a window are among the best, or in the window, of a longer one.
    if (holds<SinkWindowScored>(a) || holds<SinkWindowScored>(b)) {
      return SinkWindowScored{
          .sink = both.sink, .window = both.window, .scored = std::max(window_a->scored, window_b->scored)};
    }
  }
  if constexpr (Registry::template contains<SinkWindow>) {
    if (holds<SinkWindow>(a) || holds<SinkWindow>(b)) return both;
  }
  if constexpr (Registry::template contains<WindowOnly>) return WindowOnly{both.window};
  return std::nullopt;
}

}  // namespace detail

/// @brief The policy that keeps what any of a group's policies keeps; their order does not matter.
///
/// `Full` wins, `Prune` adds nothing; `SinkWindow` and `WindowOnly` fold to the largest sink and the largest
/// window, `WindowOnly` among themselves to `WindowOnly`, with a `SinkWindowScored` to one that has the most scored
/// tokens of any, too. The union of other policies is not known here, so those left besides `Full` and `Prune` have to
/// be equal.
/// @param policies  of the query heads that share the KV head, at least one
/// @throws ArgumentError on an empty group, or naming two policies that do not fold
/// @par Cost  O(policies)
template <class Registry>
[[nodiscard]] AnyPolicy<Registry> fold_union(std::span<AnyPolicy<Registry> const> policies) {
  require(!policies.empty(), "group", "at least one policy", "none", "fold_union");
  for (auto const& policy : policies) {
    if (detail::holds<Full>(policy)) return policy;
  }
  AnyPolicy<Registry> result = policies.front();
  for (auto const& policy : policies.subspan(1)) {
    if (policy == result || detail::holds<Prune>(policy)) continue;
    if (detail::holds<Prune>(result)) {
      result = policy;
    } else if (auto const both = detail::fold_windows(result, policy)) {
      result = *both;
    } else {
      throw ArgumentError({"policies of one KV head", "windows, or equal policies",
                           std::string(result.name()) + " and another " + std::string(policy.name()), "fold_union"});
    }
  }
  return result;
}

/// @brief `fold_union` as a function object: the default rule of a group of query heads.
struct FoldUnion {
  template <class Registry>
  [[nodiscard]] AnyPolicy<Registry> operator()(std::span<AnyPolicy<Registry> const> policies) const {
    return fold_union<Registry>(policies);
  }
};

HEADAWARE_NAMESPACE_END
