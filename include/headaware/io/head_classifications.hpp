#pragma once

/// @file
/// Reads, checks and writes `head_classifications.json` and `refined_classifications.json`.

#include <headaware/classify/head_type.hpp>
#include <headaware/classify/summary.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/shape_fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

template <class Fields, class Classification>
void classification_fields(Fields&& f, Classification& c) {
  head_fields(f, c);
  f.name("head_type", c.head_type, head_type_names, "head type");
  f.share("confidence", c.confidence);
  f.boolean("can_prune", c.can_prune);
  f.boolean("can_limit_window", c.can_limit_window);
  f.window("recommended_window", c.recommended_window);
}
/// The fields that older files lack.
template <class Fields, class Classification>
void strategy_fields(Fields&& f, Classification& c) {
  f.boolean("keep_sinks", c.keep_sinks);
  f.integer("sink_size", c.sink_size, 0, max_int32);
  f.boolean("use_full_cache", c.use_full_cache);
  f.name("compression_strategy", c.compression_strategy, compression_strategy_names, "compression strategy");
}

/// Sets the fields that older files lack by the type.
template <class = void>
void derive_strategy(HeadClassification& c) {
  switch (c.head_type) {
    case HeadType::sink_positional:
    case HeadType::sink_mixed:
    case HeadType::positional: c.compression_strategy = CompressionStrategy::sink_window; break;
    case HeadType::true_positional: c.compression_strategy = CompressionStrategy::window_only; break;
    case HeadType::gathering: c.compression_strategy = CompressionStrategy::full; break;
    case HeadType::mixed: c.compression_strategy = CompressionStrategy::none; break;
    case HeadType::dead: c.compression_strategy = CompressionStrategy::prune; break;
  }
  c.keep_sinks = c.compression_strategy == CompressionStrategy::sink_window;
  c.use_full_cache =
      c.compression_strategy == CompressionStrategy::full || c.compression_strategy == CompressionStrategy::none;
}

template <class = void>
[[nodiscard]] HeadClassification read_classification(JsonObject const& record) {
  FieldReader fields(record);
  HeadClassification c;
  classification_fields(fields, c);
  JsonObject& json = fields.json();
  bool const older = !json.find("keep_sinks") && !json.find("sink_size") && !json.find("use_full_cache") &&
                     !json.find("compression_strategy");
  if (older) {
    derive_strategy(c);
  } else {
    strategy_fields(fields, c);
  }
  return c;
}

/// The shape of the model that classes are of, where its layers differ.
struct ClassifiedShape {
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  ModelShape layers{};
};

template <class = void>
void write_classifications(JsonWriter& json, std::span<HeadClassification const> heads, ModelShape const& model) {
  FieldWriter const fields(json);
  if (model.num_layers() > 0 && !model.uniform()) {
    ClassifiedShape shape;
    set_shape(shape, model);
    json.field("model_info", [&] { write_shape(json, shape); });
  }
  json.key("classifications");
  json.array([&] {
    for (HeadClassification const& c : heads) {
      json.object([&] {
        classification_fields(fields, c);
        strategy_fields(fields, c);
      });
    }
  });
}

template <class = void>
void write_summary(JsonWriter& json, ClassificationSummary const& s) {
  auto const by_name = [&](char const* key, auto const& names, auto const& value_of) {
    json.field(key, [&] {
      for (std::size_t i = 0; i < names.size(); ++i) json.field(names[i], value_of(i));
    });
  };
  json.field("total_heads", s.total_heads);
  by_name("type_distribution", head_type_names, [&](std::size_t i) { return s.type_counts[i]; });
  by_name("type_percentages", head_type_names, [&](std::size_t i) { return s.percentage(s.type_counts[i]); });
  json.field("prunable_heads", s.prunable_heads);
  json.field("prunable_percentage", s.percentage(s.prunable_heads));
  json.field("limitable_heads", s.limitable_heads);
  json.field("limitable_percentage", s.percentage(s.limitable_heads));
  by_name("compression_strategies", compression_strategy_names, [&](std::size_t i) { return s.strategy_counts[i]; });
  by_name("strategy_percentages", compression_strategy_names,
          [&](std::size_t i) { return s.percentage(s.strategy_counts[i]); });
  json.field("sink_heads", s.sink_heads);
  json.field("sink_heads_percentage", s.percentage(s.sink_heads));
}

/// @param shape  becomes that of the model where the document says how its layers differ
template <class = void>
[[nodiscard]] std::vector<HeadClassification> read_classifications(JsonValue const& root, ModelShape& shape) {
  bool const bare = root.kind() == JsonKind::array;
  if (!bare && root.kind() != JsonKind::object) root.fail("wrong type", "an object or an array");
  if (auto const format = bare ? std::nullopt : root.object().find("format")) {
    if (!root.object().find("classifications"))
      format->fail("another document", "classes of heads (\"classifications\")");
  }
  ClassifiedShape known;
  auto const info = bare ? std::nullopt : root.object().find("model_info");
  if (info && info->kind() == JsonKind::object && info->object().find("layers")) read_shape(info->object(), known);
  JsonArray const records =
      bare ? root.array() : root.object().get("classifications", "an array, the classes of heads").array();
  if (records.size() == 0) records.fail("no heads", "at least one head");

  std::vector<HeadClassification> heads;
  heads.reserve(records.size());
  for (JsonValue const record : records) heads.push_back(read_classification(record.object()));
  if (known.layers.num_layers() > 0) {
    shape = known.layers;
    return in_order(std::move(heads), query_heads_of(shape).view(), records);
  }
  GridShape const grid = grid_shape(std::span<HeadClassification const>(heads));
  require_head_count(records, grid.layers, grid.heads);
  return in_order(std::move(heads), LayerHeads{grid.layers, grid.heads}, records);
}

}  // namespace detail

/// @brief Reads classifications from the text of a `head_classifications.json` or `refined_classifications.json`:
/// `{classifications[...]}` or the bare array. Records may stand in any order and may have the legacy type
/// `positional`; what older ones lack (`keep_sinks`, `sink_size`, `use_full_cache`, `compression_strategy`,
/// all four) follows from their type. Unknown keys, `summary` among them, are ignored.
/// @param source_name  names the text in messages, for example its path
/// @return one entry per query head, by (layer, head); together every head of a model, where its layers differ of those
///         that attend (`model_info{num_layers, num_heads, num_kv_heads, layers[…]}` says so)
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, a field is
///         missing, of another type or out of range, a head is missing or duplicate, or there are none or more
///         than `max_heads` heads
/// @par Cost  O(text); 350 kB (1,024 heads) in some 1 ms
template <class = void>
[[nodiscard]] std::vector<HeadClassification> parse_classifications(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  ModelShape shape;
  return detail::read_classifications(tree.root(), shape);
}

/// @brief Checks that a file can hold classifications: `format_classifications` does.
/// @param model  that they are of, where its layers differ
/// @throws ArgumentError if a field is out of range, or heads are missing or duplicate
template <class = void>
void validate_classifications(std::span<HeadClassification const> heads, Text const& where = "classifications",
                              ModelShape const& model = {}) {
  detail::require_head_count(static_cast<std::int64_t>(heads.size()), where);
  for (HeadClassification const& c : heads) {
    auto const place = [&] { return Text{where, ", layer ", c.layer_idx, ", head ", c.head_idx}.str(); };
    detail::FieldChecker const fields(place);
    detail::classification_fields(fields, c);
    detail::strategy_fields(fields, c);
  }
  if (model.num_layers() > 0) return require_grid(heads, detail::query_heads_of(model).view(), where);
  GridShape const shape = grid_shape(heads);
  require_grid(heads, shape.layers, shape.heads, where);
}

/// @brief Returns the text of a `head_classifications.json`, `summary` included, indented by 2.
/// @param model  that they are of, which the file says where its layers differ
/// @throws ArgumentError as `validate_classifications`
template <class = void>
[[nodiscard]] std::string format_classifications(std::span<HeadClassification const> classifications,
                                                 ModelShape const& model = {}) {
  validate_classifications(classifications, "format_classifications", model);
  JsonWriter json(2);
  json.object([&] {
    detail::write_classifications(json, classifications, model);
    json.field("summary", [&] { detail::write_summary(json, summarize(classifications)); });
  });
  return json.text();
}

/// @brief Returns the text of a `refined_classifications.json`, indented by 2.
/// @throws ArgumentError as `validate_classifications`
template <class = void>
[[nodiscard]] std::string format_refined_classifications(std::span<HeadClassification const> classifications,
                                                         ModelShape const& model = {}) {
  validate_classifications(classifications, "format_refined_classifications", model);
  JsonWriter json(2);
  json.object([&] { detail::write_classifications(json, classifications, model); });
  return json.text();
}

/// @brief Reads a file by `parse_classifications`.
/// @throws FormatError as there, FileError if the file cannot be read
template <class = void>
[[nodiscard]] std::vector<HeadClassification> load_classifications(FilePath const& path) {
  return parse_classifications(read_text_file(path), path.string());
}

/// @brief Writes `format_classifications`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
template <class = void>
void save_classifications(FilePath const& path, std::span<HeadClassification const> classifications,
                          ModelShape const& model = {}) {
  write_file(path, format_classifications(classifications, model));
}

/// @brief Writes `format_refined_classifications`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
template <class = void>
void save_refined_classifications(FilePath const& path, std::span<HeadClassification const> classifications,
                                  ModelShape const& model = {}) {
  write_file(path, format_refined_classifications(classifications, model));
}

HEADAWARE_NAMESPACE_END
