#pragma once

/// @file
/// Writes `retention_statistics.json` and `attention_sums.json`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/attention_sums.hpp>
#include <headaware/io/detail/json_text.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/retention.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

[[nodiscard]] inline nlohmann::ordered_json to_json(RetentionGrid const& grid) {
  return {{"sinks", grid.sinks}, {"windows", grid.windows}};
}

inline void require_finite(std::vector<double> const& sums, std::size_t count, char const* what, char const* where) {
  require(sums.size() == count, what, {count, " sums"}, sums.size(), where);
  bool const finite = std::all_of(sums.begin(), sums.end(), [](double x) { return std::isfinite(x) && x >= 0; });
  require(finite, what, "finite sums >= 0", "others", where);
}

}  // namespace detail

/// @brief The text of a `retention_statistics.json`; `parse_retention_statistics` reads the same values back.
/// @throws ArgumentError if heads are missing or a sum is negative, NaN or infinite
[[nodiscard]] inline std::string format_retention_statistics(RetentionStatistics const& retention) {
  constexpr auto where = "format_retention_statistics";
  RetentionInfo const& info = retention.info;
  info.grid.validate();
  auto const heads = static_cast<std::size_t>(info.num_layers) * static_cast<std::size_t>(info.num_heads);
  require(heads > 0 && retention.heads.size() == heads, "number of heads", heads, retention.heads.size(), where);
  nlohmann::ordered_json document;
  document["format"] = detail::retention_format;
  document["version"] = detail::retention_version;
  document["model_info"] = {
      {"num_layers", info.num_layers}, {"num_heads", info.num_heads}, {"num_kv_heads", info.num_kv_heads}};
  document["first_query"] = info.first_query;
  document["query_stride"] = info.query_stride;
  document["with_values"] = info.with_values;
  document["with_output_metric"] = info.with_output_metric;
  document["grid"] = detail::to_json(info.grid);
  auto& array = document["heads"] = nlohmann::ordered_json::array();
  std::size_t const cells = info.grid.size();
  for (std::size_t i = 0; i < heads; ++i) {
    RetentionSums const& sums = retention.heads[i];
    detail::require_finite(sums.mass, cells, "mass", where);
    detail::require_finite(sums.mass_squared, cells, "mass_squared", where);
    nlohmann::ordered_json head = {{"layer_idx", i / static_cast<std::size_t>(info.num_heads)},
                                   {"head_idx", i % static_cast<std::size_t>(info.num_heads)},
                                   {"rows", sums.rows},
                                   {"mass", sums.mass},
                                   {"mass_squared", sums.mass_squared}};
    if (info.with_values) {
      detail::require_finite(sums.error_squared, cells, "error_squared", where);
      detail::require_finite({sums.output_squared}, 1, "output_squared", where);
      head["output_squared"] = sums.output_squared;
      head["error_squared"] = sums.error_squared;
    }
    if (info.with_output_metric) {
      detail::require_finite(sums.metric_error_squared, cells, "metric_error_squared", where);
      detail::require_finite({sums.output_metric_squared}, 1, "output_metric_squared", where);
      head["output_metric_squared"] = sums.output_metric_squared;
      head["metric_error_squared"] = sums.metric_error_squared;
    }
    array.push_back(std::move(head));
  }
  return detail::json_text(document);
}

/// @brief Writes `format_retention_statistics`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_retention_statistics(std::filesystem::path const& path, RetentionStatistics const& retention) {
  write_file(path, format_retention_statistics(retention));
}

/// @brief The text of an `attention_sums.json`; `parse_attention_sums` reads the same sums back, bit for bit.
/// @param position, source  the caller's own, see `SavedObserver`; of `source` bytes that are not UTF-8 are not kept
[[nodiscard]] inline std::string format_attention_sums(AttentionObserver const& observer, std::int64_t position = 0,
                                                       std::string const& source = {}) {
  constexpr auto where = "format_attention_sums";
  require(position >= 0, "position", ">= 0", position, where);
  ModelConfig const& model = observer.model();
  ObserverParameters const& p = observer.parameters();
  nlohmann::ordered_json document;
  document["format"] = detail::sums_format;
  document["version"] = detail::sums_version;
  document["source"] = source;
  document["position"] = position;
  document["model_info"] = {{"num_layers", model.num_hidden_layers},
                            {"num_heads", model.num_attention_heads},
                            {"num_kv_heads", model.num_key_value_heads},
                            {"head_dim", model.head_dim}};
  document["parameters"] = {
      {"sink_size", p.sink_size},         {"local_window", p.local_window}, {"recent_ratio", p.recent_ratio},
      {"num_distances", p.num_distances}, {"chunk_size", p.chunk_size},     {"min_chunk", p.min_chunk},
      {"first_query", p.first_query},     {"query_stride", p.query_stride}, {"retention", nullptr}};
  if (p.retention) document["parameters"]["retention"] = detail::to_json(*p.retention);
  std::vector<double> const sums = observer.sums();
  auto const size = static_cast<std::size_t>(observer.sums_layout().size());
  auto& heads = document["sums"] = nlohmann::ordered_json::array();
  for (std::size_t first = 0; first < sums.size(); first += size) {
    auto head = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < size; ++i) {
      double const value = sums[first + i];
      require(std::isfinite(value), "sum", "a finite number", value, where);
      if (SumsLayout::is_count(static_cast<std::int64_t>(i))) {
        head.push_back(static_cast<std::int64_t>(value));
      } else {
        head.push_back(value);
      }
    }
    heads.push_back(std::move(head));
  }
  return detail::json_text(document);
}

/// @brief Writes `format_attention_sums`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_attention_sums(std::filesystem::path const& path, AttentionObserver const& observer,
                                std::int64_t position = 0, std::string const& source = {}) {
  write_file(path, format_attention_sums(observer, position, source));
}

HEADAWARE_NAMESPACE_END
