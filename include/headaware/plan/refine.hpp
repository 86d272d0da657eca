#pragma once

/// @file
/// A plan made better by trying it: errors of layers and heads are scaled against each other as long as the plan that
/// they lead to loses less, measured.

#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Limits of a refinement.
struct RefineOptions {
  /// Binary logarithms of the factors between the two sides of a cut, a sweep over all cuts each.
  std::vector<double> steps{2, 1};
  /// Of cuts: 1 between halves of the layers (that are planned), 2 between quarters too, and so on down to layers, then
  /// to KV heads.
  std::int32_t levels = 4;
  double least_gain = 0.5;        ///< standard errors by which a trial has to lose less to be taken
  std::int32_t most_trials = 72;  ///< of tables

  /// @throws ArgumentError on values that make no sense
  void validate() const {
    constexpr auto where = "RefineOptions";
    for (double const step : steps) {
      require(step > 0 && step <= 10, "step", "in (0, 10]", step, where);
    }
    require(levels > 0, "levels", "> 0", levels, where);
    require(least_gain >= 0 && std::isfinite(least_gain), "least_gain", "a finite number >= 0", least_gain, where);
    require(most_trials > 0, "most_trials", "> 0", most_trials, where);
  }
};

/// @brief Result of a refinement.
struct RefinedPlan {
  PolicyPlan plan;
  KvErrors errors;              ///< scaled: `plan` is what they lead to
  std::vector<double> factors;  ///< of the errors of KV heads, layer by layer
  double first_loss = 0;        ///< mean, of the plan before
  double loss = 0;              ///< of `plan`
  std::int32_t trials = 0;      ///< tables tried, the first included
  std::int32_t taken = 0;       ///< of them, better than the best before
  bool limited = false;         ///< `most_trials` ended it before all cuts were tried
};

/// @brief Mean loss saved per token by one run compared with another, and the standard error of that mean.
struct PairedGain {
  double mean = 0;
  double standard_error = 0;
};

/// @brief Compares two runs token by token.
/// @param before, after  loss of each token, equally many
[[nodiscard]] inline PairedGain paired_gain(std::span<double const> before, std::span<double const> after) {
  double sum = 0;
  double squares = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    double const gain = before[i] - after[i];
    sum += gain;
    squares += gain * gain;
  }
  auto const count = static_cast<double>(before.size());
  double const mean = sum / count;
  return {mean, std::sqrt(std::max(0.0, squares / count - mean * mean) / count)};
}

namespace detail {

/// A range of heads cut in two: [begin, middle) against [middle, end).
struct HeadCut {
  std::size_t begin = 0;
  std::size_t middle = 0;
  std::size_t end = 0;
};

/// @brief Cuts of heads in halves, of the halves in halves and so on, from coarse to fine: between layers first, then
/// within layers. Layers without heads do not count.
[[nodiscard]] inline std::vector<HeadCut> head_cuts(LayerHeads const& heads, std::int32_t levels) {
  struct Range {
    std::size_t begin;
    std::size_t end;
    std::int32_t level;
  };
  std::vector<std::size_t> first;  // heads of layers that have some
  for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
    if (heads.count(layer) > 0) first.push_back(static_cast<std::size_t>(heads.first(layer)));
  }
  auto const layer_from = [&](std::size_t head) { return std::lower_bound(first.begin(), first.end(), head); };
  std::vector<HeadCut> cuts;
  std::vector<Range> ranges{{0, static_cast<std::size_t>(heads.total()), 0}};
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    auto const [begin, end, level] = ranges[i];
    std::size_t const size = end - begin;
    if (size < 2 || level == levels) continue;
    auto const layers = layer_from(end) - layer_from(begin);  // that begin within
    std::size_t const middle = layers > 1 ? *(layer_from(begin) + layers / 2) : begin + size / 2;
    cuts.push_back({begin, middle, end});
    ranges.push_back({begin, middle, level + 1});
    ranges.push_back({middle, end, level + 1});
  }
  return cuts;
}
[[nodiscard]] inline std::vector<HeadCut> head_cuts(std::int32_t layers, std::int32_t num_kv_heads,
                                                    std::int32_t levels) {
  return head_cuts(LayerHeads{layers, num_kv_heads}, levels);
}

[[nodiscard]] inline double mean_of(std::span<double const> values) {
  double sum = 0;
  for (double const value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace detail

/// @brief Errors of which each head's, of rounding too, are multiplied by its factor. @param factors  of all KV heads,
/// layer by layer
/// @throws ArgumentError if their number is another, or one is negative, NaN or infinite
/// @par Cost  O(heads · pairs)
[[nodiscard]] inline KvErrors scaled_errors(KvErrors errors, std::span<double const> factors) {
  constexpr auto where = "scaled_errors";
  require(factors.size() == errors.size(), "factors", errors.size(), factors.size(), where);
  std::size_t const cells = errors.grid.size();
  for (std::size_t head = 0; head < errors.size(); ++head) {
    double const factor = factors[head];
    require(factor >= 0 && std::isfinite(factor), "factor", "a finite number >= 0", factor, where);
    for (std::size_t i = 0; i < cells; ++i) errors.cells[head * cells + i] *= factor;
    errors.dropped[head] *= factor;
    std::size_t const formats = errors.formats.size();
    for (std::size_t i = head * formats; i < (head + 1) * formats; ++i) {
      errors.key_errors[i] *= factor;
      errors.value_errors[i] *= factor;
    }
  }
  return errors;
}

/// @brief What tries a plan, or its table, and tells losses.
template <class Trial>
concept PlanTrial = requires(Trial& trial, PolicyPlan const& plan) {
  { trial(plan) } -> std::convertible_to<std::vector<double>>;
}
|| requires(Trial& trial, PolicyPlan const& plan) {
  { trial(plan.table) } -> std::convertible_to<std::vector<double>>;
};

/// @brief A plan, tried and made better: from coarse to fine, the errors of one half of the layers are scaled against
/// those of the other, of one quarter against the next and so on down to single layers (and heads); a plan is made of
/// the scaled errors and tried, and taken if it loses less. What cuts of single layers tell adds up badly where all
/// layers are cut at once; this measures the plan itself. Every plan tried holds the same budget.
///
/// A trial that is taken is followed by another step the same way; one that is not, by a step the other way. Plans
/// equal to the best so far are not tried again. Deterministic, if the trial is. It ends where no cut of a sweep makes
/// the plan better, which need not be the best plan there is; and what the trial's text tells by chance is followed
/// too: try the result on another text.
/// @param trial  (PolicyPlan const&), or (PolicyTable const&) of plans by tokens, to the losses of the tokens of one
/// and
///               the same text, in nats: the divergence of predictions from those with everything kept, say. Called at
///               least once; may throw
/// @return the best plan; that of `errors` as they are if no trial is better
/// @throws ArgumentError as `plan_policies`, on options that make no sense, if losses are none, differ in number or are
///         not finite, and if plans are by bytes and the trial takes tables alone
/// @par Cost  at most `most_trials` trials; a sweep is 2 (2^levels − 1) at most, and repeated steps
template <class Trial>
  requires PlanTrial<Trial>
[[nodiscard]] RefinedPlan refine_plan(KvErrors const& errors, Budget const& budget, std::int64_t context,
                                      PlanOptions const& options, RefineOptions const& refining, Trial&& trial) {
  constexpr auto where = "refine_plan";
  constexpr bool of_plans = requires(PolicyPlan const& plan) { trial(plan); };
  refining.validate();
  require(of_plans || !options.formats.by_bytes(), "trial", "one of plans, as heads have formats", "one of tables",
          where);
  RefinedPlan best{.plan = plan_policies(errors, budget, context, options),
                   .errors = errors,
                   .factors = std::vector<double>(errors.size(), 1.0)};
  auto const layers = planned_layers(errors.num_layers, options.skip_layers);
  detail::HeadCounts const counts = detail::kv_head_counts(errors);
  std::vector<std::int32_t> heads_each;  // of the planned layers
  std::vector<std::size_t> planned;      // numbers of their heads among all
  for (std::int32_t const layer : layers) {
    heads_each.push_back(counts.view().count(layer));
    for (std::int32_t head = 0; head < heads_each.back(); ++head) {
      planned.push_back(static_cast<std::size_t>(counts.view().first(layer) + head));
    }
  }
  std::vector<PolicyPlan> known{best.plan};
  auto const is_known = [&](PolicyPlan const& plan) {
    return std::any_of(known.begin(), known.end(), [&](PolicyPlan const& other) {
      return other.table == plan.table && other.formats == plan.formats;
    });
  };
  std::vector<double> losses;
  auto const tried = [&](PolicyPlan const& plan) {
    std::vector<double> result;
    if constexpr (of_plans) {
      result = trial(plan);
    } else {
      result = trial(plan.table);
    }
    ++best.trials;
    require(!result.empty(), "losses of a trial", "at least one", "none", where);
    bool const first = best.trials == 1;
    require(first || result.size() == losses.size(), "losses of a trial", losses.size(), result.size(), where);
    for (double const loss : result) {
      require(std::isfinite(loss), "loss of a trial", "a finite number", loss, where);
    }
    return result;
  };
  losses = tried(best.plan);
  best.first_loss = best.loss = detail::mean_of(losses);

  // @return whether scaling a cut's first half so far up, its second so far down, is better
  auto const take = [&](detail::HeadCut const& cut, double step) {
    std::vector<double> factors = best.factors;
    double const factor = std::exp2(step / 2);
    for (std::size_t head = cut.begin; head < cut.end; ++head) {
      factors[planned[head]] *= head < cut.middle ? factor : 1 / factor;
    }
    KvErrors scaled = scaled_errors(errors, factors);
    PolicyPlan plan = plan_policies(scaled, budget, context, options);
    if (is_known(plan)) return false;
    if (best.trials >= refining.most_trials) {
      best.limited = true;
      return false;
    }
    known.push_back(plan);
    std::vector<double> result = tried(plan);
    auto const gain = paired_gain(losses, result);
    if (!(gain.mean > refining.least_gain * gain.standard_error)) return false;
    ++best.taken;
    best.plan = std::move(plan);
    best.errors = std::move(scaled);
    best.factors = std::move(factors);
    losses = std::move(result);
    best.loss = detail::mean_of(losses);
    return true;
  };
  auto const cuts = detail::head_cuts(detail::HeadCounts(heads_each).view(), refining.levels);
  for (double const step : refining.steps) {
    for (detail::HeadCut const& cut : cuts) {
      for (double const way : {step, -step}) {
        bool any = false;
        while (take(cut, way)) any = true;
        if (best.limited) return best;
        if (any) break;
      }
    }
  }
  return best;
}

HEADAWARE_NAMESPACE_END
