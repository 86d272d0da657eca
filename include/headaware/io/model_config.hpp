#pragma once

/// @file
/// Reads a model's shape from a Hugging Face `config.json`, if its layers are all alike.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/config_documents.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/model_shape.hpp>  // IWYU pragma: export
#include <headaware/model_shape.hpp>
#include <headaware/types.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @throws FormatError naming the first layer that is not like layer 0, or not plain attention, and what differs
template <class = void>
void require_alike(std::vector<LayerShape> const& layers, std::string const& source) {
  LayerShape const& first = layers.front();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    LayerShape const& l = layers[i];
    auto const require_same = [&](std::string_view field, Text const& expected, Text const& got, bool same) {
      if (same) return;
      throw FormatError(
          {Text{field, " of layer ", i}.str(),
           Text{expected, ", as a ModelConfig has it; load_model_shape reads models whose layers differ"}.str(),
           got.str(), source});
    };
    bool const slides = i > 0 && first.kind == LayerKind::sliding;
    LayerKind const kind = slides ? LayerKind::sliding : LayerKind::attention;
    require_same("kind", to_string(kind), to_string(l.kind),
                 l.kind == kind || (i == 0 && l.kind == LayerKind::sliding));
    require_same("cache", "its own", {"that of layer ", l.cache_layer}, l.cache_layer < 0);
    require_same("query heads", first.num_query_heads, l.num_query_heads, l.num_query_heads == first.num_query_heads);
    require_same("KV heads", first.num_kv_heads, l.num_kv_heads, l.num_kv_heads == first.num_kv_heads);
    require_same("head_dim", first.head_dim, l.head_dim, l.head_dim == first.head_dim);
    require_same("value_dim", first.head_dim, l.value_dim, l.value_dim == first.head_dim);
    require_same("window", first.window, l.window, l.window == first.window);
  }
}

}  // namespace detail

/// @brief A model's shape from the text of its `config.json`, as `parse_model_shape` reads it, where all layers hold
/// the same KV heads and channels. A sliding window that all of them have is not looked at.
///
/// `head_dim` is 0 where no field says how many channels a head has.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError as `parse_model_shape`, and naming the first layer that differs, and in what
template <class = void>
[[nodiscard]] ModelConfig parse_model_config(std::string_view text, std::string source_name) {
  std::vector<LayerShape> const layers = detail::parse_layers(text, source_name, false);
  detail::require_alike(layers, source_name);
  ModelConfig model;
  model.num_hidden_layers = static_cast<std::int32_t>(layers.size());
  model.num_attention_heads = layers.front().num_query_heads;
  model.num_key_value_heads = layers.front().num_kv_heads;
  model.head_dim = static_cast<std::int32_t>(layers.front().head_dim);
  return model;
}

/// @brief `parse_model_config` of a file.
/// @throws FormatError as there, FileError if the file cannot be read
template <class = void>
[[nodiscard]] ModelConfig load_model_config(FilePath const& path) {
  return parse_model_config(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
