#pragma once

/// @file
/// Tables to compare a plan with: uniform windows, blends of two tables, and the predicted error of any table.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/empty_plan.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>

HEADAWARE_NAMESPACE_BEGIN

/// @brief StreamingLLM at the size of a budget: every KV head keeps 4 sinks and a window; everything where the budget
/// reaches the context.
/// @param sink  tokens, at most one less than the budget leaves a head
/// @throws ArgumentError if the budget leaves a head no page, or not more than the sinks
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453
[[nodiscard]] inline PolicyTable uniform_table(std::int32_t num_layers, std::int32_t num_kv_heads, Budget const& budget,
                                               std::int64_t context, std::int64_t page_size = 1,
                                               std::int32_t sink = 4) {
  constexpr auto where = "uniform_table";
  PolicyTable table(num_layers, num_kv_heads, Full{});
  require(page_size > 0, "page_size", "> 0", page_size, where);
  std::int64_t const heads = std::int64_t{num_layers} * num_kv_heads;
  std::int64_t const each = budget.total(heads, context) / heads / page_size * page_size;
  if (each >= context) return table;
  require(sink >= 0 && each > sink, "budget", {"more than ", sink, " tokens per head"}, each, where);
  return {num_layers, num_kv_heads, SinkWindow{.sink = sink, .window = static_cast<std::int32_t>(each - sink)}};
}

/// @brief The same at the size of a plan: for the heads that it chooses for, beside layers that it skips.
/// @throws ArgumentError also where all layers are skipped, or one is out of range
[[nodiscard]] inline PolicyTable uniform_table(KvErrors const& errors, Budget const& budget, std::int64_t context,
                                               PlanOptions const& options) {
  auto const layers = planned_layers(errors.num_layers, options.skip_layers);
  auto const planned = static_cast<std::int32_t>(layers.size());
  PolicyTable const windows = uniform_table(planned, errors.num_kv_heads, budget, context, options.page_size);
  return PolicyTable(errors.num_layers, errors.num_kv_heads, windows.at(0, 0)).skip_layers(options.skip_layers);
}

/// @brief Blends two tables: each head's tokens are those of `uniform` and `plan` in the shares 1 - share and share,
/// its sinks likewise. For a guard that tries several shares on held-out text.
///
/// The sum of tokens is the shares' sum of both tables' sums, rounded down: never above the larger. Full counts as all
/// of `context`, Prune as nothing; both take the other's sinks.
/// @param share    0: `uniform`; 1: `plan`
/// @param context  tokens, as for the plan
/// @throws ArgumentError if the tables' shapes differ, `share` is outside [0, 1], or a policy has no window
[[nodiscard]] inline PolicyTable blend(PolicyTable const& uniform, PolicyTable const& plan, double share,
                                       std::int64_t context, std::int64_t page_size = 1) {
  constexpr auto where = "blend";
  require(share >= 0 && share <= 1, "share", "in [0, 1]", share, where);
  require(uniform.num_layers() == plan.num_layers(), "layers", uniform.num_layers(), plan.num_layers(), where);
  require(uniform.num_kv_heads() == plan.num_kv_heads(), "KV heads", uniform.num_kv_heads(), plan.num_kv_heads(),
          where);
  require(context > 0, "context", "> 0", context, where);
  require(page_size > 0, "page_size", "> 0", page_size, where);
  if (share == 0) return uniform;
  PolicyTable table = plan;
  if (share == 1) return table;
  // Pages up to a head, of both tables and of the blend: what is rounded down is the sum, not each head.
  std::int64_t pages_a = 0;
  std::int64_t pages_b = 0;
  std::int64_t pages = 0;
  for (std::int32_t layer = 0; layer < plan.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < plan.num_kv_heads(); ++head) {
      auto const& a = uniform.at(layer, head);
      auto const& b = plan.at(layer, head);
      pages_a += held_tokens(a, context, page_size) / page_size;
      pages_b += held_tokens(b, context, page_size) / page_size;
      double const exact = (1 - share) * static_cast<double>(pages_a) + share * static_cast<double>(pages_b);
      // 0.7 · 10 + 0.3 · 10 pages are ten also where they come out as 9.999…
      auto const reach = static_cast<std::int64_t>(std::floor(exact * (1 + 1e-12)));
      std::int64_t const tokens = (reach - pages) * page_size;
      pages = reach;
      auto const window_a = policy_window(a, where);
      auto const window_b = policy_window(b, where);
      std::int32_t const sink_a = window_a.value_or(window_b.value_or(WindowRule{})).sink;
      std::int32_t const sink_b = window_b ? window_b->sink : sink_a;
      if (tokens <= 0) {
        table.set(layer, head, Prune{});
      } else if (tokens >= context) {
        table.set(layer, head, Full{});
      } else {
        auto const sink = static_cast<std::int64_t>(std::lround((1 - share) * sink_a + share * sink_b));
        std::int64_t const kept = std::min(sink, tokens - 1);
        table.set(
            layer, head,
            SinkWindow{.sink = static_cast<std::int32_t>(kept), .window = static_cast<std::int32_t>(tokens - kept)});
      }
    }
  }
  return table;
}

/// @brief Computes size and predicted error of a table made elsewhere
/// (`KvErrors::at`, so also for windows off the grid). The budget is what it holds, unless one is given.
/// @throws ArgumentError if the table's shape is not that of the errors, a policy has no window, or it holds more than
///         the budget
/// @par Cost  O(heads · windows)
[[nodiscard]] inline PolicyPlan evaluate_table(PolicyTable const& table, KvErrors const& errors, std::int64_t context,
                                               PlanOptions const& options = {},
                                               std::optional<Budget> const& budget = {}) {
  constexpr auto where = "evaluate_table";
  options.validate(context);
  require(table.num_layers() == errors.num_layers, "table's layers", errors.num_layers, table.num_layers(), where);
  require(table.num_kv_heads() == errors.num_kv_heads, "table's KV heads", errors.num_kv_heads, table.num_kv_heads(),
          where);
  PolicyPlan plan = empty_plan(errors, context, options);
  for (std::size_t head = 0; head < errors.size(); ++head) {
    auto const num_kv_heads = static_cast<std::size_t>(errors.num_kv_heads);
    AnyPolicy<> const& policy =
        table.at(static_cast<std::int32_t>(head / num_kv_heads), static_cast<std::int32_t>(head % num_kv_heads));
    auto const kept = policy_window(policy, where);
    double error = policy.is<Prune>() ? errors.dropped[head] : 0;
    if (kept) error = errors.at(head, kept->sink, kept->window, context);
    plan.set(head, policy, {held_tokens(policy, context, options.page_size), error});
  }
  plan.budget_tokens =
      budget ? budget->total(plan.planned_heads(), context) + plan.skipped_tokens() : plan.planned_tokens;
  require(plan.planned_tokens <= plan.budget_tokens, "tokens of the table",
          {"at most the budget, ", plan.budget_tokens}, plan.planned_tokens, where);
  return plan;
}

HEADAWARE_NAMESPACE_END
