#include "tools/llama/replanning.hpp"

#include "tools/llama/kept_heads.hpp"

#include <headaware/error.hpp>
#include <headaware/plan/replanned_sensitivity.hpp>
#include <headaware/policy/full.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// The plan, and after it the plan with each layer (head) given everything back, in 16 bits.
std::vector<KeptHeads> tables_of(ha::PolicyTable const& plan, ha::FormatTable const& formats, SensitivityOf by) {
  std::vector<KeptHeads> tables{{plan, formats}};
  for (std::int32_t layer = 0; layer < plan.num_layers(); ++layer) {
    bool const whole = by == SensitivityOf::layer;
    if (whole) tables.push_back({plan.skip_layers(std::span(&layer, 1)), formats});
    for (std::int32_t head = 0; head < plan.num_kv_heads(layer); ++head) {
      if (!whole) {
        tables.push_back({plan, formats});
        tables.back().table.set(layer, head, ha::Full{});
      }
      if (formats.num_layers() > 0) tables.back().formats.set(layer, head, {});
    }
  }
  return tables;
}

std::vector<double> gains_of(LossStore& losses, std::span<std::vector<std::int32_t> const> pieces,
                             std::int64_t first_query, std::span<KeptHeads const> tables, std::string const& what) {
  std::vector<LossJob> jobs;
  for (auto const& piece : pieces) {
    for (auto const& [table, formats] : tables) jobs.push_back({piece, table, {.formats = formats}});
  }
  auto const all = losses.divergences("sensitivities at the plan, " + what, jobs, first_query);
  std::vector<double> gains(tables.size() - 1);
  for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
    auto const runs = std::span(all).subspan(piece * tables.size(), tables.size());
    for (std::size_t i = 0; i < gains.size(); ++i) {
      gains[i] += (mean_loss(runs[0]) - mean_loss(runs[i + 1])) / static_cast<double>(pieces.size());
    }
  }
  return gains;
}

}  // namespace

bool PlanGains::any() const {
  auto const some = [](std::vector<double> const& gains) {
    return gains.empty() || std::any_of(gains.begin(), gains.end(), [](double gain) { return gain > 0; });
  };
  return some(text) && some(probe);
}

PlanGains plan_gains(LossStore& losses, CalibrationText const& text, ha::PolicyTable const& plan,
                     ha::FormatTable const& formats, PieceCounts const& pieces, SensitivityOf by) {
  constexpr auto where = "plan_gains";
  ha::require(by != SensitivityOf::none, "what is given back", "layer or head", "none", where);
  auto const tables = tables_of(plan, formats, by);
  auto const gains = [&](CalibrationText::Pieces const& all, std::int32_t used, char const* name) {
    if (used == 0) return std::vector<double>{};
    return gains_of(losses, first_pieces(all, used, "pieces to measure at the plan", where), text.first_query, tables,
                    name);
  };
  return {gains(text.text, pieces.text, "text"), gains(text.probe, pieces.probe, "probe")};
}

Calibration calibration_at(Calibration const& before, ha::PolicyPlan const& plan, PlanGains const& gains, double step) {
  auto const at_plan = [&](MeasuredText const& text, std::span<double const> gained) {
    if (gained.empty()) return text.sensitivities;
    return ha::sensitivities_at_plan(text.statistics, text.sensitivities, plan, gained, step);
  };
  Calibration result = before;
  result.text.sensitivities = at_plan(before.text, gains.text);
  result.probe.sensitivities = at_plan(before.probe, gains.probe);
  return result;
}

}  // namespace llama_adapter
