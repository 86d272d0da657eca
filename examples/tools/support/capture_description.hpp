#pragma once

// What a capture.json says (capture.hpp describes it).

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace capture {

namespace ha = headaware;

/// What is said of one layer.
struct LayerDescription {
  ha::LayerShape shape{};
  float scale = 1;
  float soft_cap = 0;
  std::vector<float> sinks{};  ///< [num_query_heads], learned ones; empty: none
};

/// Description of the model's attention.
struct Description {
  std::vector<std::int32_t> layers;  ///< model layers that the arrays hold
  float scale = 1;
  float soft_cap = 0;
  std::vector<std::int32_t> sliding_windows;  ///< of each of `layers`
  std::vector<std::int32_t> layers_with_sinks{};
  std::int32_t first_position = 0;
  std::string model;            ///< name; may be empty
  std::string architecture;     ///< may be empty
  std::int32_t num_layers = 0;  ///< of the model; 0: unknown
  /// Of each of `layers`. `parse_description` fills it only where layers have arrays of their own.
  std::vector<LayerDescription> each{};

  /// The shapes of `each`.
  [[nodiscard]] ha::ModelShape shape() const {
    std::vector<ha::LayerShape> shapes;
    for (LayerDescription const& layer : each) shapes.push_back(layer.shape);
    return ha::ModelShape(std::move(shapes));
  }
};

/// @throws FormatError unless it is a positive number, or, if `zero`, 0
inline void read_real(ha::JsonValue const& value, char const* key, float& number, bool zero) {
  number = static_cast<float>(value.number());
  bool const fits = std::isfinite(number) && (number > 0 || (zero && value.number() == 0));
  if (!fits) value.fail(key, zero ? "a number >= 0" : "a number > 0");
}

/// One layer of `shapes`.
inline LayerDescription read_layer(ha::JsonValue const& value) {
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  ha::JsonObject json = value.object();
  LayerDescription result;
  ha::LayerShape& shape = result.shape;
  shape.kind = json.get("kind", "a kind of layer").name_of<ha::LayerKind>(ha::layer_kind_names, "kind of layer");
  if (shape.kind == ha::LayerKind::none) value.fail("captured layer", "one with keys");
  auto const count = [&](char const* key) { return json.get(key, "an integer").integer(1, most); };
  shape.num_query_heads = count("num_query_heads");
  shape.num_kv_heads = count("num_kv_heads");
  shape.head_dim = count("head_dim");
  shape.value_dim = count("value_dim");
  if (shape.kind == ha::LayerKind::sliding) shape.window = count("window");
  read_real(json.get("scale", "a number"), "scale", result.scale, false);
  if (auto const cap = json.find("soft_cap")) read_real(*cap, "soft_cap", result.soft_cap, true);
  try {
    (void)ha::ModelShape(std::vector<ha::LayerShape>{shape});
  } catch (ha::ArgumentError const& error) {
    value.fail(error.detail().what, error.detail().expected, error.detail().got);
  }
  return result;
}

/// The text of a capture.json. @param result  what holds where it says nothing
inline void read_description(std::string_view text, std::string const& source, Description& result) {
  using ha::JsonObject;
  using ha::JsonValue;
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  ha::JsonTree const tree(text, source);
  JsonObject json = tree.root().object();
  auto const numbers = [&](char const* key, std::vector<std::int32_t>& list) {
    auto const value = json.find(key);
    if (!value) return;
    list.clear();
    for (JsonValue const number : value->array()) list.push_back(number.integer(0, most));
  };
  auto const real = [&](char const* key, float& number, bool zero) {
    if (auto const value = json.find(key)) read_real(*value, key, number, zero);
  };
  auto const words = [](JsonObject& object, char const* key, std::string& into) {
    if (auto const value = object.find(key)) into = value->string();
  };
  numbers("layers", result.layers);
  real("scale", result.scale, false);
  real("soft_cap", result.soft_cap, true);
  numbers("sliding_windows", result.sliding_windows);
  numbers("sinks", result.layers_with_sinks);
  if (auto const position = json.find("first_position")) result.first_position = position->integer(0, most);
  if (auto const value = json.find("model")) {
    JsonObject model = value->object();
    words(model, "name", result.model);
    words(model, "architecture", result.architecture);
    if (auto const layers = model.find("num_layers")) result.num_layers = layers->integer(0, most);
  }
  if (auto const shapes = json.find("shapes")) {
    result.sliding_windows.clear();
    for (ha::JsonValue const layer : shapes->array()) {
      result.each.push_back(read_layer(layer));
      result.sliding_windows.push_back(static_cast<std::int32_t>(result.each.back().shape.window));
    }
    if (result.each.empty() || result.each.size() != result.layers.size()) {
      shapes->fail("shapes", {"as many as layers: ", result.layers.size(), ", at least one"}, result.each.size());
    }
  }
  if (result.sliding_windows.empty()) result.sliding_windows.assign(result.layers.size(), 0);
  if (result.sliding_windows.size() != result.layers.size()) {
    throw ha::FormatError({"sliding_windows", "as many as layers: " + std::to_string(result.layers.size()),
                           std::to_string(result.sliding_windows.size()), source});
  }
}

/// The text of a capture.json; nothing: what holds where there is none.
/// @param arrays  layers that the arrays have
/// @throws FormatError
inline Description parse_description(std::optional<std::string_view> text, std::string const& source,
                                     std::int64_t arrays, std::int64_t head_dim) {
  Description result;
  result.layers.resize(static_cast<std::size_t>(arrays));
  std::iota(result.layers.begin(), result.layers.end(), 0);
  result.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
  result.sliding_windows.assign(result.layers.size(), 0);
  if (!text) return result;
  result.sliding_windows.clear();
  try {
    read_description(*text, source, result);
  } catch (ha::FormatError const& error) {
    throw ha::FormatError(
        {"capture.json: " + error.detail().what, error.detail().expected, error.detail().got, error.detail().where});
  }
  return result;
}

/// The folder's capture.json, where there is one.
inline Description load_description(std::filesystem::path const& folder, std::int64_t arrays, std::int64_t head_dim) {
  auto const path = folder / "capture.json";
  if (!std::filesystem::exists(path)) return parse_description(std::nullopt, path.string(), arrays, head_dim);
  return parse_description(ha::read_text_file(path), path.string(), arrays, head_dim);
}

/// @throws FormatError unless the arrays hold the layers named, each one of the model's `num_layers` (0: unknown)
inline void require_layers(Description const& description, std::int64_t arrays, std::int32_t num_layers,
                           std::filesystem::path const& folder) {
  auto const& layers = description.layers;
  bool const fits =
      static_cast<std::int64_t>(layers.size()) == arrays &&
      std::all_of(layers.begin(), layers.end(), [&](auto l) { return l >= 0 && (num_layers == 0 || l < num_layers); });
  if (!fits) {
    std::string const of_model = num_layers > 0 ? " layers of " + std::to_string(num_layers) : " layers";
    throw ha::FormatError({"captured layers", std::to_string(arrays) + of_model,
                           std::to_string(layers.size()) + " named", (folder / "capture.json").string()});
  }
}

}  // namespace capture
