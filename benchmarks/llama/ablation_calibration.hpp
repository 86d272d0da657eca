#pragma once

// Calibrations of an ablation study's plans, measured once and shared by all of its groups.

#include "llama/ablation_groups.hpp"
#include "tools/llama/calibration.hpp"
#include "tools/llama/loss_store.hpp"
#include "tools/llama/replanning.hpp"

#include <headaware/classify/head_type.hpp>
#include <headaware/io/sensitivities.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/stats/retention.hpp>

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

/// One kind of text: statistics, and those sensitivities that some configuration wants.
struct AblationMeasured {
  headaware::RetentionStatistics statistics;
  /// By AblationSensitivity.
  std::array<std::optional<headaware::SavedSensitivities>, ablation_sensitivity_names.size()> sensitivities{};

  /// @throws ArgumentError if they were not measured
  [[nodiscard]] headaware::Sensitivities factors(AblationSensitivity sensitivity, headaware::ErrorMeasure measure,
                                                 headaware::GroupFold fold) const;
};

struct AblationKinds {
  AblationMeasured text;
  AblationMeasured probe;
};

/// A text to calibrate on. Borrowed.
struct AblationText {
  std::span<std::int32_t const> tokens;
  std::string name;  ///< in messages
};

struct AblationCalibrationOptions {
  AblationText own;
  AblationText other;
  std::int64_t context = 512;
  std::int32_t pieces = 4;  ///< usual number; there is room for twice as many
  std::int32_t threads = 1;
  std::filesystem::path folder;  ///< results are kept here by what went into them
};

/// Measurements that a plan is made of.
struct PlannerInput {
  headaware::KvErrors errors;
  headaware::Budget budget;
  headaware::PlanOptions options{};
};

class AblationCalibration {
 public:
  /// @param losses  borrowed; as in `calibrate` @throws ArgumentError if a text is too short
  AblationCalibration(LossStore& losses, AblationCalibrationOptions options, std::vector<AblationSetup> const& setups);

  /// Tokens that still have to run, all passes together.
  [[nodiscard]] std::int64_t tokens_to_run() const;

  /// @brief Measures all that the setups need and an earlier run has not measured, with progress.
  /// @throws support::Interrupted on Ctrl-C; running it again goes on
  void measure();

  /// @brief Measures what layers gain at the first plan of setups that plan again, by `measure`'s rules.
  /// @param first  without `replan_step` @pre measured
  void measure_at_plan(AblationSetup const& first, headaware::PolicyTable const& plan);
  /// Those gains. @pre they were measured
  [[nodiscard]] PlanGains const& gains_at_plan(AblationSetup const& first) const;

  /// @brief Refines the plan of a setup, by its text and its weight of the probe's.
  /// @param input  of that plan, unrefined @pre measured
  void refine(AblationSetup const& setup, PlannerInput const& input);
  /// The factors of errors found, a KV head. @pre the setup was refined
  [[nodiscard]] std::vector<double> const& refined_factors(AblationSetup const& setup) const;

  /// @pre measured, and `use` is of one domain
  [[nodiscard]] AblationKinds const& of(CalibrationUse const& use) const { return measured_.at(use); }
  /// Classes of the query heads, of the usual text. @pre some setup needs them
  [[nodiscard]] std::vector<headaware::HeadClassification> const& classes() const { return classes_; }

 private:
  /// By AblationSensitivity, which are needed.
  using Needs = std::array<bool, ablation_sensitivity_names.size()>;
  [[nodiscard]] CalibrationText pieces_of(CalibrationUse const& use) const;
  [[nodiscard]] std::filesystem::path folder_of(CalibrationText const& text, CalibrationUse const& use) const;
  [[nodiscard]] CalibrationUse usual() const;
  void measure_use(CalibrationUse const& use, Needs const& needs);
  void classify();

  LossStore* losses_;
  AblationCalibrationOptions options_;
  std::map<CalibrationUse, Needs> needs_;
  bool needs_classes_ = false;
  std::map<CalibrationUse, AblationKinds> measured_;
  std::vector<CalibrationUse> replanned_;
  std::vector<AblationSetup> refined_;
  std::vector<std::pair<AblationSetup, PlanGains>> gains_;
  std::vector<std::pair<AblationSetup, std::vector<double>>> factors_;
  std::vector<headaware::HeadClassification> classes_;
};

/// The calibrations of one domain each that a setup reads.
[[nodiscard]] std::vector<CalibrationUse> uses_of(CalibrationUse const& use);

}  // namespace llama_adapter
