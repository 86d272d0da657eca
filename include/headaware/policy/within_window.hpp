#pragma once

/// @file
/// Policies in layers that have a sliding window of their own.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/registry.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Returns what a policy means in a layer whose queries see the last `window` tokens alone: it keeps none that
/// no query sees. `Full` is the window, a longer window too; sinks, which such a layer soon loses sight of, become as
/// many tokens of window, and scored ones, of which no query would see those that have left it, too; `Prune` stays. A
/// keep-list stays as it is, too, as it names its tokens itself: that the layer sees them is its maker's to mind.
///
/// A policy of your own says so by `Mine within_window(std::int64_t window) const`.
/// @throws ArgumentError for a policy that does not say, and where the registry has no windows
template <class Registry>
[[nodiscard]] AnyPolicy<Registry> within_window(AnyPolicy<Registry> const& policy, std::int32_t window) {
  constexpr auto where = "within_window";
  auto const last = [&](std::int64_t tokens) -> AnyPolicy<Registry> {
    auto const kept = static_cast<std::int32_t>(std::min<std::int64_t>(tokens, window));
    if constexpr (Registry::template contains<WindowOnly>) {
      return WindowOnly{kept};
    } else if constexpr (Registry::template contains<SinkWindow>) {
      return SinkWindow{0, kept};
    } else {
      throw ArgumentError({"registry", "one with window_only or sink_window, as the layer slides", "neither", where});
    }
  };
  return policy.visit([&]<class P>(P const& p) -> AnyPolicy<Registry> {
    if constexpr (requires {
                    { p.within_window(std::int64_t{window}) } -> std::same_as<P>;
                  }) {
      return p.within_window(std::int64_t{window});
    } else if constexpr (std::is_same_v<P, Full>) {
      return last(window);
    } else if constexpr (std::is_same_v<P, SinkWindow>) {
      return last(std::int64_t{p.sink} + p.window);
    } else if constexpr (std::is_same_v<P, SinkWindowScored>) {
      return last(std::int64_t{p.sink} + p.window + p.scored);
    } else if constexpr (std::is_same_v<P, WindowOnly>) {
      return last(p.window);
    } else if constexpr (std::is_same_v<P, Prune> || std::is_same_v<P, KeepList>) {
      return p;
    } else {
      throw ArgumentError({"policy in a layer that slides", "one with 'Policy within_window(int64_t window) const'",
                           std::string(P::name) + ", which has none", where});
    }
  });
}

HEADAWARE_NAMESPACE_END
