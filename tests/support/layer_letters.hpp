#pragma once

// Layers of a small model by a letter each, for readers of shapes.

#include <headaware/model_shape.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

using Layers = std::vector<ha::LayerShape>;

constexpr ha::LayerShape full{.num_query_heads = 8, .num_kv_heads = 2, .head_dim = 16, .value_dim = 16};
constexpr ha::LayerShape none{.kind = ha::LayerKind::none};

constexpr ha::LayerShape sliding(std::int64_t window) {
  ha::LayerShape layer = full;
  layer.kind = ha::LayerKind::sliding;
  layer.window = window;
  return layer;
}

/// F: full attention, s: sliding, others: none.
inline Layers layers_of(std::string_view letters, std::int64_t window = 9) {
  Layers layers;
  for (char const letter : letters) layers.push_back(letter == 'F' ? full : letter == 's' ? sliding(window) : none);
  return layers;
}

}  // namespace headaware_test
