#pragma once

// What a file of policies tells of its model, where caches of one size are made for them.

#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/types.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace support {

struct Told {
  headaware::ModelConfig each{};   ///< heads and channels of every layer
  headaware::ModelShape layers{};  ///< where some slide; empty: none does

  /// The shape that the policies are for. @param known  heads and channels, as more than the file tells
  [[nodiscard]] headaware::ModelShape shape(headaware::ModelConfig const& known) const {
    if (layers.num_layers() == 0) return known;
    std::vector<headaware::LayerShape> result(layers.layers().begin(), layers.layers().end());
    for (headaware::LayerShape& layer : result) {
      layer.num_kv_heads = known.num_key_value_heads;
      layer.head_dim = layer.value_dim = known.head_dim;
    }
    return headaware::ModelShape(std::move(result));
  }
};

/// @throws ArgumentError if layers differ in more than their windows
inline Told told_by(headaware::ModelShape const& layers, std::filesystem::path const& path) {
  headaware::LayerShape const& first = layers.layer(0);
  for (std::int32_t index = 0; index < layers.num_layers(); ++index) {
    headaware::LayerShape const& layer = layers.layer(index);
    bool const alike = layer.has_cache() && layer.kind != headaware::LayerKind::latent &&
                       layer.num_query_heads == first.num_query_heads && layer.num_kv_heads == first.num_kv_heads &&
                       layer.head_dim == first.head_dim && layer.value_dim == first.head_dim;
    headaware::require(alike, "layer", "one with the heads and channels of layer 0, its window aside", "another",
                       [&] { return path.string() + ", layer " + std::to_string(index); });
  }
  auto const channels = static_cast<std::int32_t>(first.head_dim > 0 ? first.head_dim : 64);
  return {{layers.num_layers(), first.num_query_heads, first.num_kv_heads, channels}, layers};
}

}  // namespace support
