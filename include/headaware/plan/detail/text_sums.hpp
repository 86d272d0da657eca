#pragma once

// What planners read of one text's statistics: sums of query heads by a measure, and which query heads read which KV
// head.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/plan/error_measure.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Sums of a head for the measure: over grid cells, what is lost if nothing is kept, and rows.
struct MeasuredSums {
  std::vector<double> const* cells;
  double dropped;
  double rows;
};

[[nodiscard]] inline MeasuredSums measured(RetentionSums const& sums, ErrorMeasure measure) {
  auto const rows = static_cast<double>(sums.rows);
  switch (measure) {
    case ErrorMeasure::mass: return {&sums.mass, rows, rows};
    case ErrorMeasure::output: return {&sums.error_squared, sums.output_squared, static_cast<double>(sums.value_rows)};
    default: return {&sums.metric_error_squared, sums.output_metric_squared, static_cast<double>(sums.metric_rows)};
  }
}

/// The same of rounding: over formats, and rows sampled.
struct MeasuredRounding {
  std::vector<double> const* keys;
  std::vector<double> const* values;
  double rows;
};

/// @pre  measure is not mass
[[nodiscard]] inline MeasuredRounding measured_rounding(RoundingSums const& sums, ErrorMeasure measure) {
  if (measure == ErrorMeasure::output) {
    return {&sums.key_error_squared, &sums.value_error_squared, static_cast<double>(sums.rows)};
  }
  return {&sums.key_metric_error_squared, &sums.value_metric_error_squared, static_cast<double>(sums.metric_rows)};
}

/// The same of scored slots: over pairs of the grid, and rows sampled.
struct MeasuredScored {
  std::vector<double> const* cells;
  double rows;
};

/// @pre  measure is not mass
[[nodiscard]] inline MeasuredScored measured_scored(ScoredSums const& sums, ErrorMeasure measure) {
  if (measure == ErrorMeasure::output) return {&sums.error_squared, static_cast<double>(sums.rows)};
  return {&sums.metric_error_squared, static_cast<double>(sums.metric_rows)};
}

/// Names of formats whose errors the statistics hold in this measure.
[[nodiscard]] inline std::vector<std::string> measured_formats(RetentionInfo const& info, ErrorMeasure measure) {
  return measure == ErrorMeasure::mass ? std::vector<std::string>{} : info.formats;
}

/// The values that both lists have.
[[nodiscard]] inline std::vector<std::int32_t> common(std::vector<std::int32_t> const& a,
                                                      std::vector<std::int32_t> const& b) {
  std::vector<std::int32_t> result;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(result));
  return result;
}

/// @throws ArgumentError unless the statistics are whole and hold the measure
inline void require_statistics(RetentionStatistics const& statistics, ErrorMeasure measure, char const* where) {
  RetentionInfo const& info = statistics.info;
  info.grid.validate();
  require(info.num_layers > 0 && info.num_heads > 0, "heads of the statistics", "at least one", "none", where);
  bool const grouped =
      info.layers.num_layers() > 0 || (info.num_kv_heads > 0 && info.num_heads % info.num_kv_heads == 0);
  require(grouped, "num_kv_heads", {"a divisor of ", info.num_heads}, info.num_kv_heads, where);
  require_shape(info, where);
  HeadCounts const counts = query_head_counts(info);
  LayerHeads const query_heads = counts.view();
  auto const heads = static_cast<std::size_t>(query_heads.total());
  require(statistics.heads.size() == heads, "heads of the statistics", heads, statistics.heads.size(), where);
  require(measure != ErrorMeasure::output || info.with_values, "error measure", "statistics with values",
          "masses alone", where);
  require(measure != ErrorMeasure::output_metric || info.with_output_metric, "error measure",
          "statistics after the output projection", "others", where);
  for (std::size_t i = 0; i < heads; ++i) {
    MeasuredSums const sums = measured(statistics.heads[i], measure);
    auto const place = [&] {
      auto const head = static_cast<std::int64_t>(i);
      std::int32_t const layer = query_heads.layer_of(head, 1);
      return Text{where, ", layer ", layer, ", query head ", head - query_heads.first(layer)}.str();
    };
    require(sums.rows > 0, "rows observed", "> 0", sums.rows, place);
    require(sums.cells->size() == info.grid.size(), "sums", info.grid.size(), sums.cells->size(), place);
    if (measure == ErrorMeasure::mass) continue;
    if (info.scored) {
      MeasuredScored const scored = measured_scored(statistics.heads[i].scored, measure);
      require(scored.cells->size() == info.scored->size(), "sums of scored slots", info.scored->size(),
              scored.cells->size(), place);
      std::int32_t const layer = query_heads.layer_of(static_cast<std::int64_t>(i), 1);
      bool const slides = info.layers.num_layers() > 0 && info.layers.layer(layer).window != 0;
      require(slides || scored.rows > 0, "rows sampled of scored slots", "> 0", scored.rows, place);
    }
    if (info.formats.empty()) continue;
    MeasuredRounding const rounding = measured_rounding(statistics.heads[i].rounding, measure);
    require(rounding.rows > 0, "rows sampled of rounding", "> 0", rounding.rows, place);
    std::size_t const formats = std::min(rounding.keys->size(), rounding.values->size());
    require(formats == info.formats.size(), "sums of rounding", info.formats.size(), formats, place);
  }
}

/// Query heads of one layer that read one KV head.
struct Readers {
  std::int32_t layer;    ///< whose cache they read
  std::int32_t kv_head;  ///< of that layer
  std::size_t head;      ///< number of the KV head
  std::size_t first;     ///< number of the first of the query heads
  std::size_t end;
};

/// The query heads of a model, by the KV heads that they read, layer by layer.
[[nodiscard]] inline std::vector<Readers> readers_of(RetentionInfo const& info) {
  HeadCounts const kv_counts = kv_head_counts(info);
  HeadCounts const query_counts = query_head_counts(info);
  bool const alike = info.layers.num_layers() == 0;
  std::vector<Readers> result;
  result.reserve(static_cast<std::size_t>(kv_counts.view().total()));
  std::size_t query = 0;
  for (std::int32_t layer = 0; layer < info.num_layers; ++layer) {
    std::int32_t const heads = query_counts.view().count(layer);
    if (heads == 0) continue;
    std::int32_t const cache = alike ? layer : info.layers.cache_layer(layer);
    std::int32_t const num_kv_heads = kv_counts.view().count(cache);
    auto const group = static_cast<std::size_t>(heads / num_kv_heads);
    for (std::int32_t kv = 0; kv < num_kv_heads; ++kv, query += group) {
      result.push_back({cache, kv, static_cast<std::size_t>(kv_counts.view().first(cache) + kv), query, query + group});
    }
  }
  return result;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
