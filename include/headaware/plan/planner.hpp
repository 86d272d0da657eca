#pragma once

/// @file
/// The planner: chooses sinks, window and scored slots of each KV head, so that a model loses least under a budget.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/detail/budget_parts.hpp>
#include <headaware/plan/detail/cache_costs.hpp>
#include <headaware/plan/detail/hulls.hpp>
#include <headaware/plan/detail/lower_hull.hpp>
#include <headaware/plan/detail/pair_hulls.hpp>
#include <headaware/plan/empty_plan.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/plan/weighted_errors.hpp>
#include <headaware/policy/scored_heads.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Takes the smallest size of every head off the budget. @return whether all parts hold theirs
[[nodiscard]] inline bool take_least(Hulls const& hulls, BudgetParts& parts) {
  bool fits = true;
  for (std::size_t head = 0; head + 1 < hulls.first.size(); ++head) {
    if (hulls.first[head] == hulls.first[head + 1]) continue;
    parts.take(head, hulls.points[hulls.first[head]].cost);
    fits = fits && parts.left(head) >= 0;
  }
  return fits;
}

/// Says which part of a budget is too small, what it needs and what it has. @param rest  after `take_least`
/// @param layers  numbers of the planned layers; empty: all are
[[noreturn]] inline void refuse_budget(BudgetParts const& parts, BudgetParts const& rest, std::int64_t total,
                                       std::int64_t least, char const* unit, std::span<std::int32_t const> layers) {
  constexpr auto where = "plan_policies";
  constexpr auto why = ", what the heads' smallest sizes take that grid, floor and pages allow";
  std::size_t part = 0;
  while (part < parts.size() && (parts.size() == 1 || rest.left_of(part) >= 0)) ++part;
  if (part == parts.size() || parts.size() == 1) {
    throw ArgumentError({"budget", Text{"at least ", least, " ", unit, why}.str(), std::to_string(total), where});
  }
  std::int64_t const has = parts.left_of(part);
  throw ArgumentError({"budget of " + parts.name(part, layers),
                       Text{"at least ", has - rest.left_of(part), " ", unit, why}.str(),
                       Text{has, ", its share of ", total}.str(), where});
}

/// The policy of a head whose measured sinks are `sink` (-1: Full) and that holds `tokens`, `slots` of them by scores.
[[nodiscard]] inline AnyPolicy<> policy_of_size(std::int32_t sink, std::int64_t tokens, std::int32_t slots = 0) {
  auto const window = static_cast<std::int32_t>(tokens - sink - slots);
  if (sink < 0) return Full{};
  if (slots > 0) return SinkWindowScored{sink, window, slots};
  if (sink == 0) return WindowOnly{window};
  return SinkWindow{.sink = sink, .window = window};
}

/// A plan of some layers as one of all of them, of which the others keep everything.
[[nodiscard]] inline PolicyPlan with_whole_layers(PolicyPlan const& some, std::span<std::int32_t const> layers,
                                                  KvErrors const& errors, CacheCosts const& costs,
                                                  PlanOptions const& options) {
  PolicyPlan plan = empty_plan(errors, some.context, options);
  plan.floor = some.floor;
  plan.scores = some.scores;
  plan.budget_tokens = some.budget_tokens + plan.skipped_tokens();
  if (!costs.rows.empty()) {
    plan.row_costs = costs.rows;
    plan.budget_cost = some.budget_cost;
    for (std::int32_t const layer : options.skip_layers) {
      plan.budget_cost += plan.table.num_kv_heads(layer) * plan.full_tokens(layer) * costs.row(layer);
    }
  }
  std::size_t head = 0;
  std::size_t next = 0;     // of `layers`
  std::size_t planned = 0;  // of `some`
  for (std::int32_t layer = 0; layer < errors.num_layers; ++layer) {
    bool const chosen = next < layers.size() && layers[next] == layer;
    for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv, ++head) {
      if (chosen) {
        auto const of_these = static_cast<std::int32_t>(next);
        plan.set(head, some.table.at(of_these, kv), some.heads[planned++]);
        if (plan.by_bytes()) plan.formats.set(layer, kv, some.formats.at(of_these, kv));
      } else {
        std::int64_t const tokens = plan.full_tokens(layer);
        plan.set(head, Full{}, {tokens, 0, plan.by_bytes() ? tokens * costs.row(layer) : 0});
      }
    }
    next += chosen ? 1 : 0;
  }
  return plan;
}

/// Heads whose output is negligible.
[[nodiscard]] inline std::vector<bool> pruned_heads(KvErrors const& errors, PlanOptions const& options) {
  std::vector<bool> pruned(errors.size());
  if (options.negligible_output > 0 && !errors.output_share.empty()) {
    for (std::size_t head = 0; head < pruned.size(); ++head) {
      pruned[head] = errors.output_share[head] <= options.negligible_output;
    }
  }
  return pruned;
}

/// Sets the heads of a plan to the points of their hulls, wider by what is left.
/// @param at     [heads] the points
/// @param ended  [parts] the head whose window may take what its part has left
inline void set_heads(PolicyPlan& plan, KvErrors const& errors, CacheCosts const& costs, Hulls const& hulls,
                      std::span<RowChannels const> channels, std::span<std::size_t const> at,
                      std::span<std::size_t const> ended, BudgetParts& parts) {
  PlanOptions const& options = plan.options;
  bool const by_bytes = options.formats.by_bytes();
  std::size_t head = 0;
  for (std::int32_t layer = 0; layer < costs.heads().num_layers; ++layer) {
    for (std::int32_t kv = 0; kv < costs.heads().count(layer); ++kv, ++head) {
      if (hulls.first[head] == hulls.first[head + 1]) {
        plan.set(head, Prune{}, {0, errors.dropped[head]});
        continue;
      }
      HullPoint point = hulls.points[at[head]];
      RowPages pages{options.page_size, options.page_size * costs.row(layer)};
      if (by_bytes) {
        HeadFormats const& formats = options.formats.pairs[static_cast<std::size_t>(point.pair)];
        pages = options.formats.pages(formats, channels[static_cast<std::size_t>(layer)], options.page_size);
        plan.formats.set(layer, kv, formats);
      }
      if (options.use_remainder && ended[parts.part_of(head)] == head) {
        // Where the step that did not fit changes formats, more than everything may be left.
        std::int64_t const full = whole_pages(costs.visible(layer), pages.rows);
        std::int64_t const more = std::min(parts.left(head) / pages.bytes * pages.rows, full - point.tokens);
        point.tokens += more;
        parts.take(head, pages.bytes_of(more));
        if (point.tokens == full) point.sink = -1;
      }
      plan.set(head, policy_of_size(point.sink, point.tokens, point.slots),
               {point.tokens, point.error, by_bytes ? pages.bytes_of(point.tokens) : 0});
    }
  }
}

/// `plan_policies` of all layers. @param layers  their numbers in the model; empty: all are planned
[[nodiscard]] inline PolicyPlan plan_layers(KvErrors const& errors, Budget const& budget, CacheCosts const& costs,
                                            PlanOptions const& options, std::span<std::int32_t const> layers = {}) {
  std::int64_t const context = costs.context;
  std::size_t const heads = errors.size();
  PolicyPlan plan = empty_plan(errors, context, options);
  std::int64_t const total = budget.total(costs);
  set_budget(plan, costs, total);
  std::vector<bool> const pruned = pruned_heads(errors, options);
  std::vector<RowChannels> channels;
  if (options.formats.by_bytes()) {
    channels = known_channels(errors.layers, errors.num_layers, options.formats.head_dim, "plan_policies");
  }

  std::int64_t const mean = total / costs.of_one_token();
  // Half the budget at most: with every head at its floor there would be nothing to choose.
  plan.floor = options.floor ? *options.floor : std::min({std::max<std::int64_t>(32, mean / 4), mean / 2, context});
  BudgetParts parts(costs, options, total);
  Hulls hulls;
  for (;;) {
    hulls = all_hulls(errors, costs, pruned, plan.floor, options.page_size, options.scored_slots, options.formats,
                      channels);
    BudgetParts rest = parts;
    if (take_least(hulls, rest)) {
      parts = rest;
      break;
    }
    // The default gives way where the grid has no sizes between it and the budget.
    bool const gives_way = !options.floor && plan.floor > 0;
    if (!gives_way) refuse_budget(parts, rest, total, least_total(hulls), costs.unit, layers);
    plan.floor /= 2;
  }

  std::vector<std::size_t> at(hulls.first.begin(), hulls.first.end() - 1);
  std::vector<std::size_t> first_ended(parts.size(), heads);
  // A longer window of a head with scored slots costs more than its rows, by bytes: the scores of its tokens.
  auto const may_widen = [&](HullPoint const& point) {
    return point.sink >= 0 && (point.slots == 0 || !options.formats.by_bytes());
  };
  take_steps(hulls, [&](HullStep const& step) {
    std::size_t const part = parts.part_of(step.head);
    std::int64_t const cost = hulls.points[step.to].cost - hulls.points[step.to - 1].cost;
    bool const fits = cost <= parts.left(step.head);
    if (fits) {
      parts.take(step.head, cost);
      at[step.head] = step.to;
    } else if (first_ended[part] == heads && may_widen(hulls.points[at[step.head]])) {
      first_ended[part] = step.head;
    }
    return fits;
  });

  set_heads(plan, errors, costs, hulls, channels, at, first_ended, parts);
  if (has_scored_heads(plan.table)) plan.scores = errors.scores;
  return plan;
}

}  // namespace detail

/// @brief Chooses the policies that lose least under a budget: over all layers and KV heads together, from each head's
/// smallest size on, always the next size that saves most error per token.
///
/// Of each head the running minimum of its error over the sizes of the grid's pairs, and of that the lower convex hull,
/// which ends in Full (without error). On the hull greedy is optimal; a step that no longer fits its part of the budget
/// ends its head, and smaller steps of others go on. So the error is that of the best plan of these sizes or above it
/// by less than one step saves, at one floor it never grows with the budget, and what is left is less than one step.
/// The remainder widens the window of the first head whose step did not fit (`use_remainder`; in plans by bytes of the
/// first without scored slots), which the predicted error does not count. Sizes are whole pages; windows grow to fill
/// them, which is not counted either.
///
/// Where layers differ, a token costs what a row of its layer holds (`Budget`), and the next size is the one that saves
/// most error per cost. Of a layer that slides Full is its window, without error: no more is offered, and of the grid's
/// pairs those without sinks alone, which such a layer soon loses sight of; since few of them are within a small
/// window, some between them too, with errors as `KvErrors::at` has them. Of a head that several ranks hold a copy of
/// each copy counts in its rank's share, and one in the budget.
///
/// Where heads may keep tokens by scores (`PlanOptions::scored_slots`), sizes are also the pairs of windows and slots
/// of `KvErrors::scored`, with what their scores and records take in plans by bytes of formats (other budgets count
/// rows alone); `plan.scores` says which scores.
///
/// Where heads choose among formats (`PlanOptions::formats`), the sizes of a head are those of every pair of formats,
/// in bytes: its windows' hull is stretched by the bytes of a row and raised by the error of rounding keys and values,
/// which adds to that of dropping, and the lower hull of all pairs is gone along. So a step may change formats and
/// window together, and Full in each pair is a size as well. The floor is of tokens, in whichever format. The remainder
/// adds rows of the head's format. Layers that are skipped keep 16 bits.
///
/// Deterministic. Ties: of steps that save the same per token the lower layer first, then the lower KV head; of pairs
/// of equal size and error the fewer sinks; of sizes with equal error the smaller; of sizes with equal bytes and error
/// the pair of formats whose rows are smaller.
/// @param errors   of `weighted_errors`
/// @param budget   of one sequence, all heads together that are not of `skip_layers`
/// @param context  tokens of the sequences that the plan is for: what Full costs. Pairs that reach it are Full
/// @throws ArgumentError if options make no sense, the budget (or the share of a rank or a layer, which is named) is
///         less than the smallest sizes that the floor allows, or heads choose among formats and the channels of rows
///         or the errors of a format are not known, or may have scored slots and their errors are not known
/// @par Cost    O(heads · pairs + steps taken · log heads): 10,000 heads × 80 pairs in some 10 ms; with 16 pairs of
///              formats some 50 ms
/// @par Source  MoA, arXiv:2406.14909 (spans by optimisation); LU-KV, arXiv:2602.08585 (hull and greedy); CriticalKV,
///              arXiv:2502.03805 (output perturbation)
[[nodiscard]] inline PolicyPlan plan_policies(KvErrors const& errors, Budget const& budget, std::int64_t context,
                                              PlanOptions const& options = {}) {
  constexpr auto where = "plan_policies";
  options.validate(context);
  bool const whole = errors.size() > 0 && errors.cells.size() == errors.size() * errors.grid.size();
  require(whole, "errors of KV heads", "those of a grid", errors.cells.size(), where);
  std::size_t const rounding = errors.size() * errors.formats.size();
  bool const rounded = errors.key_errors.size() == rounding && errors.value_errors.size() == rounding;
  require(rounded, "errors of rounding", {rounding, " of keys, and as many of values"}, errors.key_errors.size(),
          where);
  if (options.scored_slots) {
    bool const known = errors.scored && errors.scored_cells.size() == errors.size() * errors.scored->size();
    require(known, "errors of scored slots", "those of a grid (`observe_scored`), as heads may have such slots",
            errors.scored_cells.size(), where);
  }
  detail::CacheCosts const costs = detail::cache_costs(errors, &budget, context, options.formats);
  if (options.skip_layers.empty()) return detail::plan_layers(errors, budget, costs, options);
  auto const layers = planned_layers(errors.num_layers, options.skip_layers);
  KvErrors const chosen = errors.select_layers(layers);
  require(chosen.size() > 0, "layers that are not skipped", "one with a cache of its own", "none", where);
  PlanOptions of_these = options;
  of_these.skip_layers.clear();
  return detail::with_whole_layers(detail::plan_layers(chosen, budget, costs.select(layers), of_these, layers), layers,
                                   errors, costs, options);
}

/// @brief The same from statistics.
/// @throws ArgumentError also as `weighted_errors`
[[nodiscard]] inline PolicyPlan plan_policies(std::span<WeightedStatistics const> texts, Budget const& budget,
                                              std::int64_t context, PlanOptions const& options = {}) {
  return plan_policies(weighted_errors(texts, options.measure, options.fold), budget, context, options);
}

/// @brief The same from the statistics of one text.
[[nodiscard]] inline PolicyPlan plan_policies(RetentionStatistics const& statistics, Budget const& budget,
                                              std::int64_t context, PlanOptions const& options = {}) {
  WeightedStatistics const text{&statistics};
  return plan_policies(std::span(&text, 1), budget, context, options);
}

HEADAWARE_NAMESPACE_END
