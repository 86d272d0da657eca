#pragma once

/// @file
/// A plan as text that a person can read.

#include <headaware/config.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/policy_window.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

template <class... Values>
[[nodiscard]] std::string print(char const* format, Values... values) {
  char line[256];
  std::snprintf(line, sizeof(line), format, values...);
  return line;
}

}  // namespace detail

/// @brief Formats budget, prediction, heads per policy, the distribution of windows and sinks, and one line per layer.
[[nodiscard]] inline std::string plan_summary(PolicyPlan const& plan) {
  using detail::print;
  auto const wide = [](std::int64_t n) { return static_cast<long long>(n); };
  std::string text = print("plan for %lld tokens of context: %d layers x %d KV heads, %d query heads per layer\n",
                           wide(plan.context), plan.num_layers, plan.num_kv_heads, plan.num_heads);
  text +=
      print("budget %lld tokens, planned %lld (%.1f per KV head, %.1f%% of its cache), left %lld\n",
            wide(plan.budget_tokens), wide(plan.planned_tokens), plan.mean_tokens(),
            100 * plan.mean_tokens() / static_cast<double>(std::max<std::int64_t>(plan.context, 1)), wide(plan.left()));
  text += print("predicted error %.6g (measure %s, group %s, floor %lld, pages of %lld)\n\n", plan.predicted_error,
                std::string(to_string(plan.options.measure.value_or(ErrorMeasure::output))).c_str(),
                std::string(to_string(plan.options.fold)).c_str(), wide(plan.floor), wide(plan.options.page_size));

  if (!plan.options.skip_layers.empty()) {
    text.pop_back();
    text += print("kept whole beyond the budget, counted in tokens but not per KV head, %lld tokens: layers",
                  wide(plan.skipped_tokens()));
    for (std::int32_t const layer : plan.options.skip_layers) text += print(" %d", layer);
    text += "\n\n";
  }

  std::map<std::string_view, int> policies;
  std::map<std::int32_t, int> sinks;
  std::map<std::int64_t, int> windows;  // up to a power of two
  std::string layers = "   layer  mean tokens  min tokens  max tokens  full  prune  predicted error\n";
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    std::int64_t sum = 0;
    std::int64_t least = plan.context;
    std::int64_t most = 0;
    double error = 0;
    int full = 0;
    int prune = 0;
    for (std::int32_t kv = 0; kv < plan.num_kv_heads; ++kv) {
      AnyPolicy<> const& policy = plan.table.at(layer, kv);
      PlannedHead const& head =
          plan.heads[static_cast<std::size_t>(layer) * static_cast<std::size_t>(plan.num_kv_heads) +
                     static_cast<std::size_t>(kv)];
      ++policies[policy.name()];
      if (auto const kept = policy_window(policy, "plan_summary")) {
        ++sinks[kept->sink];
        std::int64_t bound = 8;
        while (bound < kept->window) bound *= 2;
        ++windows[bound];
      }
      full += policy.is<Full>() ? 1 : 0;
      prune += policy.is<Prune>() ? 1 : 0;
      sum += head.tokens;
      least = std::min(least, head.tokens);
      most = std::max(most, head.tokens);
      error += head.predicted_error;
    }
    layers += print("%8d %12.1f %11lld %11lld %5d %6d %16.6g\n", layer,
                    static_cast<double>(sum) / static_cast<double>(plan.num_kv_heads), wide(least), wide(most), full,
                    prune, error);
  }
  text += "policies:";
  for (auto const& [name, count] : policies) text += print("  %s %d", std::string(name).c_str(), count);
  text += "\nsinks:   ";
  for (auto const& [sink, count] : sinks) text += print("  %d: %d", sink, count);
  text += "\nwindows: ";
  for (auto const& [bound, count] : windows) text += print("  <=%lld: %d", wide(bound), count);
  return text + "\n\n" + layers;
}

HEADAWARE_NAMESPACE_END
