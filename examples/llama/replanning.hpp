#pragma once

// Sensitivities measured again at a plan, where all layers are cut at once: cuts of single layers do not tell how they
// act together.

#include "llama/calibration.hpp"

#include <headaware/plan/kv_errors.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <optional>

namespace llama_adapter {

struct ReplanOptions {
  std::int64_t context = 2048;  ///< tokens of the sequences that the plan is for
  std::int32_t pieces = 1;      ///< of text and of probe; each is a run a layer
  std::optional<headaware::ErrorMeasure> measure{};
  headaware::GroupFold fold = headaware::GroupFold::sum;
};

/// Gains of each layer, nats a token: by how much less predictions diverge where the layer alone keeps everything.
struct LayerGains {
  std::vector<double> text;
  std::vector<double> probe;
};

/// @brief Measures them; what an earlier run in the store's folder has measured is taken from there.
/// @throws support::Interrupted on Ctrl-C, what the engine throws
[[nodiscard]] LayerGains layer_gains(LossStore& losses, CalibrationText const& text, headaware::PolicyTable const& plan,
                                     std::int32_t pieces);

/// @brief Calibration with sensitivities at a plan.
/// @param step  in (0, 1]: how far from the earlier ones to those measured, in their logarithms
[[nodiscard]] Calibration calibrated_at(Calibration const& before, headaware::PolicyTable const& plan,
                                        LayerGains const& gains, double step, ReplanOptions const& options);

}  // namespace llama_adapter
