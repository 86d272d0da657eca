#pragma once

/// @file
/// Tables to compare a plan with: uniform windows, blends of two tables, and the predicted error of any table.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/detail/budget_parts.hpp>
#include <headaware/plan/detail/cache_costs.hpp>
#include <headaware/plan/detail/largest_fitting.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/empty_plan.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// The table in which every head of the layers that are not skipped has the same size, and all fit the budget.
[[nodiscard]] inline PolicyTable uniform_table(ModelShape const& shape, CacheCosts const& costs, std::int64_t total,
                                               std::int64_t page_size, std::int32_t sink,
                                               std::span<std::int32_t const> skipped) {
  constexpr auto where = "uniform_table";
  PolicyTable whole(shape, Full{});
  require(page_size > 0, "page_size", "> 0", page_size, where);
  require(sink >= 0, "sink", ">= 0", sink, where);
  // The most pages of each that fit: of layers that slide the window's at most.
  auto const cost = [&](std::int64_t pages) {
    return costs.of(
        [&](std::int32_t layer) { return std::min(pages * page_size, whole_pages(costs.visible(layer), page_size)); });
  };
  std::int64_t const all = whole_pages(costs.context, page_size) / page_size;
  if (cost(all) <= total) return whole;
  std::int64_t const each =
      page_size * largest_fitting(0, all, [&](std::int64_t pages) { return cost(pages) <= total; });
  require(each > sink, "budget", {"more than ", sink, " tokens per head"}, each, where);
  return PolicyTable(shape, SinkWindow{.sink = sink, .window = static_cast<std::int32_t>(each - sink)})
      .skip_layers(skipped);
}

/// The policy of a head that holds so many tokens of those it sees, with sinks between those of two policies.
[[nodiscard]] inline AnyPolicy<> blended_policy(AnyPolicy<> const& a, AnyPolicy<> const& b, double share,
                                                std::int64_t tokens, std::int64_t visible, char const* where) {
  auto const window_a = policy_window(a, where);
  auto const window_b = policy_window(b, where);
  if (tokens <= 0) return Prune{};
  if (tokens >= visible) return Full{};
  std::int32_t const sink_a = window_a.value_or(window_b.value_or(WindowRule{})).sink;
  std::int32_t const sink_b = window_b ? window_b->sink : sink_a;
  auto const sink = static_cast<std::int64_t>(std::lround((1 - share) * sink_a + share * sink_b));
  std::int64_t const kept = std::min(sink, tokens - 1);
  return SinkWindow{.sink = static_cast<std::int32_t>(kept), .window = static_cast<std::int32_t>(tokens - kept)};
}

}  // namespace detail

/// @brief StreamingLLM at the size of a budget: every KV head keeps 4 sinks and a window, of layers that slide as many
/// tokens of window; everything where the budget reaches the context.
/// @param shape  a `ModelConfig` where all layers are alike
/// @param sink   tokens, at most one less than the budget leaves a head
/// @throws ArgumentError if the budget leaves a head no page, or not more than the sinks
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453
[[nodiscard]] inline PolicyTable uniform_table(ModelShape const& shape, Budget const& budget, std::int64_t context,
                                               std::int64_t page_size = 1, std::int32_t sink = 4) {
  KvErrors of_shape;
  detail::set_shape(of_shape, shape);
  detail::CacheCosts const costs = detail::cache_costs(of_shape, &budget, context);
  return detail::uniform_table(shape, costs, budget.total(costs), page_size, sink, {});
}

/// @brief The same of a model whose layers are all alike.
[[nodiscard]] inline PolicyTable uniform_table(std::int32_t num_layers, std::int32_t num_kv_heads, Budget const& budget,
                                               std::int64_t context, std::int64_t page_size = 1,
                                               std::int32_t sink = 4) {
  return uniform_table(ModelConfig{num_layers, num_kv_heads, num_kv_heads, 0}, budget, context, page_size, sink);
}

/// @brief The same at the size of a plan: for the heads that it chooses for, beside layers that it skips. In 16 bits,
/// also where the plan is by bytes (`uniform_plan` for windows in other formats).
/// @throws ArgumentError also where all layers are skipped, or one is out of range
[[nodiscard]] inline PolicyTable uniform_table(KvErrors const& errors, Budget const& budget, std::int64_t context,
                                               PlanOptions const& options) {
  auto const layers = planned_layers(errors.num_layers, options.skip_layers);
  detail::CacheCosts const costs = detail::cache_costs(errors, &budget, context, options.formats).select(layers);
  return detail::uniform_table(errors.shape(), costs, budget.total(costs), options.page_size, 4, options.skip_layers);
}

/// @brief Blends two tables: each head's tokens are those of `uniform` and `plan` in the shares 1 - share and share,
/// its sinks likewise. For a guard that tries several shares on held-out text.
///
/// The sum of tokens is the shares' sum of both tables' sums, rounded down: never above the larger; where layers have
/// windows or other numbers of KV heads, that of each layer. Full counts as all of `context` that the layer sees, Prune
/// as nothing; both take the other's sinks.
/// @param share    0: `uniform`; 1: `plan`
/// @param context  tokens, as for the plan
/// @throws ArgumentError if the tables' shapes differ, `share` is outside [0, 1], or a policy has no window
[[nodiscard]] inline PolicyTable blend(PolicyTable const& uniform, PolicyTable const& plan, double share,
                                       std::int64_t context, std::int64_t page_size = 1) {
  constexpr auto where = "blend";
  require(share >= 0 && share <= 1, "share", "in [0, 1]", share, where);
  require(uniform.num_layers() == plan.num_layers(), "layers", uniform.num_layers(), plan.num_layers(), where);
  bool by_layer = plan.heads().first_heads != nullptr;
  for (std::int32_t layer = 0; layer < plan.num_layers(); ++layer) {
    by_layer = by_layer || plan.window(layer) != 0;
    require(uniform.num_kv_heads(layer) == plan.num_kv_heads(layer), "KV heads", uniform.num_kv_heads(layer),
            plan.num_kv_heads(layer), where);
    require(uniform.window(layer) == plan.window(layer), "window of the layer", uniform.window(layer),
            plan.window(layer), where);
  }
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
    if (by_layer) pages_a = pages_b = pages = 0;
    std::int64_t const window = plan.window(layer);
    std::int64_t const visible = window != 0 ? std::min(window, context) : context;
    for (std::int32_t head = 0; head < plan.num_kv_heads(layer); ++head) {
      auto const& a = uniform.at(layer, head);
      auto const& b = plan.at(layer, head);
      pages_a += held_tokens(a, context, page_size) / page_size;
      pages_b += held_tokens(b, context, page_size) / page_size;
      double const exact = (1 - share) * static_cast<double>(pages_a) + share * static_cast<double>(pages_b);
      // 0.7 · 10 + 0.3 · 10 pages are ten also where they come out as 9.999…
      auto const reach = static_cast<std::int64_t>(std::floor(exact * (1 + 1e-12)));
      std::int64_t const tokens = (reach - pages) * page_size;
      pages = reach;
      table.set(layer, head, detail::blended_policy(a, b, share, tokens, visible, where));
    }
  }
  return table;
}

/// @brief Computes size and predicted error of a table made elsewhere
/// (`KvErrors::at`, so also for windows off the grid; `KvErrors::scored_at`). The budget is what it holds, unless one
/// is given.
/// @param formats  of the heads, in plans by bytes; empty: 16 bits
/// @throws ArgumentError if the table's shape is not that of the errors, a policy has no window, it holds more than the
///         budget, or there are formats and `options` do not plan by bytes, or errors of one of them are not known
/// @par Cost  O(heads · windows)
[[nodiscard]] inline PolicyPlan evaluate_table(PolicyTable const& table, FormatTable const& formats,
                                               KvErrors const& errors, std::int64_t context,
                                               PlanOptions const& options = {},
                                               std::optional<Budget> const& budget = {}) {
  constexpr auto where = "evaluate_table";
  options.validate(context);
  FormatChoice const& choice = options.formats;
  require(table.num_layers() == errors.num_layers, "table's layers", errors.num_layers, table.num_layers(), where);
  PolicyPlan plan = empty_plan(errors, context, options);
  detail::CacheCosts const costs = detail::cache_costs(errors, budget ? &*budget : nullptr, context, choice);
  plan.row_costs = costs.rows;
  std::vector<RowChannels> channels;
  if (plan.by_bytes()) {
    channels = detail::known_channels(errors.layers, errors.num_layers, choice.head_dim, where);
  }
  if (formats.num_layers() > 0) {
    require(plan.by_bytes(), "formats of a table", "options that plan by bytes (`PlanOptions::formats`)", "others",
            where);
    detail::require_formats_of(formats, plan.table.heads(), where);
    plan.formats = formats;
  }
  std::size_t head = 0;
  for (std::int32_t layer = 0; layer < errors.num_layers; ++layer) {
    std::int32_t const heads = plan.table.num_kv_heads(layer);
    require(table.num_kv_heads(layer) == heads, "table's KV heads", heads, table.num_kv_heads(layer), where);
    for (std::int32_t kv_head = 0; kv_head < heads; ++kv_head, ++head) {
      AnyPolicy<> const& policy = table.at(layer, kv_head);
      double error = policy.is<Prune>() ? errors.dropped[head] : 0;
      if (policy.is<SinkWindowScored>()) {
        error = errors.scored_at(head, policy.get<SinkWindowScored>(), context);
      } else if (auto const kept = policy_window(policy, where)) {
        error = errors.at(head, kept->sink, kept->window, context);
      }
      RowPages pages{options.page_size, 0};
      if (plan.by_bytes()) {
        HeadFormats const& of_head = plan.formats.at(layer, kv_head);
        pages = choice.pages(of_head, channels[static_cast<std::size_t>(layer)], options.page_size);
        if (!policy.is<Prune>()) error += errors.rounding_error(head, of_head);
      }
      plan.set(head, policy, {0, error});
      // Within the layer's window, which the table may not know.
      std::int64_t const tokens = held_tokens(plan.table.at(layer, kv_head), context, pages.rows);
      plan.heads[head].tokens = tokens;
      plan.heads[head].bytes = pages.bytes_of(tokens);
      plan.planned_tokens += tokens;
    }
  }
  std::int64_t const cost = plan.planned_cost() + plan.planned_record_bytes();
  std::int64_t total = cost;
  if (budget) {
    total = budget->total(costs.select(planned_layers(errors.num_layers, options.skip_layers)));
    for (std::int32_t const layer : options.skip_layers) {
      total += plan.table.num_kv_heads(layer) * plan.full_tokens(layer) * costs.row(layer);
    }
  }
  detail::set_budget(plan, costs, total);
  require(cost <= total, plan.by_bytes() ? "bytes of the table" : "tokens of the table",
          {"at most the budget, ", total}, cost, where);
  return plan;
}

/// @brief The same of 16 bits.
[[nodiscard]] inline PolicyPlan evaluate_table(PolicyTable const& table, KvErrors const& errors, std::int64_t context,
                                               PlanOptions const& options = {},
                                               std::optional<Budget> const& budget = {}) {
  return evaluate_table(table, FormatTable{}, errors, context, options, budget);
}

HEADAWARE_NAMESPACE_END
