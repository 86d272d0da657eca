#pragma once

// Retention statistics of a made-up model whose layers differ, with windows that a planner has something to choose in.

#include "support/planned_statistics.hpp"

#include <headaware/model_shape.hpp>
#include <headaware/stats/retention.hpp>

#include <cstdint>
#include <vector>

namespace headaware_test {

/// Full attention, two windows, no cache, a latent, a layer that reads another's cache, other KV heads and channels.
inline headaware::ModelShape planned_shape() {
  using headaware::LayerKind;
  return headaware::ModelShape(std::vector<headaware::LayerShape>{
      {.num_query_heads = 8, .num_kv_heads = 2, .head_dim = 64, .value_dim = 64},
      {.kind = LayerKind::sliding,
       .num_query_heads = 8,
       .num_kv_heads = 4,
       .head_dim = 32,
       .value_dim = 32,
       .window = 96},
      {.kind = LayerKind::none},
      {.kind = LayerKind::latent, .num_query_heads = 8, .num_kv_heads = 1, .head_dim = 72, .value_dim = 64},
      {.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 64, .value_dim = 64, .cache_layer = 0},
      {.num_query_heads = 4, .num_kv_heads = 4, .head_dim = 32, .value_dim = 16},
      {.kind = LayerKind::sliding,
       .num_query_heads = 4,
       .num_kv_heads = 2,
       .head_dim = 64,
       .value_dim = 64,
       .window = 48}});
}

/// Of every query head of every layer that attends.
inline headaware::RetentionStatistics mixed_statistics(headaware::ModelShape const& shape,
                                                       headaware::RetentionGrid const& grid, unsigned seed) {
  std::int32_t heads = 0;
  for (headaware::LayerShape const& l : shape.layers()) heads += l.num_query_heads;
  auto statistics = random_statistics(heads, 1, 1, grid, seed);
  statistics.info.set_shape(shape);
  return statistics;
}

}  // namespace headaware_test
