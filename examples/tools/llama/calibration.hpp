#pragma once

// Measurements that a plan is made of: statistics of natural text and of a probe, and how much a cut of each
// layer costs either.

#include "tools/llama/calibration_text.hpp"
#include "tools/llama/loss_store.hpp"

#include <headaware/io/row_scorer.hpp>
#include <headaware/plan/weighted_errors.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/retention.hpp>

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama_adapter {

/// Unit that is cut alone to measure its cost.
enum class SensitivityOf : std::uint8_t { none, layer, head };
inline constexpr std::array<std::string_view, 3> sensitivity_names{"none", "layer", "head"};

/// Measure of a cut's cost: how far predictions move, or how much the loss increases.
enum class SensitivityBy : std::uint8_t { divergence, loss };
inline constexpr std::array<std::string_view, 2> sensitivity_by_names{"divergence", "loss"};

struct CalibrationOptions {
  std::filesystem::path output_dir;
  SensitivityOf sensitivity = SensitivityOf::layer;
  SensitivityBy by = SensitivityBy::divergence;
  PieceCounts sensitivity_pieces{};  ///< the first ones, over which costs of cuts are measured
  headaware::SinkWindow cut{.sink = 4, .window = 60};
  std::int64_t query_stride = 1;                   ///< every so many rows are observed
  std::filesystem::path sensitivities_from{};      ///< folder of another calibration of the model, at a shorter context
                                                   ///< say, whose costs of cuts are taken; empty: they are measured
  std::vector<std::int32_t> skip_layers{};         ///< are not cut: plans leave them whole. Ascending
  std::optional<headaware::RetentionGrid> grid{};  ///< sinks and windows to choose from; nothing: the default's
  std::optional<headaware::ErrorMeasure> measure{};  ///< as the plan's
  /// Formats whose errors are observed.
  std::vector<std::string> formats = headaware::ObserverParameters{}.formats;
  headaware::GroupFold fold = headaware::GroupFold::sum;
  /// Scores whose slots' errors are observed, in layers that do not slide; nullptr: none. Borrowed.
  headaware::RowScorer const* scorer = nullptr;
};

/// One kind of text, measured.
struct MeasuredText {
  headaware::RetentionStatistics statistics;
  headaware::Sensitivities sensitivities;
};

struct Calibration {
  MeasuredText text;
  MeasuredText probe;

  /// Both for the planner, borrowed. @param probe_weight  the text has 1
  [[nodiscard]] std::vector<headaware::WeightedStatistics> weighted(double probe_weight) const;
};

/// @brief The runs that tell the sensitivities to one kind of text: of each piece each layer (head) cut, for
/// `LossStore::divergences`, or, after one with everything kept, for `LossStore::losses`. None without
/// sensitivities, and none of layers that are skipped or have no cache.
[[nodiscard]] std::vector<LossJob> sensitivity_jobs(headaware::ModelShape const& shape,
                                                    std::span<std::vector<std::int32_t> const> pieces,
                                                    CalibrationOptions const& options);

/// @brief Measures; what an earlier run in the same folder has measured is taken from there. Writes
/// `text/` and `probe/` with retention_statistics.json and sensitivities.json, which plan_policies reads too.
/// @throws support::Interrupted on Ctrl-C; running it again goes on. ArgumentError, what the engine throws
[[nodiscard]] Calibration calibrate(LossStore& losses, CalibrationText const& text, CalibrationOptions const& options);

}  // namespace llama_adapter
