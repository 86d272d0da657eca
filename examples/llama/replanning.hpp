#pragma once

// What layers cost at a plan, where all of them are cut at once: cuts of single layers do not tell how they act
// together.

#include "llama/calibration.hpp"

#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <vector>

namespace llama_adapter {

/// By how much less predictions diverge where one layer keeps everything and all others follow a plan: [layers], nats
/// a token.
struct LayerGains {
  std::vector<double> text;
  std::vector<double> probe;

  /// Whether some layer gains something in both kinds of text: else there is nothing to tell layers apart by.
  [[nodiscard]] bool any() const;
};

/// @brief Measures them over so many pieces of text and of the probe, a run a layer and piece; what is in the store is
/// not run again.
/// @throws support::Interrupted on Ctrl-C, what the engine throws
[[nodiscard]] LayerGains layer_gains(LossStore& losses, CalibrationText const& text, headaware::PolicyTable const& plan,
                                     PieceCounts const& pieces);

/// Calibration with `headaware::sensitivities_at_plan` of both kinds of text.
[[nodiscard]] Calibration calibration_at(Calibration const& before, headaware::PolicyPlan const& plan,
                                         LayerGains const& gains, double step);

}  // namespace llama_adapter
