#pragma once

/// @file
/// Sensitivities measured again at a plan, where all layers are cut at once.

#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/plan/sensitivity.hpp>
#include <headaware/plan/weighted_errors.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Corrects sensitivities at a plan: a layer (KV head) that is cut beside all others costs another loss than one
/// that is cut alone.
///
/// Earlier sensitivities predict for each layer (head) what the plan loses in it; the measurement tells what giving it
/// everything back gains. Its factors are multiplied by (gain / predicted loss)^step, the gains above 0 and the
/// predictions scaled to equal sums first, and with the ratio held within [1/4, 4]: one measurement says little of a
/// layer by itself. Where the plan loses nothing the ratio is 1.
/// @param statistics  of the same text as the gains
/// @param before      of that text; empty: 1 everywhere
/// @param plan        that the gains were measured at
/// @param gains       nats, [layers], or of the KV heads, layer by layer: by how much less predictions diverge (or the
///                    loss rises) where the layer (head) alone keeps everything (in 16 bits) and all others follow the
///                    plan; may be negative. Where there are as many of both, of heads if `before` is
/// @param step        0: `before`, at the scale of the gains; 1: all the way, which overshoots
/// @throws ArgumentError if shapes differ, a gain is NaN or infinite, nothing gains anything, or the step is outside
///         [0, 1]
/// @par Cost  O(heads · windows)
[[nodiscard]] inline Sensitivities sensitivities_at_plan(RetentionStatistics const& statistics,
                                                         Sensitivities const& before, PolicyPlan const& plan,
                                                         std::span<double const> gains, double step) {
  constexpr auto where = "sensitivities_at_plan";
  constexpr double furthest = 4;
  require(step >= 0 && step <= 1, "step", "in [0, 1]", step, where);
  WeightedStatistics const text{&statistics, before};
  auto const errors = weighted_errors(std::span(&text, 1), plan.options.measure, plan.options.fold);
  auto const evaluated = evaluate_table(plan.table, plan.formats, errors, plan.context, plan.options);
  auto const layers = static_cast<std::size_t>(errors.num_layers);
  detail::HeadCounts const counts = detail::kv_head_counts(errors);
  LayerHeads const heads = counts.view();
  bool const told = layers != errors.size() || counts.first_heads().empty();
  bool const gains_of_heads = gains.size() == errors.size() && (told || before.num_kv_heads() > 0);
  require(gains_of_heads || gains.size() == layers, "gains", {layers, " (layers) or ", errors.size(), " (KV heads)"},
          gains.size(), where);
  auto const first = [&](std::size_t i) {  // head of what a gain is of
    return gains_of_heads ? i : static_cast<std::size_t>(heads.first(static_cast<std::int64_t>(i)));
  };

  std::vector<double> predicted(gains.size());
  double predicted_sum = 0;
  double gained_sum = 0;
  for (std::size_t i = 0; i < gains.size(); ++i) {
    require(std::isfinite(gains[i]), "gain", "a finite number", gains[i], where);
    for (std::size_t head = first(i); head < first(i + 1); ++head) {
      predicted[i] += evaluated.heads[head].predicted_error;
    }
    predicted_sum += predicted[i];
    gained_sum += std::max(0.0, gains[i]);
  }
  require(predicted_sum > 0 && gained_sum > 0, "losses and gains", "some above 0", "none", where);
  double const scale = gained_sum / predicted_sum;
  bool const by_head = gains_of_heads || before.num_kv_heads() > 0;
  std::vector<double> values;
  for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
    for (std::int32_t head = 0; head < (by_head ? heads.count(layer) : 1); ++head) {
      auto const i = static_cast<std::size_t>(gains_of_heads ? heads.first(layer) + head : layer);
      double const ratio = predicted[i] > 0 ? gains[i] / (scale * predicted[i]) : 1;
      double const factor = scale * std::pow(std::clamp(ratio, 1 / furthest, furthest), step);
      values.push_back(factor * before.at(layer, head));
    }
  }
  return by_head ? Sensitivities::per_head(errors.shape(), std::move(values))
                 : Sensitivities::per_layer(std::move(values));
}

HEADAWARE_NAMESPACE_END
