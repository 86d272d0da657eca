#pragma once

/// @file
/// Reads and writes `attention_sums.json`: an observer's sums, from which an interrupted observation goes on.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/shape_fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::string_view sums_format = "headaware.attention_sums";
inline constexpr std::int32_t sums_version = 1;

/// Shape of an observed model: of one whose layers are all alike with its channels beside the counts.
struct ObservedShape {
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  ModelShape layers{};
  std::int32_t head_dim = 0;

  [[nodiscard]] ModelShape shape() const {
    if (layers.num_layers() > 0) return layers;
    return ModelConfig{num_layers, num_heads, num_kv_heads, head_dim};
  }
};

[[nodiscard]] inline ObservedShape read_observed_shape(JsonObject object) {
  ObservedShape record;
  read_shape(object, record);
  if (record.layers.num_layers() == 0 && !object.find("layers")) {
    FieldReader(object).integer("head_dim", record.head_dim, 0, max_int32);
  }
  return record;
}

inline void write_observed_shape(JsonWriter& json, ModelShape const& shape) {
  ObservedShape record;
  set_shape(record, shape);
  write_shape(json, record);
  if (shape.uniform()) json.field("head_dim", shape.layer(0).head_dim);
}

/// All parameters but the retention grid and formats.
template <class Fields, class Parameters>
void observer_fields(Fields&& f, Parameters& p) {
  f.integer("sink_size", p.sink_size, 0, RetentionGrid::max_sinks);
  f.integer("local_window", p.local_window, 0, RetentionGrid::max_sinks);
  f.share("recent_ratio", p.recent_ratio);
  f.integer("num_distances", p.num_distances, 1, RetentionGrid::max_sinks);
  f.integer("chunk_size", p.chunk_size, 0, max_json_count);
  f.integer("min_chunk", p.min_chunk, 1, max_json_count);
  f.integer("first_query", p.first_query, 0, max_json_count);
  f.integer("query_stride", p.query_stride, 1, max_json_count);
}

}  // namespace detail

/// @brief Contents of an `attention_sums.json`.
struct SavedObserver {
  AttentionObserver observer;
  std::int64_t position = 0;  ///< the caller's: progress of the observation
  std::string source;         ///< the caller's: name of what is observed
};

/// @brief Reads an observer from the text of an `attention_sums.json`: `{format, version, source, position,
/// model_info{num_layers, num_heads, num_kv_heads, head_dim or layers[…]}, parameters, sums[heads][…]}`, each head's
/// sums in the order of `SumsLayout`. Parameters without `formats` and `rounding_stride` observe no formats.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer
[[nodiscard]] inline SavedObserver parse_attention_sums(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();
  detail::read_format(root, detail::sums_format, detail::sums_version);

  detail::ObservedShape const model = detail::read_observed_shape(root.get("model_info", "an object").object());

  ObserverParameters parameters;
  detail::FieldReader given(root.get("parameters", "an object").object());
  detail::observer_fields(given, parameters);
  if (JsonValue const grid = given.json().get("retention", "an object or null"); !grid.is_null()) {
    parameters.retention = detail::read_grid(grid.object());
  }
  bool const has_formats = given.json().find("formats").has_value();  // older files have none
  parameters.formats = detail::read_formats(
      given.json(), [](JsonValue const& name) { (void)name.name_of<std::int32_t>(DefaultFormats::names, "format"); });
  if (has_formats) given.integer("rounding_stride", parameters.rounding_stride, 1, detail::max_json_count);

  // Check the number of heads before allocating their sums.
  JsonArray const heads = root.get("sums", "an array").array();
  auto const num_heads = static_cast<std::size_t>(detail::query_head_counts(model).view().total());
  if (heads.size() != num_heads) heads.fail("number of heads", num_heads, heads.size());
  SumsLayout const layout(parameters);
  auto const size = static_cast<std::size_t>(layout.size());
  std::vector<double> sums;
  for (JsonValue const head : heads) {
    JsonArray const values = head.array();
    if (values.size() != size) values.fail("number of sums", size, values.size());
    std::int64_t at = 0;
    for (JsonValue const value : values) {
      sums.push_back(layout.is_count(at) ? static_cast<double>(value.integer<std::int64_t>(0, detail::max_json_count))
                                         : value.number());
      ++at;
    }
  }
  SavedObserver result{AttentionObserver(model.shape(), parameters), 0, {}};
  result.source = root.get("source", "a string").string();
  result.position = root.get("position", "an integer").integer<std::int64_t>(0, detail::max_json_count);
  result.observer.add_sums(sums);
  return result;
}

/// @brief Returns the text of an `attention_sums.json`; `parse_attention_sums` reads the same sums back, bit for bit.
/// @param position, source  the caller's own, see `SavedObserver`; bytes of `source` that are not UTF-8 are not kept
/// @throws ArgumentError if the position is negative, or a sum is NaN or infinite
[[nodiscard]] inline std::string format_attention_sums(AttentionObserver const& observer, std::int64_t position = 0,
                                                       std::string_view source = {}) {
  constexpr auto where = "format_attention_sums";
  require(position >= 0, "position", ">= 0", position, where);
  ObserverParameters const& parameters = observer.parameters();
  std::vector<double> const sums = observer.sums();
  SumsLayout const layout = observer.sums_layout();
  auto const size = static_cast<std::size_t>(layout.size());
  for (double const value : sums) require(std::isfinite(value), "sum", "a finite number", value, where);
  JsonWriter json;
  detail::FieldWriter const fields(json);
  json.object([&] {
    detail::write_format(json, detail::sums_format, detail::sums_version);
    json.field("source", source);
    json.field("position", position);
    json.field("model_info", [&] { detail::write_observed_shape(json, observer.model()); });
    json.field("parameters", [&] {
      detail::observer_fields(fields, parameters);
      // Without formats a file is as before there were any.
      if (!parameters.formats.empty() || parameters.rounding_stride != ObserverParameters{}.rounding_stride) {
        json.field("formats", parameters.formats);
        json.field("rounding_stride", parameters.rounding_stride);
      }
      json.key("retention");
      if (!parameters.retention) return json.value(nullptr);
      json.object([&] { detail::grid_fields(fields, *parameters.retention); });
    });
    json.key("sums");
    json.array([&] {
      for (std::size_t first = 0; first < sums.size(); first += size) {
        json.array([&] {
          for (std::size_t i = 0; i < size; ++i) {
            double const value = sums[first + i];
            if (layout.is_count(static_cast<std::int64_t>(i))) {
              json.value(static_cast<std::int64_t>(value));
            } else {
              json.value(value);
            }
          }
        });
      }
    });
  });
  return json.text();
}

/// @brief Reads a file by `parse_attention_sums`.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline SavedObserver load_attention_sums(FilePath const& path) {
  return parse_attention_sums(read_text_file(path), path.string());
}

/// @brief Writes `format_attention_sums`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_attention_sums(FilePath const& path, AttentionObserver const& observer, std::int64_t position = 0,
                                std::string_view source = {}) {
  write_file(path, format_attention_sums(observer, position, source));
}

HEADAWARE_NAMESPACE_END
