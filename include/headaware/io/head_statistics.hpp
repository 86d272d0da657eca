#pragma once

/// @file
/// Reads, checks and writes `head_statistics.json`.

#include <headaware/classify/classifier.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/shape_fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/stats/head_statistics.hpp>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

template <class Fields, class Info>
void statistics_info_fields(Fields&& f, Info& info) {
  f.integer("num_layers", info.num_layers, 1, max_index);
  f.integer("num_heads", info.num_heads, 1, max_index);
  f.integer("sink_size", info.sink_size, 0, max_int32);
  f.integer("local_window", info.local_window, 0, max_int32);
  f.share("recent_ratio", info.recent_ratio);
}

}  // namespace detail

/// @brief Reads statistics from the text of a `head_statistics.json`:
/// `{model_info{num_layers, num_heads, sink_size, local_window, recent_ratio, layers[…] or nothing},
/// head_statistics[...]}`.
/// Records may stand in any order; unknown keys are ignored.
/// @param source_name  names the text in messages, for example its path
/// @return heads by (layer, head): every query head of every layer that attends
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, a field is
///         missing or of another type, a head is missing, duplicate or out of range, two heads have different
///         numbers of distances, or there are more than `max_heads` heads
/// @par Cost  O(text); 2.4 MB (1,024 heads, 64 distances) in some 5 ms
[[nodiscard]] inline ModelStatistics parse_statistics(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();

  ModelStatistics model;
  StatisticsInfo& info = model.model_info;
  JsonObject header = root.get("model_info", "an object").object();
  detail::statistics_info_fields(detail::FieldReader(header), info);
  detail::require_head_count(header, info.num_layers, info.num_heads);
  detail::read_differing_layers(header, info);

  JsonArray const records = root.get("head_statistics", "an array").array();
  std::vector<HeadStatistics> heads;
  heads.reserve(records.size());
  for (JsonValue const value : records) {
    HeadStatistics& s = heads.emplace_back();
    detail::FieldReader record(value.object());
    detail::head_fields(record, s);
    detail::statistics_fields(record, s);
    std::size_t const distances = heads.front().relative_position_dist.size();
    if (s.relative_position_dist.size() != distances) {
      record.json()
          .get("relative_position_dist", "an array")
          .fail("number of distances", {distances, " as for the first head"}, s.relative_position_dist.size());
    }
  }
  model.heads = detail::in_order(std::move(heads), detail::query_head_counts(info).view(), records);
  return model;
}

/// @brief Checks that a file can hold statistics: `format_statistics` does.
/// @throws ArgumentError if a statistic is NaN or infinite, heads are missing or duplicate, or their numbers of
///         distances differ
inline void validate_statistics(ModelStatistics const& model, Text const& where = "ModelStatistics") {
  StatisticsInfo const& info = model.model_info;
  detail::require_head_count(static_cast<std::int64_t>(model.heads.size()), where);
  require_grid(std::span(model.heads), detail::query_head_counts(info).view(), where);
  detail::require_shape(info, where);
  detail::statistics_info_fields(detail::FieldChecker(where), info);
  std::size_t const distances = model.heads.front().relative_position_dist.size();
  for (HeadStatistics const& head : model.heads) {
    detail::require_finite(head, where);
    require(head.relative_position_dist.size() == distances, "number of distances",
            {distances, " as for the first head"}, head.relative_position_dist.size(), where);
  }
}

/// @brief Returns the text of a `head_statistics.json`, indented by 2; `parse_statistics` reads the same values back.
/// @throws ArgumentError as `validate_statistics`
[[nodiscard]] inline std::string format_statistics(ModelStatistics const& model) {
  validate_statistics(model, "format_statistics");
  JsonWriter json(2);
  detail::FieldWriter const fields(json);
  json.object([&] {
    json.field("model_info", [&] {
      detail::statistics_info_fields(fields, model.model_info);
      if (model.model_info.layers.num_layers() > 0) detail::write_layers(json, model.model_info.layers);
    });
    json.key("head_statistics");
    json.array([&] {
      for (HeadStatistics const& head : model.heads) {
        json.object([&] {
          detail::head_fields(fields, head);
          detail::statistics_fields(fields, head);
        });
      }
    });
  });
  return json.text();
}

/// @brief Reads a file by `parse_statistics`.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline ModelStatistics load_statistics(FilePath const& path) {
  return parse_statistics(read_text_file(path), path.string());
}

/// @brief Writes `format_statistics`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_statistics(FilePath const& path, ModelStatistics const& model) {
  write_file(path, format_statistics(model));
}

HEADAWARE_NAMESPACE_END
