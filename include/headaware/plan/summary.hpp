#pragma once

/// @file
/// A plan as text that a person can read.

#include <headaware/config.hpp>
#include <headaware/model_shape.hpp>
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

/// Tokens that a planned head would hold on average where all keep everything.
[[nodiscard]] inline double full_mean(PolicyPlan const& plan) {
  if (plan.layers.num_layers() == 0) return static_cast<double>(plan.context);
  std::int64_t tokens = 0;
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    bool const skipped = std::binary_search(plan.options.skip_layers.begin(), plan.options.skip_layers.end(), layer);
    std::int64_t const window = plan.table.window(layer);
    if (!skipped)
      tokens += plan.table.num_kv_heads(layer) * (window != 0 ? std::min(window, plan.context) : plan.context);
  }
  return static_cast<double>(tokens) / static_cast<double>(std::max<std::int64_t>(plan.planned_heads(), 1));
}

}  // namespace detail

/// @brief Formats budget, prediction, heads per policy, the distribution of windows and sinks (in plans by bytes of
/// formats of keys and values, too), and one line per layer with a cache of its own. In layers that slide, heads that
/// keep their whole window count as full.
[[nodiscard]] inline std::string plan_summary(PolicyPlan const& plan) {
  using detail::print;
  auto const wide = [](std::int64_t n) { return static_cast<long long>(n); };
  bool const alike = plan.layers.num_layers() == 0;
  std::string text = print("plan for %lld tokens of context: %d layers x %d KV heads, %d query heads per layer\n",
                           wide(plan.context), plan.num_layers, plan.num_kv_heads, plan.num_heads);
  if (!alike) {
    std::int32_t caches = 0;
    std::int32_t slide = 0;
    for (LayerShape const& l : plan.layers.layers()) {
      caches += l.has_cache() ? 1 : 0;
      slide += l.has_cache() && l.window != 0 ? 1 : 0;
    }
    text = print("plan for %lld tokens of context: %lld KV heads in %d of %d layers, of which %d slide\n",
                 wide(plan.context), wide(plan.table.heads().total()), caches, plan.num_layers, slide);
  }
  double const whole = detail::full_mean(plan);
  if (plan.by_bytes()) {
    std::int64_t const records = plan.planned_record_bytes();
    std::string const beside = records == 0 ? "" : print(", scores and records %lld", wide(records));
    text += print(
        "budget %lld bytes, planned %lld (%.2f%% of the cache in 16 bits, %.1f tokens per KV head)%s, left %lld\n",
        wide(plan.budget_bytes()), wide(plan.planned_bytes()), 100 * plan.share_held(), plan.mean_tokens(),
        beside.c_str(), wide(plan.left() - records));
  } else {
    text += print("budget %lld tokens, planned %lld (%.1f per KV head, %.1f%% of its cache), left %lld\n",
                  wide(plan.budget_tokens), wide(plan.planned_tokens), plan.mean_tokens(),
                  100 * plan.mean_tokens() / std::max(whole, 1.0), wide(plan.left()));
  }
  if (!plan.row_costs.empty() && !plan.by_bytes()) {
    text.pop_back();
    text += print(" of %lld bytes or channels, planned %lld: rows of layers differ\n", wide(plan.budget_cost),
                  wide(plan.planned_cost()));
  }
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
  std::string layers = "   layer  mean tokens  min tokens  max tokens  full  prune  predicted error";
  layers += plan.by_bytes() ? "        bytes\n" : "\n";
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    std::int64_t sum = 0;
    std::int64_t bytes = 0;
    std::int64_t least = plan.context;
    std::int64_t most = 0;
    double error = 0;
    int full = 0;
    int prune = 0;
    std::int32_t const heads = plan.table.num_kv_heads(layer);
    if (heads == 0) continue;
    for (std::int32_t kv = 0; kv < heads; ++kv) {
      AnyPolicy<> const& policy = plan.table.at(layer, kv);
      PlannedHead const& head = plan.heads[static_cast<std::size_t>(plan.table.heads().first(layer) + kv)];
      ++policies[policy.name()];
      bool const scored = policy.is<SinkWindowScored>();
      auto const kept =
          scored ? std::optional(WindowRule{policy.get<SinkWindowScored>().sink, policy.get<SinkWindowScored>().window})
                 : policy_window(policy, "plan_summary");
      if (kept) {
        ++sinks[kept->sink];
        std::int64_t bound = 8;
        while (bound < kept->window) bound *= 2;
        ++windows[bound];
      }
      full += plan.keeps_all(layer, kv) ? 1 : 0;
      prune += policy.is<Prune>() ? 1 : 0;
      sum += head.tokens;
      bytes += head.bytes;
      least = std::min(least, head.tokens);
      most = std::max(most, head.tokens);
      error += head.predicted_error;
    }
    layers += print("%8d %12.1f %11lld %11lld %5d %6d %16.6g", layer,
                    static_cast<double>(sum) / static_cast<double>(heads), wide(least), wide(most), full, prune, error);
    layers += plan.by_bytes() ? print(" %12lld\n", wide(bytes)) : "\n";
  }
  text += "policies:";
  for (auto const& [name, count] : policies) text += print("  %s %d", std::string(name).c_str(), count);
  text += "\nsinks:   ";
  for (auto const& [sink, count] : sinks) text += print("  %d: %d", sink, count);
  text += "\nwindows: ";
  for (auto const& [bound, count] : windows) text += print("  <=%lld: %d", wide(bound), count);
  if (plan.by_bytes()) {
    text += "\nformats: ";
    for (auto const& [pair, count] : plan.format_counts()) {
      text += print("  %s %lld", pair.name().c_str(), wide(count));
    }
  }
  return text + "\n\n" + layers;
}

HEADAWARE_NAMESPACE_END
