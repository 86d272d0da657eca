#include "tools/llama/refinement.hpp"

#include <headaware/error.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

ha::RefinedPlan refined_plan(LossStore& losses, CalibrationText const& text, ha::KvErrors const& errors,
                             ha::Budget const& budget, std::int64_t context, ha::PlanOptions const& plan,
                             RefinementOptions const& options) {
  constexpr auto where = "refined_plan";
  auto const pieces = first_pieces(text.text, options.pieces.text, "pieces of text to refine on", where);
  auto const probes = first_pieces(text.probe, options.pieces.probe, "pieces of the probe to refine on", where);
  std::int32_t number = 0;
  double first = 0;
  double least = 0;
  auto const trial = [&](ha::PolicyPlan const& tried) {
    std::vector<LossJob> jobs;
    for (auto const& piece : pieces) jobs.push_back({piece, tried.table, {.formats = tried.formats}});
    for (auto const& piece : probes) jobs.push_back({piece, tried.table, {.formats = tried.formats}});
    ++number;
    std::string what = "refining, trial " + std::to_string(number);
    if (number > 1) {
      char gain[48];
      std::snprintf(gain, sizeof(gain), ", %.1f %% less at best", 100 * (1 - least / first));
      what += gain;
    }
    auto const all = losses.divergences(what, jobs, text.first_query);
    // Token by token, so that trials compare in pairs; weighed so that their mean is that of the pieces.
    double tokens = 0;
    for (auto const& piece : all) tokens += static_cast<double>(piece.size());
    std::vector<double> result;
    for (std::size_t i = 0; i < all.size(); ++i) {
      bool const natural = i < pieces.size();
      double const weight = natural ? 1.0 / static_cast<double>(pieces.size())
                                    : options.probe_weight / static_cast<double>(probes.size());
      double const factor = weight * tokens / static_cast<double>(all[i].size());
      for (double const divergence : all[i]) result.push_back(factor * divergence);
    }
    double const mean = mean_loss(result);
    if (number == 1) first = least = mean;
    least = std::min(least, mean);
    return result;
  };
  auto result = ha::refine_plan(errors, budget, context, plan, options.refine, trial);
  std::fprintf(stderr, "refined: %d tables tried%s, %d better ones taken, divergence %.4f -> %.4f\n", result.trials,
               result.limited ? " (the limit)" : "", result.taken, result.first_loss, result.loss);
  return result;
}

Calibration calibration_scaled(Calibration calibration, std::span<double const> factors) {
  auto const scale = [&](MeasuredText& measured) {
    ha::RetentionInfo const& info = measured.statistics.info;
    ha::PolicyTable const heads(info.shape());
    std::vector<double> values;
    for (std::int32_t layer = 0; layer < info.num_layers; ++layer) {
      for (std::int32_t head = 0; head < heads.num_kv_heads(layer); ++head) {
        values.push_back(measured.sensitivities.at(layer, head) * factors[values.size()]);
      }
    }
    measured.sensitivities = ha::Sensitivities::per_head(info.shape(), std::move(values));
  };
  scale(calibration.text);
  scale(calibration.probe);
  return calibration;
}

}  // namespace llama_adapter
