#pragma once

/// @file
/// Writes `head_statistics.json`, `head_classifications.json` and `refined_classifications.json`. With
/// the other save_*.hpp the only user of nlohmann/json.

#include <headaware/classify/classifier.hpp>
#include <headaware/classify/head_type.hpp>
#include <headaware/classify/summary.hpp>
#include <headaware/config.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/json_text.hpp>
#include <headaware/io/file.hpp>
#include <headaware/stats/head_statistics.hpp>

#include <nlohmann/json.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

using OrderedJson = nlohmann::ordered_json;

inline void require_savable_count(std::size_t heads, char const* where) {
  require(heads > 0 && heads <= static_cast<std::size_t>(max_heads), "number of heads", "in [1, 2^20]", heads, where);
}

/// Rejects what could be written but not read again. @throws ArgumentError
inline void require_savable(std::span<HeadClassification const> heads, char const* where) {
  require_savable_count(heads.size(), where);
  for (auto const& c : heads) {
    std::string const place =
        std::string(where) + ", layer " + std::to_string(c.layer_idx) + ", head " + std::to_string(c.head_idx);
    require(c.layer_idx >= 0 && c.layer_idx < max_heads, "layer_idx", "in [0, 2^20)", c.layer_idx, where);
    require(c.head_idx >= 0 && c.head_idx < max_heads, "head_idx", "in [0, 2^20)", c.head_idx, where);
    require(c.confidence >= 0 && c.confidence <= 1, "confidence", "in [0, 1]", c.confidence, place);
    require(c.recommended_window == -1 || c.recommended_window > 0, "recommended_window", "-1 or > 0",
            c.recommended_window, place);
    require(c.sink_size >= 0, "sink_size", ">= 0", c.sink_size, place);
  }
  GridShape const shape = grid_shape(heads);
  require_grid(heads, shape.layers, shape.heads, where);
}

[[nodiscard]] inline OrderedJson to_json(std::span<HeadClassification const> heads) {
  auto array = OrderedJson::array();
  for (auto const& c : heads) {
    array.push_back({{"layer_idx", c.layer_idx},
                     {"head_idx", c.head_idx},
                     {"head_type", to_string(c.head_type)},
                     {"confidence", c.confidence},
                     {"can_prune", c.can_prune},
                     {"can_limit_window", c.can_limit_window},
                     {"recommended_window", c.recommended_window},
                     {"keep_sinks", c.keep_sinks},
                     {"sink_size", c.sink_size},
                     {"use_full_cache", c.use_full_cache},
                     {"compression_strategy", to_string(c.compression_strategy)}});
  }
  return array;
}

[[nodiscard]] inline OrderedJson to_json(ClassificationSummary const& s) {
  auto counts = [](auto const& names, auto const& values) {
    auto object = OrderedJson::object();
    for (std::size_t i = 0; i < names.size(); ++i) object[std::string(names[i])] = values[i];
    return object;
  };
  auto percentages = [&](auto const& names, auto const& values) {
    auto object = OrderedJson::object();
    for (std::size_t i = 0; i < names.size(); ++i) object[std::string(names[i])] = s.percentage(values[i]);
    return object;
  };
  return {{"total_heads", s.total_heads},
          {"type_distribution", counts(head_type_names, s.type_counts)},
          {"type_percentages", percentages(head_type_names, s.type_counts)},
          {"prunable_heads", s.prunable_heads},
          {"prunable_percentage", s.percentage(s.prunable_heads)},
          {"limitable_heads", s.limitable_heads},
          {"limitable_percentage", s.percentage(s.limitable_heads)},
          {"compression_strategies", counts(compression_strategy_names, s.strategy_counts)},
          {"strategy_percentages", percentages(compression_strategy_names, s.strategy_counts)},
          {"sink_heads", s.sink_heads},
          {"sink_heads_percentage", s.percentage(s.sink_heads)}};
}

[[nodiscard]] inline OrderedJson to_json(HeadStatistics const& s) {
  auto const& p = s.position_preference;
  return {{"layer_idx", s.layer_idx},
          {"head_idx", s.head_idx},
          {"mean_entropy", s.mean_entropy},
          {"std_entropy", s.std_entropy},
          {"max_attention_mean", s.max_attention_mean},
          {"position_preference", {{"sink", p.sink}, {"recent", p.recent}, {"local", p.local}, {"global", p.global}}},
          {"sink_ratio", s.sink_ratio},
          {"uniformity_score", s.uniformity_score},
          {"relative_position_dist", s.relative_position_dist}};
}

}  // namespace detail

/// @brief The text of a `head_statistics.json`, indented by 2; `parse_statistics` reads the same values back.
/// @throws ArgumentError if a statistic is NaN or infinite, heads are missing or double, or their numbers of
///         distances differ
[[nodiscard]] inline std::string format_statistics(ModelStatistics const& model) {
  constexpr auto where = "format_statistics";
  StatisticsInfo const& info = model.model_info;
  detail::require_savable_count(model.heads.size(), where);
  require_grid(std::span(model.heads), info.num_layers, info.num_heads, where);
  require(info.sink_size >= 0, "sink_size", ">= 0", info.sink_size, where);
  require(info.local_window >= 0, "local_window", ">= 0", info.local_window, where);
  require(info.recent_ratio >= 0 && info.recent_ratio <= 1, "recent_ratio", "in [0, 1]", info.recent_ratio, where);
  detail::OrderedJson document;
  document["model_info"] = {{"num_layers", info.num_layers},
                            {"num_heads", info.num_heads},
                            {"sink_size", info.sink_size},
                            {"local_window", info.local_window},
                            {"recent_ratio", info.recent_ratio}};
  auto& array = document["head_statistics"] = detail::OrderedJson::array();
  std::size_t const distances = model.heads.front().relative_position_dist.size();
  for (auto const& head : model.heads) {
    detail::require_finite(head, where);
    require(head.relative_position_dist.size() == distances, "number of distances",
            {distances, " as for the first head"}, head.relative_position_dist.size(), where);
    array.push_back(detail::to_json(head));
  }
  return detail::json_text(document, 2);
}

/// @brief The text of a `head_classifications.json`, `summary` included, indented by 2.
/// @throws ArgumentError if a field is out of range, or heads are missing or double
[[nodiscard]] inline std::string format_classifications(std::span<HeadClassification const> classifications) {
  detail::require_savable(classifications, "format_classifications");
  detail::OrderedJson document;
  document["classifications"] = detail::to_json(classifications);
  document["summary"] = detail::to_json(summarize(classifications));
  return detail::json_text(document, 2);
}

/// @brief The text of a `refined_classifications.json`, indented by 2.
/// @throws ArgumentError as `format_classifications`
[[nodiscard]] inline std::string format_refined_classifications(std::span<HeadClassification const> classifications) {
  detail::require_savable(classifications, "format_refined_classifications");
  detail::OrderedJson document;
  document["classifications"] = detail::to_json(classifications);
  return detail::json_text(document, 2);
}

/// @brief Writes `format_statistics`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_statistics(std::filesystem::path const& path, ModelStatistics const& model) {
  write_file(path, format_statistics(model));
}

/// @brief Writes `format_classifications`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_classifications(std::filesystem::path const& path,
                                 std::span<HeadClassification const> classifications) {
  write_file(path, format_classifications(classifications));
}

/// @brief Writes `format_refined_classifications`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_refined_classifications(std::filesystem::path const& path,
                                         std::span<HeadClassification const> classifications) {
  write_file(path, format_refined_classifications(classifications));
}

HEADAWARE_NAMESPACE_END
