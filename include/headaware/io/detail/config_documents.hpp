#pragma once

// The objects of a `config.json` that describe the language model: the document itself, or one in it.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/config_fields.hpp>
#include <headaware/io/detail/config_reader.hpp>
#include <headaware/io/detail/config_unknown.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Whether two values are the same. Numbers that are not written as integers are not compared, but taken as others.
template <class = void>
[[nodiscard]] bool is_same(JsonValue const& a, JsonValue const& b) {
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case JsonKind::null: return true;
    case JsonKind::boolean: return a.boolean() == b.boolean();
    case JsonKind::string: return a.string() == b.string();
    case JsonKind::integer: {
      using Limits = std::numeric_limits<std::int64_t>;
      return is_integer(b, a.integer(Limits::min(), Limits::max()));
    }
    case JsonKind::array: {
      JsonArray const of_a = a.array();
      JsonArray const of_b = b.array();
      if (of_a.size() != of_b.size()) return false;
      auto other = of_b.begin();
      for (JsonValue const each : of_a) {
        if (!is_same(each, *other)) return false;
        ++other;
      }
      return true;
    }
    case JsonKind::object: {
      JsonObject of_b = b.object();
      bool same = a.object().size() == of_b.size();
      a.object().for_each([&](std::string_view name, JsonValue const& value) {
        auto const other = same ? of_b.find(name) : std::nullopt;
        same = other && is_same(value, *other);
      });
      return same;
    }
    default: return false;
  }
}

/// Reads the language model of a document, which itself or objects in it describe.
class ConfigDocuments {
 public:
  explicit ConfigDocuments(bool needs_channels) : needs_channels_(needs_channels) {}

  /// @param type  the model type of the object around it. @throws FormatError as `ConfigReader`, or if several objects
  ///              describe the language model, and not the same layers
  [[nodiscard]] std::vector<LayerShape> read(JsonObject const& object, std::string_view type, int depth = 0) const {
    ConfigFields fields = fields_of(object, type);
    std::vector<ConfigField> parts;
    for (std::string_view const name : nested_names) {
      auto const part = depth < max_depth ? fields.json().find(name) : std::nullopt;
      if (part) parts.push_back({name, *part});
    }
    bool const own = describes(fields);
    std::vector<LayerShape> layers;
    if (own || parts.empty()) layers = ConfigReader(fields, needs_channels_).read();
    if (!own && !parts.empty()) refuse_unknown_fields(fields);
    for (ConfigField const& part : parts) {
      if (says_nothing(part.value) && (own || parts.size() > 1)) continue;
      ConfigFields inner = fields_of(part.value.object(), fields.model_type());
      if (own && !describes(inner) && !holds_parts(inner)) {
        refuse_unknown_fields(inner);
        require_same(inner, fields);
        continue;
      }
      std::vector<LayerShape> const read_again = read(part.value.object(), fields.model_type(), depth + 1);
      if (!own) require_same(fields, inner);
      if (layers.empty()) layers = read_again;
      if (layers != read_again) part.value.fail(part.name, "the same layers as the others that the document describes");
    }
    return layers;
  }

 private:
  static constexpr int max_depth = 4;

  [[nodiscard]] static ConfigFields fields_of(JsonObject object, std::string_view otherwise) {
    auto const type = object.find("model_type");
    return {object, type && type->kind() == JsonKind::string ? type->string() : otherwise};
  }
  /// Whether an object has a language model's numbers of layers and of heads.
  [[nodiscard]] static bool describes(ConfigFields& fields) {
    bool const layers =
        fields.one_of(layer_count_names) || fields.find("layers_block_type") || fields.find("hybrid_override_pattern");
    return layers && fields.one_of(query_head_names);
  }
  [[nodiscard]] static bool holds_parts(ConfigFields& fields) {
    return std::any_of(nested_names.begin(), nested_names.end(),
                       [&](std::string_view name) { return fields.said(name).has_value(); });
  }
  /// @throws FormatError if a field of one object that is read here is another in the object that is read
  static void require_same(ConfigFields& of, ConfigFields& whole) {
    of.json().for_each([&](std::string_view name, JsonValue const& value) {
      if (!is_read(name) || says_nothing(value)) return;
      auto const other = whole.json().find(name);
      if (!other || !is_same(value, *other)) {
        value.fail(name, "the same in all objects of the document that describe the language model");
      }
    });
  }

  bool needs_channels_;
};

template <class = void>
[[nodiscard]] std::vector<LayerShape> parse_layers(std::string_view text, std::string source_name,
                                                   bool needs_channels) {
  JsonTree const tree(text, std::move(source_name), NonFinite::read);
  return ConfigDocuments(needs_channels).read(tree.root().object(), "");
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
