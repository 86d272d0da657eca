#pragma once

// A plan made better by trying it on the texts that it was made of.

#include "tools/llama/calibration.hpp"
#include "tools/llama/loss_store.hpp"

#include <headaware/plan/refine.hpp>

#include <cstdint>
#include <span>

namespace llama_adapter {

struct RefinementOptions {
  PieceCounts pieces{};
  double probe_weight = 0.3;  ///< of the probe's divergence beside the text's
  headaware::RefineOptions refine{};
};

/// @brief `headaware::refine_plan` by how far predictions move, over the first pieces of text and of the probe that
/// statistics were taken of. Says on stderr what it has found. What is in the store is not run again, so an
/// interrupted search goes on.
/// @throws ArgumentError if there are not so many pieces; support::Interrupted on Ctrl-C, what planner and engine throw
[[nodiscard]] headaware::RefinedPlan refined_plan(LossStore& losses, CalibrationText const& text,
                                                  headaware::KvErrors const& errors, headaware::Budget const& budget,
                                                  std::int64_t context, headaware::PlanOptions const& plan,
                                                  RefinementOptions const& options);

/// Sensitivities of both kinds of text times factors of KV heads.
[[nodiscard]] Calibration calibration_scaled(Calibration calibration, std::span<double const> factors);

}  // namespace llama_adapter
