#pragma once

// From a model and a text to a plan: pieces, measurements, planner, guard.

#include "tools/llama/calibration.hpp"
#include "tools/llama/plan_guard.hpp"
#include "tools/llama/refinement.hpp"
#include "tools/support/format_options.hpp"

#include <headaware/plan/budget.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace llama_adapter {

struct PlanningOptions {
  std::filesystem::path model;  ///< GGUF file, as it is to run
  std::filesystem::path text;   ///< text file
  std::int32_t threads = 1;
  CalibrationPieces pieces{};
  CalibrationOptions calibration{};
  std::vector<double> probe_weights{0.3};  ///< of each a plan is made and tried
  std::int32_t replan = 0;  ///< times that sensitivities are measured again, at the best plan so far, and plans made
  PieceCounts replan_pieces{};  ///< that they are measured on; none of a kind that has sensitivities: they stay
  SensitivityOf replan_by = SensitivityOf::layer;  ///< what is given everything back alone: layer or head
  /// The best plan is refined by trying it on text that it is made of; nothing: not.
  std::optional<headaware::RefineOptions> refine{};
  PieceCounts refine_pieces{.text = 2};  ///< that it is tried on
  support::FormatsWanted formats{};      ///< that heads may have; latents have 16 bits alone
  GuardOptions guard{};
};

/// @brief Calibrates a model on a text, plans for a budget, and writes the plan that is best on held-out text to
/// `calibration.output_dir`. Whatever an earlier run there has measured is not measured again. What re-planning
/// and refining make of the sensitivities goes to `replanned_N/` and `refined_N/` there, N being the budget per head,
/// for plans at other budgets and contexts.
/// @throws support::Interrupted on Ctrl-C; ArgumentError, FileError, FormatError, Error
Guarded plan_model(PlanningOptions const& given, headaware::Budget const& budget);

}  // namespace llama_adapter
