#pragma once

// A model whose layers differ, for counting beside a uniform one: windows of 8 KV heads x 256 channels, full attention
// of 2 x 512, a layer without a cache, a latent of 576 channels whose first 512 are the values.

#include "support/gpu.cuh"

#include <headaware/layout/per_layer.hpp>
#include <headaware/model_shape.hpp>

#include <cstdint>
#include <list>
#include <vector>

namespace bench {

inline ha::ModelShape mixed_shape() {
  using ha::LayerKind;
  ha::LayerShape const sliding{.kind = LayerKind::sliding,
                               .num_query_heads = 16,
                               .num_kv_heads = 8,
                               .head_dim = 256,
                               .value_dim = 256,
                               .window = 1024};
  ha::LayerShape const full{.num_query_heads = 16, .num_kv_heads = 2, .head_dim = 512, .value_dim = 512};
  ha::LayerShape const none{.kind = LayerKind::none};
  ha::LayerShape const latent{
      .kind = LayerKind::latent, .num_query_heads = 128, .num_kv_heads = 1, .head_dim = 576, .value_dim = 512};
  return ha::ModelShape({sliding, sliding, sliding, full, none, latent, sliding, sliding, sliding, full, none, latent});
}

/// Tensors of `tokens` tokens of one sequence in all layers, `[1, KV heads, tokens, channels]` each.
struct MixedTensors {
  std::list<DeviceArray<std::uint16_t>> memory{};
  std::vector<ha::LayerKv<std::uint16_t>> layers{};
  std::vector<ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>> layouts{};

  MixedTensors(ha::ModelShape const& shape, std::int64_t tokens) {
    auto const tensor = [&](ha::StridedLayout const& layout) -> std::uint16_t* {
      std::int64_t const size = layout.required_span_size();
      if (size == 0) return nullptr;
      return memory.emplace_back(std::vector<std::uint16_t>(static_cast<std::size_t>(size), 1)).data();
    };
    for (ha::LayerShape const& l : shape.layers()) {
      std::int64_t const values = l.kind == ha::LayerKind::latent ? 0 : l.value_dim;
      layouts.push_back({ha::strided_bhsd(1, l.num_kv_heads, tokens, l.head_dim),
                         ha::strided_bhsd(1, l.num_kv_heads, tokens, values)});
      layers.push_back({tensor(layouts.back().keys), tensor(layouts.back().values)});
    }
  }
};

}  // namespace bench
