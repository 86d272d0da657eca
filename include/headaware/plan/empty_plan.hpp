#pragma once

#include <headaware/config.hpp>
#include <headaware/format/table.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <cstdint>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Returns a plan that prunes all heads, to be set one by one (`PolicyPlan::set`).
/// @param context  tokens of the sequences that it is for
/// @param options  what was asked for; measure and fold become those of the errors
[[nodiscard]] inline PolicyPlan empty_plan(KvErrors const& errors, std::int64_t context, PlanOptions options) {
  PolicyPlan plan;
  plan.num_layers = errors.num_layers;
  plan.num_heads = errors.num_heads;
  plan.num_kv_heads = errors.num_kv_heads;
  plan.context = context;
  plan.options = std::move(options);
  plan.options.measure = errors.measure;
  plan.options.fold = errors.fold;
  plan.layers = errors.layers;
  plan.table = PolicyTable(errors.shape(), Prune{});
  plan.heads.resize(errors.size());
  FormatChoice const& choice = plan.options.formats;
  if (choice.by_bytes()) plan.formats = FormatTable(errors.shape(), choice.sixteen_bits);
  return plan;
}

HEADAWARE_NAMESPACE_END
