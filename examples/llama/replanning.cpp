#include "llama/replanning.hpp"

#include <headaware/plan/compare.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>

namespace llama_adapter {

namespace ha = headaware;

namespace {

std::vector<double> gains_of(LossStore& losses, std::span<std::vector<std::int32_t> const> pieces,
                             std::int64_t first_query, ha::PolicyTable const& plan, std::string const& what) {
  auto const layers = static_cast<std::size_t>(plan.num_layers());
  std::vector<LossJob> jobs;
  for (auto const& piece : pieces) {
    jobs.push_back({piece, plan});
    for (std::int32_t layer = 0; layer < plan.num_layers(); ++layer) {
      ha::PolicyTable table = plan;
      for (std::int32_t head = 0; head < plan.num_kv_heads(); ++head) table.set(layer, head, ha::Full{});
      jobs.push_back({piece, std::move(table)});
    }
  }
  auto const all = losses.divergences("sensitivities at the plan, " + what, jobs, first_query);
  std::vector<double> gains(layers);
  for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
    std::size_t const base = piece * (layers + 1);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      gains[layer] += (mean_loss(all[base]) - mean_loss(all[base + 1 + layer])) / static_cast<double>(pieces.size());
    }
  }
  return gains;
}

ha::Sensitivities at_plan(MeasuredText const& text, ha::PolicyTable const& plan, std::span<double const> gains,
                          double step, ReplanOptions const& options) {
  ha::WeightedStatistics const statistics{&text.statistics};
  auto const errors = ha::weighted_errors(std::span(&statistics, 1), options.measure, options.fold);
  auto const evaluated = ha::evaluate_table(plan, errors, options.context, {});
  auto const layers = static_cast<std::size_t>(plan.num_layers());
  std::vector<double> before(layers);
  std::vector<double> predicted(layers);  // by the earlier sensitivities
  double predicted_sum = 0;
  double gained_sum = 0;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    double error = 0;
    for (std::int32_t head = 0; head < plan.num_kv_heads(); ++head) {
      error += evaluated.heads[layer * static_cast<std::size_t>(plan.num_kv_heads()) + static_cast<std::size_t>(head)]
                   .predicted_error;
    }
    before[layer] = text.sensitivities.at(static_cast<std::int32_t>(layer), 0);
    predicted[layer] = before[layer] * error;
    predicted_sum += predicted[layer];
    gained_sum += std::max(0.0, gains[layer]);
  }
  // One measurement says little of a layer by itself: it may not move it by more than this.
  constexpr double furthest = 4;
  double const scale = gained_sum / predicted_sum;
  std::vector<double> values(layers);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    double const ratio = predicted[layer] > 0 ? gains[layer] / (scale * predicted[layer]) : 1;
    values[layer] = before[layer] * scale * std::pow(std::clamp(ratio, 1 / furthest, furthest), step);
    if (std::getenv("HA_REPLAN_SHOW"))
      std::fprintf(stderr, "layer %zu gain %.5f predicted %.5f scaled %.5f ratio %.2f\n", layer, gains[layer],
                   predicted[layer], scale * predicted[layer], ratio);
  }
  return ha::Sensitivities::per_layer(std::move(values));
}

}  // namespace

LayerGains layer_gains(LossStore& losses, CalibrationText const& text, ha::PolicyTable const& plan,
                       std::int32_t pieces) {
  auto const used = [&](CalibrationText::Pieces const& all) {
    return std::span(all).first(static_cast<std::size_t>(pieces));
  };
  return {gains_of(losses, used(text.text), text.first_query, plan, "text"),
          gains_of(losses, used(text.probe), text.first_query, plan, "probe")};
}

Calibration calibrated_at(Calibration const& before, ha::PolicyTable const& plan, LayerGains const& gains, double step,
                          ReplanOptions const& options) {
  Calibration result = before;
  result.text.sensitivities = at_plan(before.text, plan, gains.text, step, options);
  result.probe.sensitivities = at_plan(before.probe, plan, gains.probe, step, options);
  return result;
}

}  // namespace llama_adapter
