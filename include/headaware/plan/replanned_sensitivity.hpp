#pragma once

/// @file
/// Sensitivities measured again at a plan, where all layers are cut at once.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/plan/sensitivity.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Sensitivities at a plan: what a layer's cut costs beside the cuts of all others is not what it costs alone.
///
/// Earlier sensitivities predict for each layer what the plan loses in it; the measurement tells what giving that layer
/// everything back gains. Factors of the layer are multiplied by (gain / predicted loss)^step, gains and predictions
/// scaled to equal sums first, and with the ratio held within [1/4, 4]: one measurement says little of a layer by
/// itself. Where the plan loses nothing in a layer the ratio is 1.
/// @param statistics  of the same text as the gains
/// @param before      of that text; empty: 1 everywhere
/// @param plan        that the gains were measured at
/// @param gains       nats, [layers]: by how much less predictions diverge (or the loss rises) where the layer alone
///                    keeps everything and all others follow the plan; may be negative
/// @param step        0: `before`, at the scale of the gains; 1: all the way, which overshoots
/// @throws ArgumentError if shapes differ, a gain is NaN or infinite, no layer gains anything, or the step is outside
///         [0, 1]
/// @par Cost  O(heads · windows)
[[nodiscard]] inline Sensitivities sensitivities_at_plan(RetentionStatistics const& statistics,
                                                         Sensitivities const& before, PolicyPlan const& plan,
                                                         std::span<double const> gains, double step) {
  constexpr auto where = "sensitivities_at_plan";
  constexpr double furthest = 4;
  detail::require(step >= 0 && step <= 1, "step", "in [0, 1]", step, where);
  WeightedStatistics const text{&statistics, before};
  auto const errors = weighted_errors(std::span(&text, 1), plan.options.measure, plan.options.fold);
  auto const evaluated = evaluate_table(plan.table, errors, plan.context, plan.options);
  auto const layers = static_cast<std::size_t>(errors.num_layers);
  auto const heads = static_cast<std::size_t>(errors.num_kv_heads);
  detail::require(gains.size() == layers, "gains", layers, gains.size(), where);

  std::vector<double> predicted(layers);
  double predicted_sum = 0;
  double gained_sum = 0;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    detail::require(std::isfinite(gains[layer]), "gain", "a finite number", gains[layer], where);
    for (std::size_t head = 0; head < heads; ++head) {
      predicted[layer] += evaluated.heads[layer * heads + head].predicted_error;
    }
    predicted_sum += predicted[layer];
    gained_sum += std::max(0.0, gains[layer]);
  }
  detail::require(predicted_sum > 0 && gained_sum > 0, "losses and gains", "some above 0", "none", where);
  double const scale = gained_sum / predicted_sum;
  bool const by_head = before.num_kv_heads() > 0;
  std::vector<double> values;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    double const ratio = predicted[layer] > 0 ? gains[layer] / (scale * predicted[layer]) : 1;
    double const factor = scale * std::pow(std::clamp(ratio, 1 / furthest, furthest), step);
    for (std::size_t head = 0; head < (by_head ? heads : 1); ++head) {
      values.push_back(factor * before.at(static_cast<std::int32_t>(layer), static_cast<std::int32_t>(head)));
    }
  }
  return by_head ? Sensitivities::per_head(errors.num_layers, errors.num_kv_heads, std::move(values))
                 : Sensitivities::per_layer(std::move(values));
}

HEADAWARE_NAMESPACE_END
