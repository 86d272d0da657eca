#pragma once

/// @file
/// Blends of two plans by their bytes.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Blends two plans by bytes (`blend` blends tables by tokens): each head has the bytes of `uniform` and `plan`
/// in the shares 1 - share and share, in the formats of `plan` (of `uniform` where `plan` keeps nothing), and its sinks
/// likewise. For a guard that tries several shares on held-out text.
///
/// The sum of bytes is at most the shares' sum of both, and less than it by less than a page where no head keeps
/// everything. Full takes the other's sinks, Prune too.
/// @param uniform  of the same heads and context; in formats of its own
/// @param share    0: `uniform`; 1: `plan`
/// @param errors   of both, by which the blend is evaluated
/// @return with the options and the budget of `plan`
/// @throws ArgumentError if a plan is not by bytes, shapes or contexts differ, `share` is outside [0, 1], or the result
///         is more than the budget, which cannot be where the budgets are equal
/// @par Cost  O(heads · windows)
[[nodiscard]] inline PolicyPlan blend_plans(PolicyPlan const& uniform, PolicyPlan const& plan, double share,
                                            KvErrors const& errors) {
  constexpr auto where = "blend_plans";
  require(share >= 0 && share <= 1, "share", "in [0, 1]", share, where);
  require(uniform.by_bytes() && plan.by_bytes(), "plans", "by bytes", "one by tokens", where);
  require(uniform.context == plan.context, "context", plan.context, uniform.context, where);
  detail::require_table_of(uniform.table, plan.shape(), where);
  if (share == 0) return uniform;
  if (share == 1) return plan;
  FormatChoice const& choice = plan.options.formats;
  auto const channels = detail::known_channels(plan.layers, plan.num_layers, choice.head_dim, where);
  PolicyTable table = plan.table;
  FormatTable formats = plan.formats;
  double left = 0;  // bytes: what is rounded down is the sum, not each head
  std::size_t head = 0;
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    std::int64_t const window = plan.table.window(layer);
    std::int64_t const visible = window != 0 ? std::min(window, plan.context) : plan.context;
    for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv, ++head) {
      auto const& a = uniform.table.at(layer, kv);
      auto const& b = plan.table.at(layer, kv);
      if (plan.heads[head].bytes == 0) formats.set(layer, kv, uniform.formats.at(layer, kv));
      RowPages const pages =
          choice.pages(formats.at(layer, kv), channels[static_cast<std::size_t>(layer)], plan.options.page_size);
      left += (1 - share) * static_cast<double>(uniform.heads[head].bytes) +
              share * static_cast<double>(plan.heads[head].bytes);
      // 0.7 · 10 + 0.3 · 10 pages are ten also where they come out as 9.999…
      auto const whole = static_cast<std::int64_t>(std::floor(left * (1 + 1e-12) / static_cast<double>(pages.bytes)));
      std::int64_t const most = detail::whole_pages(visible, pages.rows) / pages.rows;
      std::int64_t const count = std::min(whole, most);
      // What is beyond everything is not for others.
      left = count < whole ? 0 : std::max(0.0, left - static_cast<double>(count * pages.bytes));
      table.set(layer, kv, detail::blended_policy(a, b, share, count * pages.rows, visible, where));
    }
  }
  PolicyPlan result = evaluate_table(table, formats, errors, plan.context, plan.options);
  result.floor = plan.floor;
  result.budget_tokens = plan.budget_tokens;
  result.budget_cost = plan.budget_cost;
  require(result.left() >= 0, "bytes of the blend", {"at most the budget, ", plan.budget_cost}, result.planned_bytes(),
          where);
  return result;
}

HEADAWARE_NAMESPACE_END
