#pragma once

// What holds of every plan.

#include "support/catch.hpp"
#include "support/planned_statistics.hpp"

#include <headaware/plan/planner.hpp>

#include <cstdint>

namespace headaware_test {

namespace ha = headaware;

/// The context that the planner's tests plan for.
constexpr std::int64_t context = 512;

/// The accounting of a plan, recounted.
inline void check_accounting(ha::PolicyPlan const& plan) {
  std::int64_t tokens = 0;
  double error = 0;
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    for (std::int32_t kv = 0; kv < plan.num_kv_heads; ++kv) {
      auto const& head = plan.heads[static_cast<std::size_t>(layer * plan.num_kv_heads + kv)];
      REQUIRE(head.tokens == ha::held_tokens(plan.table.at(layer, kv), plan.context, plan.options.page_size));
      REQUIRE(head.tokens % plan.options.page_size == 0);
      tokens += head.tokens;
      error += head.predicted_error;
    }
  }
  REQUIRE(tokens == plan.planned_tokens);
  REQUIRE(error == plan.predicted_error);
  REQUIRE(plan.planned_tokens <= plan.budget_tokens);
  REQUIRE(plan.left() >= 0);
}

}  // namespace headaware_test
