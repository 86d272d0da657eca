#pragma once

// What heads keep, and in which formats.

#include <headaware/format/table.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/table.hpp>

namespace llama_adapter {

/// Policies and formats of all heads; without these nothing is rounded.
struct KeptHeads {
  headaware::PolicyTable table;
  headaware::FormatTable formats{};

  [[nodiscard]] static KeptHeads of(headaware::PolicyPlan const& plan) { return {plan.table, plan.formats}; }
};

}  // namespace llama_adapter
