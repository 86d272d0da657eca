#pragma once

/// @file
/// Reads `attention_sums.json`: an observer's sums, from which an interrupted observation goes on.

#include <headaware/config.hpp>
#include <headaware/io/detail/json_records.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::string_view sums_format = "headaware.attention_sums";
inline constexpr std::int32_t sums_version = 1;

}  // namespace detail

/// @brief An observer as a file keeps it.
struct SavedObserver {
  AttentionObserver observer;
  std::int64_t position = 0;  ///< the caller's own: how far it had come
  std::string source;         ///< the caller's own: what it was observing
};

/// @brief An observer from the text of an `attention_sums.json`: `{format, version, source, position, model_info,
/// parameters, sums[heads][…]}`, each head's sums in the order of `SumsLayout`.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer
[[nodiscard]] inline SavedObserver parse_attention_sums(std::string_view text, std::string source_name) {
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();
  detail::require_format(root, detail::sums_format, detail::sums_version);

  JsonObject shape = root.get("model_info", "an object").object();
  ModelConfig model;
  model.num_hidden_layers = shape.get("num_layers", "an integer").integer(1, detail::max_index);
  model.num_attention_heads = shape.get("num_heads", "an integer").integer(1, detail::max_index);
  model.num_key_value_heads = shape.get("num_kv_heads", "an integer").integer(1, model.num_attention_heads);
  model.head_dim = shape.get("head_dim", "an integer").integer(0, most);
  detail::require_head_count(shape, model.num_hidden_layers, model.num_attention_heads);
  if (model.num_attention_heads % model.num_key_value_heads != 0) {
    shape.fail("num_kv_heads", "a divisor of " + std::to_string(model.num_attention_heads),
               std::to_string(model.num_key_value_heads));
  }

  JsonObject given = root.get("parameters", "an object").object();
  auto const count = [&](char const* key, std::int64_t low) {
    return given.get(key, "an integer").integer<std::int64_t>(low, detail::max_json_count);
  };
  ObserverParameters parameters;
  parameters.sink_size = given.get("sink_size", "an integer").integer(0, RetentionGrid::max_sinks);
  parameters.local_window = given.get("local_window", "an integer").integer(0, RetentionGrid::max_sinks);
  parameters.recent_ratio = detail::share(given.get("recent_ratio", "a number"));
  parameters.num_distances = given.get("num_distances", "an integer").integer(1, RetentionGrid::max_sinks);
  parameters.chunk_size = count("chunk_size", 0);
  parameters.min_chunk = count("min_chunk", 1);
  parameters.first_query = count("first_query", 0);
  parameters.query_stride = count("query_stride", 1);
  if (JsonValue const grid = given.get("retention", "an object or null"); !grid.is_null()) {
    parameters.retention = detail::parse_grid(grid.object());
  }

  // As many sums as there must be, before memory for them is asked for.
  JsonArray const heads = root.get("sums", "an array").array();
  auto const num_heads =
      static_cast<std::size_t>(model.num_hidden_layers) * static_cast<std::size_t>(model.num_attention_heads);
  if (heads.size() != num_heads) {
    heads.fail("number of heads", std::to_string(num_heads), std::to_string(heads.size()));
  }
  auto const size = static_cast<std::size_t>(SumsLayout(parameters).size());
  std::vector<double> sums;
  for (JsonValue const head : heads) {
    JsonArray const values = head.array();
    if (values.size() != size) values.fail("number of sums", std::to_string(size), std::to_string(values.size()));
    std::int64_t at = 0;
    for (JsonValue const value : values) {
      sums.push_back(SumsLayout::is_count(at)
                         ? static_cast<double>(value.integer<std::int64_t>(0, detail::max_json_count))
                         : value.number());
      ++at;
    }
  }
  SavedObserver result{AttentionObserver(model, parameters), 0, {}};
  result.source = root.get("source", "a string").string();
  result.position = root.get("position", "an integer").integer<std::int64_t>(0, detail::max_json_count);
  result.observer.add_sums(sums);
  return result;
}

/// @brief `parse_attention_sums` of a file.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline SavedObserver load_attention_sums(std::filesystem::path const& path) {
  return parse_attention_sums(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
