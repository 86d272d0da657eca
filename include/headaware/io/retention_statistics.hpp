#pragma once

/// @file
/// Reads `retention_statistics.json`.

#include <headaware/config.hpp>
#include <headaware/io/detail/json_records.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/file.hpp>
#include <headaware/stats/retention.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::string_view retention_format = "headaware.retention_statistics";
inline constexpr std::int32_t retention_version = 1;

/// Counts are exact in double, in which processes add them up.
inline constexpr std::int64_t max_json_count = std::int64_t{1} << 53;

/// @throws FormatError unless the document says that it is of this format and version
inline void require_format(JsonObject& root, std::string_view format, std::int32_t version) {
  JsonValue const name = root.get("format", "a string");
  if (name.string() != format) name.fail("format", quoted(format), quoted(name.string()));
  JsonValue const number = root.get("version", "an integer");
  auto const found = number.integer<std::int32_t>(0, std::numeric_limits<std::int32_t>::max());
  if (found != version) number.fail("version", std::to_string(version), std::to_string(found));
}

/// Whole numbers that ascend strictly from `least` on.
[[nodiscard]] inline std::vector<std::int32_t> ascending(JsonArray const& array, std::int32_t least) {
  std::vector<std::int32_t> result;
  for (JsonValue const value : array) {
    std::int32_t const low = result.empty() ? least : result.back() + 1;
    result.push_back(value.integer<std::int32_t>(low, std::numeric_limits<std::int32_t>::max() - 1));
  }
  if (result.empty()) array.fail("empty list", "at least one number", "none");
  return result;
}

/// `count` numbers that are not negative.
[[nodiscard]] inline std::vector<double> sums_of(JsonArray const& array, std::size_t count) {
  if (array.size() != count) array.fail("number of sums", std::to_string(count), std::to_string(array.size()));
  std::vector<double> result;
  result.reserve(count);
  for (JsonValue const value : array) {
    result.push_back(value.number());
    if (!(result.back() >= 0)) value.fail("negative sum", ">= 0");
  }
  return result;
}

[[nodiscard]] inline RetentionGrid parse_grid(JsonObject grid) {
  RetentionGrid result;
  result.sinks = ascending(grid.get("sinks", "an array").array(), 0);
  if (result.sinks.back() > RetentionGrid::max_sinks) {
    grid.fail("sinks", "at most " + std::to_string(RetentionGrid::max_sinks), std::to_string(result.sinks.back()));
  }
  result.windows = ascending(grid.get("windows", "an array").array(), 1);
  if (result.size() > RetentionGrid::max_cells) {
    grid.fail("sinks times windows", "at most " + std::to_string(RetentionGrid::max_cells),
              std::to_string(result.size()));
  }
  return result;
}

}  // namespace detail

/// @brief Retention statistics from the text of a `retention_statistics.json`: `{format, version,
/// model_info{num_layers, num_heads, num_kv_heads}, first_query, query_stride, with_values, with_output_metric,
/// grid{sinks, windows}, heads[{layer_idx, head_idx, rows, mass, mass_squared, output_squared, error_squared,
/// output_metric_squared, metric_error_squared}]}`; each array is [sinks, windows], sink by sink. Without values
/// the four last fields of a head are missing, without a metric the two last.
/// @param source_name  names the text in messages, for example its path
/// @return heads by (layer, head)
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, of another format or
///         version, a field is missing, of another type or negative, or a head is missing, double or out of range
/// @par Cost  O(text)
[[nodiscard]] inline RetentionStatistics parse_retention_statistics(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();
  detail::require_format(root, detail::retention_format, detail::retention_version);

  RetentionStatistics result;
  RetentionInfo& info = result.info;
  JsonObject header = root.get("model_info", "an object").object();
  info.num_layers = header.get("num_layers", "an integer").integer(1, detail::max_index);
  info.num_heads = header.get("num_heads", "an integer").integer(1, detail::max_index);
  JsonValue const num_kv_heads = header.get("num_kv_heads", "an integer");
  info.num_kv_heads = num_kv_heads.integer(1, info.num_heads);
  if (info.num_heads % info.num_kv_heads != 0) {
    num_kv_heads.fail("num_kv_heads", "a divisor of " + std::to_string(info.num_heads),
                      std::to_string(info.num_kv_heads));
  }
  detail::require_head_count(header, info.num_layers, info.num_heads);
  info.first_query = root.get("first_query", "an integer").integer<std::int64_t>(0, detail::max_json_count);
  info.query_stride = root.get("query_stride", "an integer").integer<std::int64_t>(1, detail::max_json_count);
  info.with_values = root.get("with_values", "a boolean").boolean();
  info.with_output_metric = root.get("with_output_metric", "a boolean").boolean();
  info.grid = detail::parse_grid(root.get("grid", "an object").object());

  struct Record : RetentionSums {
    std::int32_t layer_idx = 0;
    std::int32_t head_idx = 0;
  };
  std::vector<Record> records;
  std::size_t const cells = info.grid.size();
  JsonArray const array = root.get("heads", "an array").array();
  for (JsonValue const value : array) {
    JsonObject fields = value.object();
    auto const sums = [&](char const* key) { return detail::sums_of(fields.get(key, "an array").array(), cells); };
    auto const sum = [&](char const* key) {
      JsonValue const number = fields.get(key, "a number");
      if (!(number.number() >= 0)) number.fail("negative sum", ">= 0");
      return number.number();
    };
    Record record;
    static_cast<RetentionSums&>(record) = RetentionSums(info.grid);
    record.layer_idx = fields.get("layer_idx", "an integer").integer(0, detail::max_index - 1);
    record.head_idx = fields.get("head_idx", "an integer").integer(0, detail::max_index - 1);
    record.rows = fields.get("rows", "an integer").integer<std::int64_t>(0, detail::max_json_count);
    record.mass = sums("mass");
    record.mass_squared = sums("mass_squared");
    if (info.with_values) {
      record.value_rows = record.rows;
      record.output_squared = sum("output_squared");
      record.error_squared = sums("error_squared");
    }
    if (info.with_output_metric) {
      record.metric_rows = record.rows;
      record.output_metric_squared = sum("output_metric_squared");
      record.metric_error_squared = sums("metric_error_squared");
    }
    records.push_back(std::move(record));
  }
  records = detail::in_order(std::move(records), info.num_layers, info.num_heads, array);
  for (Record& record : records) result.heads.push_back(std::move(record));
  return result;
}

/// @brief `parse_retention_statistics` of a file.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline RetentionStatistics load_retention_statistics(std::filesystem::path const& path) {
  return parse_retention_statistics(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
