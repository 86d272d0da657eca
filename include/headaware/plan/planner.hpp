#pragma once

/// @file
/// The planner: chooses sinks and window of each KV head, so that a model loses least under a budget.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/detail/lower_hull.hpp>
#include <headaware/plan/empty_plan.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// The heads that share one part of the budget, and what is left of it.
class BudgetParts {
 public:
  BudgetParts(KvErrors const& errors, PlanOptions const& options, std::int64_t total)
      : num_kv_heads_(static_cast<std::size_t>(errors.num_kv_heads)), by_layer_(options.layer_shares) {
    constexpr auto where = "plan_policies";
    std::int32_t const ranks = options.ranks;
    require(ranks > 0, "ranks", "> 0", ranks, where);
    std::int32_t const heads = errors.num_kv_heads;
    require(heads % ranks == 0 || ranks % heads == 0, "ranks", {"a divisor or a multiple of ", heads, " KV heads"},
            ranks, where);
    // More ranks than KV heads: ranks share heads, as engines replicate them.
    slices_ = static_cast<std::size_t>(std::min(ranks, heads));
    std::size_t const count = slices_ * (by_layer_ ? static_cast<std::size_t>(errors.num_layers) : 1);
    std::int64_t const pages = total / options.page_size;
    auto const parts = static_cast<std::int64_t>(count);
    left_.resize(count);
    for (std::int64_t i = 0; i < parts; ++i) {
      left_[static_cast<std::size_t>(i)] = (pages / parts + (i < pages % parts ? 1 : 0)) * options.page_size;
    }
  }
  [[nodiscard]] std::size_t size() const { return left_.size(); }
  [[nodiscard]] std::size_t part_of(std::size_t head) const {
    std::size_t const slice = head % num_kv_heads_ / (num_kv_heads_ / slices_);
    return by_layer_ ? head / num_kv_heads_ * slices_ + slice : slice;
  }
  [[nodiscard]] std::int64_t& left(std::size_t part) { return left_[part]; }

 private:
  std::size_t num_kv_heads_;
  bool by_layer_;
  std::size_t slices_ = 1;
  std::vector<std::int64_t> left_;
};

/// The hulls of all heads; pruned heads have none.
struct Hulls {
  std::vector<HullPoint> points;
  std::vector<std::size_t> first;  ///< [heads + 1]
};

[[nodiscard]] inline Hulls all_hulls(KvErrors const& errors, std::vector<bool> const& pruned, std::int64_t floor,
                                     std::int64_t full, std::int64_t page_size) {
  Hulls hulls;
  hulls.first.reserve(errors.size() + 1);
  std::vector<Candidate> const sizes = candidates(errors.grid, full, page_size);
  for (std::size_t head = 0; head < errors.size(); ++head) {
    hulls.first.push_back(hulls.points.size());
    if (!pruned[head]) append_hull(sizes, errors.of(head), floor, full, hulls.points);
  }
  hulls.first.push_back(hulls.points.size());
  return hulls;
}

/// The step from one point of a hull to the next.
struct HullStep {
  double rate = 0;  ///< error saved per token
  std::size_t head = 0;
  std::size_t to = 0;  ///< point
};

/// The step to a point. @param most  rate of the step before it: rates descend along a hull but for rounding, which
/// must not put a step before the one that it follows
[[nodiscard]] inline HullStep step_to(Hulls const& hulls, std::size_t head, std::size_t to,
                                      double most = std::numeric_limits<double>::infinity()) {
  HullPoint const& from = hulls.points[to - 1];
  HullPoint const& point = hulls.points[to];
  double const rate = (from.error - point.error) / static_cast<double>(point.tokens - from.tokens);
  return {std::min(rate, most), head, to};
}

/// Goes through the steps in the order in which they are taken: what saves most per token first; of equals the lower
/// layer, then the lower KV head. The next steps of all heads wait in a heap, since small budgets take few of all.
/// @param take  (HullStep) to whether it is taken: else the head's later ones are left out
template <class Take>
void take_steps(Hulls const& hulls, Take const& take) {
  auto const later = [](HullStep const& a, HullStep const& b) {
    if (a.rate != b.rate) return a.rate < b.rate;
    return a.to > b.to;  // points lie head by head
  };
  std::vector<HullStep> next;
  for (std::size_t head = 0; head + 1 < hulls.first.size(); ++head) {
    if (hulls.first[head] + 1 < hulls.first[head + 1]) next.push_back(step_to(hulls, head, hulls.first[head] + 1));
  }
  std::make_heap(next.begin(), next.end(), later);
  while (!next.empty()) {
    std::pop_heap(next.begin(), next.end(), later);
    HullStep const step = next.back();
    next.pop_back();
    if (!take(step) || step.to + 1 == hulls.first[step.head + 1]) continue;
    next.push_back(step_to(hulls, step.head, step.to + 1, step.rate));
    std::push_heap(next.begin(), next.end(), later);
  }
}

[[nodiscard]] inline std::int64_t least_total(Hulls const& hulls) {
  std::int64_t total = 0;
  for (std::size_t head = 0; head + 1 < hulls.first.size(); ++head) {
    if (hulls.first[head] < hulls.first[head + 1]) total += hulls.points[hulls.first[head]].tokens;
  }
  return total;
}

/// Takes the smallest size of every head off the budget. @return whether all parts hold theirs
[[nodiscard]] inline bool take_least(Hulls const& hulls, BudgetParts& parts) {
  bool fits = true;
  for (std::size_t head = 0; head + 1 < hulls.first.size(); ++head) {
    if (hulls.first[head] == hulls.first[head + 1]) continue;
    std::int64_t& left = parts.left(parts.part_of(head));
    left -= hulls.points[hulls.first[head]].tokens;
    fits = fits && left >= 0;
  }
  return fits;
}

/// The policy of a head whose measured sinks are `sink` (-1: Full) and that holds `tokens`.
[[nodiscard]] inline AnyPolicy<> policy_of_size(std::int32_t sink, std::int64_t tokens) {
  auto const window = static_cast<std::int32_t>(tokens - sink);
  if (sink < 0) return Full{};
  if (sink == 0) return WindowOnly{window};
  return SinkWindow{.sink = sink, .window = window};
}

/// A plan of some layers as one of all of them, of which the others keep everything.
[[nodiscard]] inline PolicyPlan with_whole_layers(PolicyPlan const& some, std::span<std::int32_t const> layers,
                                                  KvErrors const& errors, PlanOptions const& options) {
  PolicyPlan plan = empty_plan(errors, some.context, options);
  plan.floor = some.floor;
  plan.budget_tokens = some.budget_tokens + plan.skipped_tokens();
  auto const num_kv_heads = static_cast<std::size_t>(errors.num_kv_heads);
  std::size_t next = 0;  // of `some`
  for (std::size_t head = 0; head < plan.heads.size(); ++head) {
    auto const layer = static_cast<std::int32_t>(head / num_kv_heads);
    if (next < some.heads.size() && layers[next / num_kv_heads] == layer) {
      plan.set(
          head,
          some.table.at(static_cast<std::int32_t>(next / num_kv_heads), static_cast<std::int32_t>(next % num_kv_heads)),
          some.heads[next]);
      ++next;
    } else {
      plan.set(head, Full{}, {whole_pages(some.context, options.page_size), 0});
    }
  }
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
/// The remainder widens the window of the first head whose step did not fit (`use_remainder`), which the predicted
/// error does not count. Sizes are whole pages; windows grow to fill them, which is not counted either.
///
/// Deterministic. Ties: of steps that save the same per token the lower layer first, then the lower KV head; of pairs
/// of equal size and error the fewer sinks; of sizes with equal error the smaller.
/// @param errors   of `weighted_errors`
/// @param budget   of one sequence, all heads together that are not of `skip_layers`
/// @param context  tokens of the sequences that the plan is for: what Full costs. Pairs that reach it are Full
/// @throws ArgumentError if options make no sense, or the budget (of a rank, of a layer) is less than the smallest
///         sizes that the floor allows
/// @par Cost    O(heads · pairs + steps taken · log heads): 10,000 heads × 80 pairs in some 10 ms
/// @par Source  MoA, arXiv:2406.14909 (spans by optimisation); LU-KV, arXiv:2602.08585 (hull and greedy); CriticalKV,
///              arXiv:2502.03805 (output perturbation)
[[nodiscard]] inline PolicyPlan plan_policies(KvErrors const& errors, Budget const& budget, std::int64_t context,
                                              PlanOptions const& options = {}) {
  constexpr auto where = "plan_policies";
  options.validate(context);
  if (!options.skip_layers.empty()) {
    auto const layers = planned_layers(errors.num_layers, options.skip_layers);
    PlanOptions of_these = options;
    of_these.skip_layers.clear();
    return detail::with_whole_layers(plan_policies(errors.select_layers(layers), budget, context, of_these), layers,
                                     errors, options);
  }
  std::size_t const heads = errors.size();
  require(heads > 0 && errors.cells.size() == heads * errors.grid.size(), "errors of KV heads", "those of a grid",
          errors.cells.size(), where);
  std::int64_t const page = options.page_size;
  std::int64_t const full = detail::whole_pages(context, page);
  auto const count = static_cast<std::int64_t>(heads);

  PolicyPlan plan = empty_plan(errors, context, options);
  plan.budget_tokens = budget.total(count, context);
  std::vector<bool> pruned(heads);
  if (options.negligible_output > 0 && !errors.output_share.empty()) {
    for (std::size_t head = 0; head < heads; ++head) {
      pruned[head] = errors.output_share[head] <= options.negligible_output;
    }
  }

  std::int64_t const mean = plan.budget_tokens / count;
  // Half the budget at most: with every head at its floor there would be nothing to choose.
  plan.floor = options.floor ? *options.floor : std::min({std::max<std::int64_t>(32, mean / 4), mean / 2, context});
  detail::BudgetParts parts(errors, options, plan.budget_tokens);
  detail::Hulls hulls;
  for (;;) {
    hulls = detail::all_hulls(errors, pruned, plan.floor, full, page);
    detail::BudgetParts rest = parts;
    if (detail::take_least(hulls, rest)) {
      parts = rest;
      break;
    }
    // The default gives way where the grid has no sizes between it and the budget.
    bool const gives_way = !options.floor && plan.floor > 0;
    require(gives_way, "budget", {"at least ", detail::least_total(hulls), " tokens, evenly for each part of it"},
            plan.budget_tokens, where);
    plan.floor /= 2;
  }

  std::vector<std::size_t> at(hulls.first.begin(), hulls.first.end() - 1);
  std::vector<std::size_t> first_ended(parts.size(), heads);
  detail::take_steps(hulls, [&](detail::HullStep const& step) {
    std::size_t const part = parts.part_of(step.head);
    std::int64_t const cost = hulls.points[step.to].tokens - hulls.points[step.to - 1].tokens;
    bool const fits = cost <= parts.left(part);
    if (fits) {
      parts.left(part) -= cost;
      at[step.head] = step.to;
    } else if (first_ended[part] == heads) {
      first_ended[part] = step.head;
    }
    return fits;
  });

  for (std::size_t head = 0; head < heads; ++head) {
    if (pruned[head]) {
      plan.set(head, Prune{}, {0, errors.dropped[head]});
      continue;
    }
    detail::HullPoint const& point = hulls.points[at[head]];
    std::int64_t tokens = point.tokens;
    std::size_t const part = parts.part_of(head);
    if (options.use_remainder && first_ended[part] == head) tokens += parts.left(part) / page * page;
    plan.set(head, detail::policy_of_size(point.sink, tokens), {tokens, point.error});
  }
  return plan;
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
