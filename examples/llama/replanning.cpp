#include "llama/replanning.hpp"

#include <headaware/plan/replanned_sensitivity.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

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
      jobs.push_back({piece, plan.skip_layers(std::span(&layer, 1))});
    }
  }
  auto const all = losses.divergences("sensitivities at the plan, " + what, jobs, first_query);
  std::vector<double> gains(layers);
  for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
    auto const runs = std::span(all).subspan(piece * (layers + 1), layers + 1);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      gains[layer] += (mean_loss(runs[0]) - mean_loss(runs[layer + 1])) / static_cast<double>(pieces.size());
    }
  }
  return gains;
}

}  // namespace

bool LayerGains::any() const {
  auto const some = [](std::vector<double> const& gains) {
    return std::any_of(gains.begin(), gains.end(), [](double gain) { return gain > 0; });
  };
  return some(text) && some(probe);
}

LayerGains layer_gains(LossStore& losses, CalibrationText const& text, ha::PolicyTable const& plan,
                       PieceCounts const& pieces) {
  auto const gains = [&](CalibrationText::Pieces const& all, std::int32_t used, char const* name) {
    return gains_of(losses, first_pieces(all, used, "pieces to measure at the plan", "layer_gains"), text.first_query,
                    plan, name);
  };
  return {gains(text.text, pieces.text, "text"), gains(text.probe, pieces.probe, "probe")};
}

Calibration calibration_at(Calibration const& before, ha::PolicyPlan const& plan, LayerGains const& gains,
                           double step) {
  auto const at_plan = [&](MeasuredText const& text, std::span<double const> gained) {
    return ha::sensitivities_at_plan(text.statistics, text.sensitivities, plan, gained, step);
  };
  Calibration result = before;
  result.text.sensitivities = at_plan(before.text, gains.text);
  result.probe.sensitivities = at_plan(before.probe, gains.probe);
  return result;
}

}  // namespace llama_adapter
