#pragma once

/// @file
/// Reads, checks and writes `retention_statistics.json`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/shape_fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::string_view retention_format = "headaware.retention_statistics";
inline constexpr std::int32_t retention_version = 1;

template <class Fields, class Grid>
void grid_fields(Fields&& f, Grid& grid) {
  f.ascending("sinks", grid.sinks, 0);
  f.ascending("windows", grid.windows, 1);
}

template <class Fields, class Grid>
void scored_grid_fields(Fields&& f, Grid& grid) {
  f.integer("sink", grid.sink, 0, ScoredGrid::max_tokens);
  f.ascending("windows", grid.windows, 1);
  f.ascending("slots", grid.slots, 1);
}

template <class Fields, class Info>
void retention_info_fields(Fields&& f, Info& info) {
  f.integer("first_query", info.first_query, 0, max_json_count);
  f.integer("query_stride", info.query_stride, 1, max_json_count);
  f.boolean("with_values", info.with_values);
  f.boolean("with_output_metric", info.with_output_metric);
}

/// Errors of formats of a head's sampled rows.
template <class Fields, class Sums>
void rounding_fields(Fields&& f, RetentionInfo const& info, Sums& sums) {
  std::size_t const formats = info.formats.size();
  f.integer("rows", sums.rows, 1, max_json_count);
  f.sums("key_error_squared", sums.key_error_squared, formats);
  f.sums("value_error_squared", sums.value_error_squared, formats);
  if (!info.with_output_metric) return;
  f.sums("key_metric_error_squared", sums.key_metric_error_squared, formats);
  f.sums("value_metric_error_squared", sums.value_metric_error_squared, formats);
}

/// Errors of scored slots of a head's sampled rows.
template <class Fields, class Sums>
void scored_fields(Fields&& f, RetentionInfo const& info, Sums& sums) {
  std::size_t const cells = info.scored->size();
  f.integer("rows", sums.rows, 0, max_json_count);
  f.sums("error_squared", sums.error_squared, cells);
  if (info.with_output_metric) f.sums("metric_error_squared", sums.metric_error_squared, cells);
}

/// The sums of a head.
template <class Fields, class Sums>
void retention_fields(Fields&& f, RetentionInfo const& info, Sums& sums) {
  std::size_t const cells = info.grid.size();
  f.integer("rows", sums.rows, 0, max_json_count);
  f.sums("mass", sums.mass, cells);
  f.sums("mass_squared", sums.mass_squared, cells);
  if (info.with_values) {
    f.not_negative("output_squared", sums.output_squared);
    f.sums("error_squared", sums.error_squared, cells);
  }
  if (info.with_output_metric) {
    f.not_negative("output_metric_squared", sums.output_metric_squared);
    f.sums("metric_error_squared", sums.metric_error_squared, cells);
  }
  if (!info.formats.empty()) {
    f.object("rounding", [&](auto&& fields) { rounding_fields(fields, info, sums.rounding); });
  }
  if (info.scored) f.object("scored", [&](auto&& fields) { scored_fields(fields, info, sums.scored); });
}

/// The place of the first name that is empty or there before; names.size(): none.
[[nodiscard]] inline std::size_t bad_format_name(std::vector<std::string> const& names) {
  for (auto name = names.begin(); name != names.end(); ++name) {
    if (name->empty() || std::find(names.begin(), name, *name) != name)
      return static_cast<std::size_t>(name - names.begin());
  }
  return names.size();
}

/// Names of formats, if an object has them. @param check  called with each
template <class Check>
[[nodiscard]] std::vector<std::string> read_formats(JsonObject& object, Check const& check) {
  std::vector<std::string> names;
  auto const found = object.find("formats");
  if (!found) return names;
  for (JsonValue const value : found->array()) {
    check(value);
    names.emplace_back(value.string());
    if (bad_format_name(names) < names.size()) value.fail("name of a format", "a name that is not empty, each once");
  }
  return names;
}

[[nodiscard]] inline RetentionGrid read_grid(JsonObject grid) {
  RetentionGrid result;
  grid_fields(FieldReader(grid), result);
  if (result.sinks.back() > RetentionGrid::max_sinks) {
    grid.fail("sinks", {"at most ", RetentionGrid::max_sinks}, result.sinks.back());
  }
  if (result.size() > RetentionGrid::max_cells) {
    grid.fail("sinks times windows", {"at most ", RetentionGrid::max_cells}, result.size());
  }
  return result;
}

/// The grid of scored slots and the scores that it is of, if an object has them.
template <class = void>
void read_scored(JsonObject& root, RetentionInfo& info) {
  auto const found = root.find("scored");
  if (!found) return;
  JsonObject object = found->object();
  ScoredGrid grid;
  scored_grid_fields(FieldReader(object), grid);
  if (std::int32_t const most = std::max(grid.windows.back(), grid.slots.back()); most > ScoredGrid::max_tokens) {
    object.fail("windows and slots", {"at most ", ScoredGrid::max_tokens}, most);
  }
  if (grid.size() > ScoredGrid::max_cells) {
    object.fail("windows times slots", {"at most ", ScoredGrid::max_cells}, grid.size());
  }
  info.scores = object.get("scores", "text").string();
  if (info.scores.empty()) object.fail("scores", "their weights' hash", "none");
  info.scored = std::move(grid);
}

}  // namespace detail

/// @brief Reads retention statistics from the text of a `retention_statistics.json`: `{format, version,
/// model_info{num_layers, num_heads, num_kv_heads, layers[…] or nothing}, first_query, query_stride, with_values,
/// with_output_metric, formats[…] or nothing, grid{sinks, windows}, scored{sink, windows, slots, scores} or nothing,
/// heads[{layer_idx, head_idx, rows, mass, mass_squared, output_squared, error_squared, output_metric_squared,
/// metric_error_squared, rounding{rows, key_error_squared, value_error_squared, key_metric_error_squared,
/// value_metric_error_squared}, scored{rows, error_squared, metric_error_squared}}]}`; each array of a head is [sinks,
/// windows], sink by sink. Without values the fields of a head from `output_squared` on are missing, without a metric
/// those named so. `formats` names formats of rows, and `rounding` has an entry for each in its arrays, of `rows`
/// sampled rows: one is not there without the other. Likewise `scored`, whose arrays are [windows, slots], window by
/// window.
/// @param source_name  names the text in messages, for example its path
/// @return heads by (layer, head)
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, of another format or
///         version, a field is missing, of another type or negative, or a head is missing, duplicate or out of range
/// @par Cost  O(text)
[[nodiscard]] inline RetentionStatistics parse_retention_statistics(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();
  detail::read_format(root, detail::retention_format, detail::retention_version);

  RetentionStatistics result;
  RetentionInfo& info = result.info;
  detail::read_shape(root.get("model_info", "an object").object(), info);
  detail::retention_info_fields(detail::FieldReader(root), info);
  info.formats = detail::read_formats(root, [](JsonValue const&) {});
  info.grid = detail::read_grid(root.get("grid", "an object").object());
  detail::read_scored(root, info);

  struct Record : RetentionSums {
    using RetentionSums::RetentionSums;
    std::int32_t layer_idx = 0;
    std::int32_t head_idx = 0;
  };
  std::vector<Record> records;
  JsonArray const array = root.get("heads", "an array").array();
  for (JsonValue const value : array) {
    detail::FieldReader fields(value.object());
    Record record(info.grid, info.formats.size());
    if (info.scored) record.scored = ScoredSums(*info.scored);
    detail::head_fields(fields, record);
    detail::retention_fields(fields, info, record);
    if (info.with_values) record.value_rows = record.rows;
    if (info.with_output_metric) {
      record.metric_rows = record.rows;
      record.rounding.metric_rows = record.rounding.rows;
      record.scored.metric_rows = record.scored.rows;
    }
    records.push_back(std::move(record));
  }
  records = detail::in_order(std::move(records), detail::query_head_counts(info).view(), array);
  for (Record& record : records) result.heads.push_back(std::move(record));
  return result;
}

/// @brief Checks that a file can hold retention statistics: `format_retention_statistics` does.
/// @throws ArgumentError if heads are missing or a sum is negative, NaN or infinite
inline void validate_retention_statistics(RetentionStatistics const& retention,
                                          Text const& where = "RetentionStatistics") {
  RetentionInfo const& info = retention.info;
  detail::FieldChecker const fields(where);
  detail::check_shape(info, where);
  detail::retention_info_fields(fields, info);
  info.grid.validate();
  std::size_t const bad = detail::bad_format_name(info.formats);
  require(bad == info.formats.size(), "formats", "names, each once", {"another at ", bad}, where);
  if (info.scored) {
    info.scored->validate(where);
    require(!info.scores.empty(), "scores of scored slots", "their weights' hash", "none", where);
  }
  std::int64_t const heads = detail::query_head_counts(info).view().total();
  require(static_cast<std::int64_t>(retention.heads.size()) == heads, "number of heads", heads, retention.heads.size(),
          where);
  for (RetentionSums const& sums : retention.heads) {
    detail::retention_fields(fields, info, sums);
    require(sums.rounding.formats() == info.formats.size(), "formats of a head", info.formats.size(),
            sums.rounding.formats(), where);
  }
}

/// @brief Returns the text of a `retention_statistics.json`; `parse_retention_statistics` reads the same values back.
/// @throws ArgumentError as `validate_retention_statistics`
[[nodiscard]] inline std::string format_retention_statistics(RetentionStatistics const& retention) {
  validate_retention_statistics(retention, "format_retention_statistics");
  RetentionInfo const& info = retention.info;
  JsonWriter json;
  detail::FieldWriter const fields(json);
  json.object([&] {
    detail::write_format(json, detail::retention_format, detail::retention_version);
    json.field("model_info", [&] { detail::write_shape(json, info); });
    detail::retention_info_fields(fields, info);
    if (!info.formats.empty()) json.field("formats", info.formats);
    json.field("grid", [&] { detail::grid_fields(fields, info.grid); });
    if (info.scored) {
      json.field("scored", [&] {
        detail::scored_grid_fields(fields, *info.scored);
        json.field("scores", info.scores);
      });
    }
    json.key("heads");
    json.array([&] {
      detail::HeadCounts const counts = detail::query_head_counts(info);
      for (std::size_t i = 0; i < retention.heads.size(); ++i) {
        auto const head = static_cast<std::int64_t>(i);
        std::int32_t const layer = counts.view().layer_of(head, 1);
        json.object([&] {
          json.field("layer_idx", layer);
          json.field("head_idx", head - counts.view().first(layer));
          detail::retention_fields(fields, info, retention.heads[i]);
        });
      }
    });
  });
  return json.text();
}

/// @brief Reads a file by `parse_retention_statistics`.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline RetentionStatistics load_retention_statistics(FilePath const& path) {
  return parse_retention_statistics(read_text_file(path), path.string());
}

/// @brief Writes `format_retention_statistics`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_retention_statistics(FilePath const& path, RetentionStatistics const& retention) {
  write_file(path, format_retention_statistics(retention));
}

HEADAWARE_NAMESPACE_END
