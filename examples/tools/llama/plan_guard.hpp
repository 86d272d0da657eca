#pragma once

// Tries a plan, uniform windows of the same size and blends of both on text that none of them has seen, and keeps the
// best.

#include "tools/llama/calibration_text.hpp"
#include "tools/llama/loss_store.hpp"

#include <headaware/io/row_scorer.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace llama_adapter {

struct GuardOptions {
  std::int64_t context = 2048;                  ///< tokens of the sequences that the plan is for
  double probe_weight = 0.3;                    ///< of the probe's loss beside the text's, in scores
  std::vector<double> blends{0.25, 0.5, 0.75};  ///< shares of the plan
  /// Of plans by bytes: pairs of formats that uniform windows, and plans of the pair alone, are tried in, those that
  /// are predicted to lose least.
  std::int32_t fixed_pairs = 2;
  /// Scores by which heads may keep tokens; nullptr: none do. Borrowed. Plans of windows and scored slots together are
  /// then tried, evicting at every step, with these weights of the probe, as multiples of the best plan's: a probe asks
  /// for more than costs of one layer's cut predict, and slots can give it.
  headaware::RowScorer const* scorer = nullptr;
  std::vector<double> slot_probe_weights{1, 3, 10};
  std::int32_t threads = 1;  ///< of the engine, where these are tried
  headaware::PlanOptions plan{};
};

/// One table, tried.
struct GuardedTable {
  std::string name;  ///< "uniform", "uniform packed5/packed4", "blend 0.5" or a plan's
  headaware::PolicyPlan plan;
  double text_loss = 0;                  ///< nats per token of held-out text
  double text_gain_error = 0;            ///< standard error of how much that is below `uniform`'s, token by token
  double probe_loss = 0;                 ///< of the second copy of held-out probes
  double score = 0;                      ///< both, weighted
  bool eligible = false;                 ///< on text no worse than `uniform`
  std::optional<double> probe_weight{};  ///< in the errors that a plan was made of
  std::string blended_with{};            ///< of a blend: the plan's name, beside uniform windows
  bool scored = false;                   ///< heads keep tokens by scores: tried in caches that evict, not as masks
};

struct Guarded {
  /// Uniform windows, in plans by bytes of 16 bits first, then of other formats, plans of one pair of formats, plans
  /// as named, blends, plans with scored slots. All of the same size.
  std::vector<GuardedTable> tables;
  std::size_t num_uniform = 0;  ///< uniform windows, which come first
  std::size_t uniform = 0;      ///< index: those of them that lose least on text
  std::size_t first_plan = 0;   ///< index of the first plan as named
  double full_text_loss = 0;    ///< with everything kept
  double full_probe_loss = 0;
  std::string model;        ///< file, for whoever finds the result
  std::string text;         ///< file
  double probe_weight = 0;  ///< in scores
  std::size_t best = 0;     ///< index: the least score of those eligible; `uniform` if none is better

  [[nodiscard]] GuardedTable const& chosen() const { return tables[best]; }
};

/// Errors to make a plan of.
struct NamedErrors {
  std::string name;  ///< of the plan: "plan", "plan, probe 0.1"
  headaware::KvErrors errors;
  double probe_weight = 0;  ///< that went into them
  /// With `GuardOptions::slot_probe_weights`, where there are scores.
  std::vector<headaware::KvErrors> with_probe{};
};

/// @param errors  one plan is tried of each, and blends of the best of them; the first is what tables are evaluated
/// with
/// @throws ArgumentError if the budget is no more than a head's sinks or the plan's floors; support::Interrupted
[[nodiscard]] Guarded guarded_plan(LossStore& losses, std::vector<NamedErrors> const& errors,
                                   CalibrationText const& text, headaware::Budget const& budget,
                                   GuardOptions const& options);

/// The tables side by side, for a person.
[[nodiscard]] std::string guard_table(Guarded const& guarded);

/// @brief Writes the best plan (`support::save_plan_files`), and plan_guard.json, what it was tried against.
/// @throws FileError
void write_guarded(std::filesystem::path const& folder, Guarded const& guarded);

}  // namespace llama_adapter
