#pragma once

// From a configuration of the ablation study to a table of policies.

#include "llama/ablation_calibration.hpp"
#include "llama/ablation_groups.hpp"
#include "tools/llama/kept_heads.hpp"

#include <headaware/model_shape.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <vector>

namespace llama_adapter {

class AblationTables {
 public:
  /// @param calibration  measured; borrowed @param budget_tokens  of a KV head, on average
  /// @throws ArgumentError if KV heads of layers hold rows of different sizes
  AblationTables(AblationCalibration const& calibration, headaware::ModelShape shape, std::int64_t context,
                 std::int64_t budget_tokens);

  /// @brief What heads keep in a configuration. Those of one size hold the same number of tokens, to the token; where
  /// rows have formats, as many bytes as these tokens in 16 bits, or less by less than a row a head.
  /// @throws ArgumentError if there is none: layers that keep everything, floors or exact rows take more than the
  ///         budget; a plan's formats were not measured
  [[nodiscard]] KeptHeads of(AblationSetup const& setup) const;
  /// Bytes that it holds, those of exact rows beside codes included, and its share of the full cache's in 16 bits.
  [[nodiscard]] std::int64_t held_bytes(KeptHeads const& kept, AblationPrecision const& precision) const;
  [[nodiscard]] double held_share(KeptHeads const& kept, AblationPrecision const& precision) const;

  /// Errors that the plan of a setup is made of, without what refining it finds.
  [[nodiscard]] PlannerInput input_of(AblationSetup const& setup) const;

  /// @brief The setup neither planned again nor refined: what it is planned again from.
  [[nodiscard]] static AblationSetup first_of(AblationSetup setup) {
    setup.replan_step = 0;
    setup.refine_levels = 0;
    return setup;
  }

 private:
  [[nodiscard]] std::int64_t total(AblationSetup const& setup) const;
  /// Rows in 16 bits of all heads that are exact beside their codes.
  [[nodiscard]] std::int64_t exact_rows(AblationPrecision const& precision) const;
  /// Tokens left per head of the layers beside those that keep everything.
  [[nodiscard]] headaware::Budget budget_beside(std::vector<std::int32_t> const& whole,
                                                AblationSetup const& setup) const;
  [[nodiscard]] headaware::PolicyTable rules(bool aggressive) const;
  [[nodiscard]] headaware::PolicyTable uniform(AblationSetup const& setup) const;
  /// @param tokens  of each KV head that does not slide; a plan's formats are those given
  [[nodiscard]] KeptHeads uniform_in(headaware::HeadFormats const& formats, AblationSetup const& setup) const;
  [[nodiscard]] headaware::PolicyPlan planned(AblationSetup const& setup) const;
  [[nodiscard]] headaware::PolicyTable planned_by_query_heads(AblationSetup const& setup) const;

  AblationCalibration const* calibration_;
  headaware::ModelShape shape_;
  std::int64_t num_heads_;  ///< KV heads of all layers
  std::int64_t context_;
  std::int64_t budget_tokens_;
  std::int64_t sixteen_bit_row_ = 0;  ///< bytes of a key and a value
};

/// @brief Widens windows, one token per head in turn, until the table holds `total` tokens or no window can grow.
void fill_up(headaware::PolicyTable& table, std::int64_t total, std::int64_t context);

}  // namespace llama_adapter
