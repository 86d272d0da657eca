#pragma once

/// @file
/// Reads `head_statistics.json`.

#include <headaware/config.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/detail/json_records.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/file.hpp>
#include <headaware/stats/head_statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Statistics from the text of a `head_statistics.json`:
/// `{model_info{num_layers, num_heads, sink_size, local_window, recent_ratio}, head_statistics[...]}`.
/// Records may stand in any order; keys that are not known are passed over.
/// @param source_name  names the text in messages, for example its path
/// @return heads by (layer, head), every one of num_layers x num_heads
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, a field is
///         missing or of another type, a head is missing, double or out of range, two heads have different
///         numbers of distances, or there are more than `max_heads` heads
/// @par Cost  O(text); 2.4 MB (1,024 heads, 64 distances) in some 5 ms
[[nodiscard]] inline ModelStatistics parse_statistics(std::string_view text, std::string source_name) {
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();

  ModelStatistics model;
  StatisticsInfo& info = model.model_info;
  JsonObject header = root.get("model_info", "an object").object();
  info.num_layers = header.get("num_layers", "an integer").integer(1, detail::max_index);
  info.num_heads = header.get("num_heads", "an integer").integer(1, detail::max_index);
  info.sink_size = header.get("sink_size", "an integer").integer(0, most);
  info.local_window = header.get("local_window", "an integer").integer(0, most);
  info.recent_ratio = detail::share(header.get("recent_ratio", "a number"));
  detail::require_head_count(header, info.num_layers, info.num_heads);

  JsonArray const records = root.get("head_statistics", "an array").array();
  std::vector<HeadStatistics> heads(records.size());
  std::size_t at = 0;
  std::size_t distances = 0;
  for (JsonValue const value : records) {
    JsonObject record = value.object();
    auto number = [&](char const* key) { return record.get(key, "a number").number(); };
    HeadStatistics& s = heads[at];
    s.layer_idx = record.get("layer_idx", "an integer").integer(0, detail::max_index - 1);
    s.head_idx = record.get("head_idx", "an integer").integer(0, detail::max_index - 1);
    s.mean_entropy = number("mean_entropy");
    s.std_entropy = number("std_entropy");
    s.max_attention_mean = number("max_attention_mean");
    JsonObject preference = record.get("position_preference", "an object").object();
    s.position_preference.sink = preference.get("sink", "a number").number();
    s.position_preference.recent = preference.get("recent", "a number").number();
    s.position_preference.local = preference.get("local", "a number").number();
    s.position_preference.global = preference.get("global", "a number").number();
    s.sink_ratio = number("sink_ratio");
    s.uniformity_score = number("uniformity_score");
    JsonArray const distribution = record.get("relative_position_dist", "an array").array();
    if (at == 0) distances = distribution.size();
    if (distribution.size() != distances) {
      distribution.fail("number of distances", std::to_string(distances) + " as for the first head",
                        std::to_string(distribution.size()));
    }
    s.relative_position_dist.reserve(distances);
    for (JsonValue const p : distribution) s.relative_position_dist.push_back(p.number());
    ++at;
  }
  model.heads = detail::in_order(std::move(heads), info.num_layers, info.num_heads, records);
  return model;
}

/// @brief `parse_statistics` of a file.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline ModelStatistics load_statistics(std::filesystem::path const& path) {
  return parse_statistics(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
