#pragma once

// What holds of every plan by bytes.

#include "support/catch.hpp"

#include <headaware/cache/layer_channels.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <cstddef>
#include <cstdint>

namespace headaware_test {

/// The accounting of a plan by bytes, recounted.
inline void check_bytes(headaware::PolicyPlan const& plan, headaware::ModelShape const& shape) {
  REQUIRE(plan.by_bytes());
  headaware::LayerChannels const channels(shape);
  std::int64_t bytes = 0;
  std::size_t head = 0;
  double error = 0;
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv, ++head) {
      auto const& rows = channels.of(static_cast<std::size_t>(layer));
      auto const pages = plan.options.formats.pages(plan.formats.at(layer, kv), rows, plan.options.page_size);
      auto const& planned = plan.heads[head];
      REQUIRE(planned.tokens == headaware::held_tokens(plan.table.at(layer, kv), plan.context, pages.rows));
      REQUIRE(planned.tokens % pages.rows == 0);
      REQUIRE(planned.bytes == planned.tokens / pages.rows * pages.bytes);
      bytes += planned.bytes;
      error += planned.predicted_error;
    }
  }
  REQUIRE(plan.planned_bytes() == bytes);
  REQUIRE(bytes == headaware::held_bytes(plan.table, plan.formats, channels, plan.context, plan.options.page_size,
                                         plan.options.formats.sixteen_bits));
  REQUIRE(bytes <= plan.budget_bytes());
  REQUIRE(plan.left() == plan.budget_bytes() - bytes);
  REQUIRE(error == plan.predicted_error);
}

}  // namespace headaware_test
