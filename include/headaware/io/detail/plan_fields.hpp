#pragma once

// Fields of a `plan.json` but those of formats: see plan_formats.hpp.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/plan/error_measure.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/table.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::string_view plan_format = "headaware.plan";
inline constexpr std::int32_t plan_version = 1;

/// Policies of a plan's heads, by the names in files.
enum class PlanPolicy : std::uint8_t { full, sink_window, window_only, prune, sink_window_scored };
inline constexpr std::array<std::string_view, 5> plan_policy_names{Full::name, SinkWindow::name, WindowOnly::name,
                                                                   Prune::name, SinkWindowScored::name};

/// A policy as a file holds it: sizes that it does not have are -1.
struct SavedPolicy {
  PlanPolicy policy = PlanPolicy::full;
  std::int32_t sink = -1;
  std::int32_t window = -1;
  std::int32_t scored = -1;  ///< not in the file where there are none
};

/// All but shape, costs, options and heads. @param costs  whether tokens of layers cost differently
template <class Fields, class Plan, class Tokens>
void plan_fields(Fields&& f, Plan& plan, Tokens& planned_tokens, bool costs) {
  f.integer("context", plan.context, 1, std::int64_t{1} << 30);
  f.integer("budget_tokens", plan.budget_tokens, 0, max_json_count);
  f.integer("planned_tokens", planned_tokens, 0, costs ? max_json_count : plan.budget_tokens);
  f.integer("floor", plan.floor, 0, plan.context);
  f.not_negative("predicted_error", plan.predicted_error);
}

/// All options but `floor`, which may be null, after `fold`, and `skip_layers`, which may be missing, at the end.
template <class Fields, class Measure, class Options>
void plan_measure_fields(Fields&& f, Measure& measure, Options& options) {
  f.name("measure", measure, error_measure_names, "error measure");
  f.name("fold", options.fold, group_fold_names, "group fold");
}
template <class Fields, class Options>
void plan_option_fields(Fields&& f, Options& options) {
  f.integer("page_size", options.page_size, 1, std::int64_t{1} << 30);
  f.integer("ranks", options.ranks, 1, max_int32);
  f.boolean("layer_shares", options.layer_shares);
  f.not_negative("negligible_output", options.negligible_output);
  f.boolean("use_remainder", options.use_remainder);
}

template <class Fields, class Index, class Policy, class Planned>
void planned_fields(Fields&& f, Index& layer, Index& kv_head, Policy& policy, Planned& planned) {
  f.integer("layer_idx", layer, 0, max_index - 1);
  f.integer("kv_head", kv_head, 0, max_index - 1);
  f.name("policy", policy.policy, plan_policy_names, "policy of a plan");
  bool const scored = policy.policy == PlanPolicy::sink_window_scored;
  bool const sinks = scored || policy.policy == PlanPolicy::sink_window;
  bool const window = sinks || policy.policy == PlanPolicy::window_only;
  f.integer("sink", policy.sink, sinks ? 0 : -1, sinks ? max_int32 : -1);
  f.integer("window", policy.window, window ? 0 : -1, window ? max_int32 : -1);
  if (scored) f.integer("scored", policy.scored, 0, max_int32 - policy.window);
  f.integer("tokens", planned.tokens, 0, max_json_count);
  f.not_negative("predicted_error", planned.predicted_error);
}

template <class = void>
[[nodiscard]] AnyPolicy<> to_policy(SavedPolicy const& saved) {
  switch (saved.policy) {
    case PlanPolicy::full: return Full{};
    case PlanPolicy::sink_window: return SinkWindow{.sink = saved.sink, .window = saved.window};
    case PlanPolicy::window_only: return WindowOnly{saved.window};
    case PlanPolicy::sink_window_scored:
      return SinkWindowScored{.sink = saved.sink, .window = saved.window, .scored = saved.scored};
    default: return Prune{};
  }
}
template <class = void>
[[nodiscard]] SavedPolicy to_saved(AnyPolicy<> const& policy, Text const& where) {
  if (policy.is<SinkWindowScored>()) {
    auto const& p = policy.get<SinkWindowScored>();
    return {PlanPolicy::sink_window_scored, p.sink, p.window, p.scored};
  }
  auto const kept = policy_window(policy, where);
  if (policy.is<SinkWindow>()) return {PlanPolicy::sink_window, kept->sink, kept->window};
  if (kept) return {PlanPolicy::window_only, -1, kept->window};
  return {policy.is<Full>() ? PlanPolicy::full : PlanPolicy::prune, -1, -1};
}

/// What planned tokens cost; exact where a budget may reach it.
template <class = void>
[[nodiscard]] double cost_of(PolicyPlan const& plan) {
  double cost = 0;
  for (PlannedHead const& head : plan.heads) cost += static_cast<double>(head.bytes);
  if (plan.by_bytes()) return cost;
  for (std::size_t head = 0; head < plan.heads.size(); ++head) {
    std::int32_t const layer = plan.table.heads().layer_of(static_cast<std::int64_t>(head), 1);
    double const row =
        plan.row_costs.empty() ? 1 : static_cast<double>(plan.row_costs[static_cast<std::size_t>(layer)]);
    cost += row * static_cast<double>(plan.heads[head].tokens);
  }
  return cost;
}
/// What planned tokens may cost.
template <class = void>
[[nodiscard]] std::int64_t plan_budget(PolicyPlan const& plan) {
  return plan.row_costs.empty() ? plan.budget_tokens : plan.budget_cost;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
