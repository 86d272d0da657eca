#pragma once

// Costs of layers, or KV heads, at a plan, where all of them are cut at once: cuts of single ones do not tell how they
// act together.

#include "tools/llama/calibration.hpp"

#include <headaware/plan/policy_plan.hpp>

#include <vector>

namespace llama_adapter {

/// By how much less predictions diverge where one layer (KV head) keeps everything and all others follow a plan:
/// [layers], or of the KV heads, layer by layer; nats per token; empty where a kind of text was not measured.
struct PlanGains {
  std::vector<double> text;
  std::vector<double> probe;

  /// True if something gains in each kind of text that was measured: else there is nothing to tell layers apart by.
  [[nodiscard]] bool any() const;
};

/// @brief Measures them over so many pieces of text and of the probe, a run per layer (head) and piece; what is in the
/// store is not run again.
/// @param formats  of the heads, 16 bits where everything is given back; empty: none
/// @param pieces  of either kind; none: it is not measured
/// @param by      layer or head
/// @throws support::Interrupted on Ctrl-C, what the engine throws
[[nodiscard]] PlanGains plan_gains(LossStore& losses, CalibrationText const& text, headaware::PolicyTable const& plan,
                                   headaware::FormatTable const& formats, PieceCounts const& pieces, SensitivityOf by);

/// Calibration with `headaware::sensitivities_at_plan` of each kind of text that was measured.
[[nodiscard]] Calibration calibration_at(Calibration const& before, headaware::PolicyPlan const& plan,
                                         PlanGains const& gains, double step);

}  // namespace llama_adapter
