#pragma once

// Row scores and head budgets of a model, measured by what it looks at when it reads texts a second time.

#include "tools/llama/engine.hpp"

#include <headaware/io/row_scorer.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

struct ScoreOptions {
  std::filesystem::path output_dir;
  std::int32_t pieces = 8;    ///< of text, that the weights are fitted to
  std::int32_t held_out = 1;  ///< of text, that penalties are chosen by and qualities told of
  std::int64_t piece_tokens = 1024;
  std::int32_t threads = 1;
  std::string instruction = "\n\nRepeat the previous context exactly.\n\n";  ///< between the two readings
  double floor = 1e-7;  ///< smaller probabilities count as this one, so that they have a logarithm
  std::vector<double> penalties{1e-3, 1e-2, 3e-2, 0.1, 0.3, 1};  ///< of ridge regression, to choose from per KV head
  std::vector<double> shares{0.015625, 0.03125, 0.0625, 0.09375, 0.125, 0.1875, 0.25, 0.375, 0.5};  ///< of the budgets
  double overlap_share = 0.125;  ///< of the rows, that the overlap is told of
};

/// @brief Measures, fits, and writes `scores.json` with its weights to `output_dir`. What an interrupted run in the
/// same folder has measured (`scores_state/`) is not measured again.
/// @param tokens  of the text, without BOS
/// @throws support::Interrupted on Ctrl-C; ArgumentError if the text is too short or options make no sense, FileError,
///         what `SecondReading` throws
[[nodiscard]] headaware::RowScorer calibrate_scores(Model const& model, std::span<std::int32_t const> tokens,
                                                    ScoreOptions const& options);

/// The lines that tell of a calibration.
[[nodiscard]] std::string score_summary(headaware::SavedScores const& saved);

}  // namespace llama_adapter
