#pragma once

// The configurations of an ablation study: groups, each of which differs from the usual plan in what its group
// is about. Data alone; nothing here runs.

#include "tools/llama/policy_run.hpp"

#include <headaware/plan/kv_errors.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace llama_adapter {

/// Ways to make a table.
enum class AblationMethod : std::uint8_t { full, uniform, rules, planned };
inline constexpr std::array<std::string_view, 4> ablation_method_names{"full", "uniform", "rules", "planned"};

/// Weights that make errors of different layers comparable. norm: 1 / median |residual|²; layer, head: how far a cut of
/// each moves predictions; layer_losses: what a cut of each layer costs in losses.
enum class AblationSensitivity : std::uint8_t { none, norm, layer, head, layer_losses };
inline constexpr std::array<std::string_view, 5> ablation_sensitivity_names{"none", "norm", "layer", "head",
                                                                            "layer_losses"};

/// Ways in which query heads share a KV head: by the sum or the maximum of their errors, or each planned by itself and
/// what any of them keeps kept.
enum class AblationFold : std::uint8_t { sum, maximum, keeps_union };
inline constexpr std::array<std::string_view, 3> ablation_fold_names{"sum", "maximum", "union"};

/// The text that a plan is made of.
enum class AblationDomain : std::uint8_t { own, other, both };
inline constexpr std::array<std::string_view, 3> ablation_domain_names{"own", "other", "both"};

/// The table whose size a table has.
enum class AblationSize : std::uint8_t { budget, conservative_rules, aggressive_rules };
inline constexpr std::array<std::string_view, 3> ablation_size_names{"budget", "conservative_rules",
                                                                     "aggressive_rules"};

/// The text that a plan is made of.
struct CalibrationUse {
  AblationDomain domain = AblationDomain::own;
  std::int32_t pieces = 4;              ///< of text; half as many of the probe
  std::int64_t piece_tokens = 0;        ///< 0: those of the context
  std::int32_t sensitivity_pieces = 1;  ///< over which losses are measured

  friend bool operator==(CalibrationUse const&, CalibrationUse const&) = default;
  friend bool operator<(CalibrationUse const& a, CalibrationUse const& b) {
    auto const key = [](CalibrationUse const& use) {
      return std::tuple(use.domain, use.pieces, use.piece_tokens, use.sensitivity_pieces);
    };
    return key(a) < key(b);
  }
};

/// Formats of a configuration's rows, at the bytes of its tokens in 16 bits.
struct AblationPrecision {
  /// "": 16 bits, in tokens; "measured": any that statistics measured, chosen a head; else one pair, as
  /// "packed5/packed4".
  std::string formats{};
  bool rotated = true;     ///< false: what a format rotates is not
  std::int32_t exact = 0;  ///< newest tokens that stay in 16 bits beside their codes, and sinks; 0: none, nor sinks
  static constexpr std::int32_t exact_sinks = 4;

  [[nodiscard]] bool by_bytes() const { return !formats.empty(); }
  /// Tokens of a head that are held in 16 bits beside their codes.
  [[nodiscard]] std::int32_t exact_rows() const { return exact > 0 ? exact_sinks + exact : 0; }
  friend bool operator==(AblationPrecision const&, AblationPrecision const&) = default;
};

/// All that a configuration may vary. The defaults are a plan as analyze_attention makes it.
struct AblationSetup {
  AblationMethod method = AblationMethod::planned;
  AblationSize size = AblationSize::budget;
  double size_share = 1;    ///< of that size
  std::int32_t sink = 4;    ///< of uniform windows
  bool aggressive = false;  ///< of rules: mixed heads keep a window too
  headaware::ErrorMeasure measure = headaware::ErrorMeasure::output_metric;
  AblationSensitivity sensitivity = AblationSensitivity::layer;
  double probe_weight = 0.3;
  std::optional<std::int64_t> floor{};
  AblationFold fold = AblationFold::sum;
  std::vector<std::int32_t> candidate_sinks{};  ///< that a head may have; none: all that were measured
  CalibrationUse calibration{};
  double plan_share = 1;        ///< of a blend with uniform windows
  std::int32_t full_first = 0;  ///< layers that keep everything
  std::int32_t full_last = 0;
  KeyPositions positions = KeyPositions::text;
  bool on_other_text = false;      ///< what it is evaluated on
  double replan_step = 0;          ///< how far costs go to those measured again at the plan; 0: not measured again
  std::int32_t refine_levels = 0;  ///< of `headaware::refine_plan`; 0: not refined
  AblationPrecision precision{};

  friend bool operator==(AblationSetup const&, AblationSetup const&) = default;
};

struct AblationVariant {
  std::string name;
  AblationSetup setup;
};

struct AblationGroup {
  std::string name;
  std::string varies;  ///< in words, with the unit
  std::vector<AblationVariant> variants;
  bool by_method = false;  ///< uniform windows compare with uniform windows alone, plans with plans

  /// True if two of its configurations may keep as much and are tried on the same text, so that they compare.
  [[nodiscard]] bool comparable(AblationSetup const& a, AblationSetup const& b) const;
};

/// Sizes that the groups depend on.
struct AblationScale {
  std::int64_t context = 512;
  std::int64_t budget_tokens = 128;                              ///< a KV head
  std::int32_t pieces = 4;                                       ///< of calibration text
  std::int32_t layers = 0;                                       ///< of the model
  bool other_text = true;                                        ///< whether there is a second text
  AblationSensitivity sensitivity = AblationSensitivity::layer;  ///< of the usual plan
};

/// The group that every other one is read against: everything kept, uniform windows, the usual plan.
[[nodiscard]] AblationGroup reference_group(AblationScale const& scale);

/// All groups that the scale allows, without the references.
[[nodiscard]] std::vector<AblationGroup> ablation_groups(AblationScale const& scale);

/// @brief The groups of these names, in their own order; "all": all.
/// @throws ArgumentError on a name that there is not, listing those that there are
[[nodiscard]] std::vector<AblationGroup> choose_groups(std::vector<AblationGroup> const& groups,
                                                       std::span<std::string const> names);

/// Groups and configurations, for a person.
[[nodiscard]] std::string groups_list(std::vector<AblationGroup> const& groups);
}  // namespace llama_adapter
