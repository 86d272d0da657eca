#pragma once

/// @file
/// Errors of KV heads from retention statistics, weighted and folded.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/plan/detail/text_sums.hpp>
#include <headaware/plan/error_measure.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/sensitivity.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Statistics of one kind of text. Several kinds, each with sensitivities of its own, plan together: natural
/// text with weight 1, and a probe (a passage followed by itself, which exercises retrieval) with 0.3 to 0.5.
struct WeightedStatistics {
  RetentionStatistics const* statistics = nullptr;  ///< borrowed
  Sensitivities sensitivities{};                    ///< empty: 1 everywhere
  double weight = 1;                                ///< ν
};

namespace detail {

/// Folds a query head's errors into those of its KV head.
/// @param places  in `sums`, of the cells of `folded`
inline void fold_head(GroupFold fold, std::span<double const> sums, double scale, std::span<std::size_t const> places,
                      std::span<double> folded) {
  if (fold == GroupFold::maximum) {
    for (std::size_t i = 0; i < places.size(); ++i) folded[i] = std::max(folded[i], sums[places[i]] * scale);
  } else {
    for (std::size_t i = 0; i < places.size(); ++i) folded[i] += sums[places[i]] * scale;
  }
}

/// Adds one text. @pre  shapes agree; the result's grid is part of the text's
inline void add_text(WeightedStatistics const& text, KvErrors& errors) {
  RetentionInfo const& info = text.statistics->info;
  std::vector<std::size_t> cells;
  for (std::int32_t const sink : errors.grid.sinks) {
    auto const s = std::lower_bound(info.grid.sinks.begin(), info.grid.sinks.end(), sink) - info.grid.sinks.begin();
    for (std::int32_t const window : errors.grid.windows) {
      auto const w =
          std::lower_bound(info.grid.windows.begin(), info.grid.windows.end(), window) - info.grid.windows.begin();
      cells.push_back(info.grid.cell(static_cast<std::size_t>(s), static_cast<std::size_t>(w)));
    }
  }
  std::vector<double> folded(cells.size());
  for (Readers const& readers : readers_of(info)) {
    std::fill(folded.begin(), folded.end(), 0.0);
    double dropped = 0;
    for (std::size_t member = readers.first; member < readers.end; ++member) {
      MeasuredSums const sums = measured(text.statistics->heads[member], errors.measure);
      double const scale = 1 / sums.rows;
      fold_head(errors.fold, *sums.cells, scale, cells, folded);
      double const lost = sums.dropped * scale;
      dropped = errors.fold == GroupFold::maximum ? std::max(dropped, lost) : dropped + lost;
    }
    double const factor = text.weight * text.sensitivities.at(readers.layer, readers.kv_head);
    double* const to = errors.cells.data() + readers.head * cells.size();
    for (std::size_t i = 0; i < cells.size(); ++i) to[i] += factor * folded[i];
    errors.dropped[readers.head] += factor * dropped;
  }
}

/// Adds one text's errors of rounding. @pre  shapes agree; it has all formats of the result
inline void add_rounding(WeightedStatistics const& text, KvErrors& errors) {
  RetentionInfo const& info = text.statistics->info;
  std::vector<std::size_t> places;
  for (std::string const& name : errors.formats) {
    places.push_back(
        static_cast<std::size_t>(std::find(info.formats.begin(), info.formats.end(), name) - info.formats.begin()));
  }
  for (Readers const& readers : readers_of(info)) {
    double const factor = text.weight * text.sensitivities.at(readers.layer, readers.kv_head);
    for (std::size_t i = 0; i < places.size(); ++i) {
      double keys = 0;
      double values = 0;
      for (std::size_t member = readers.first; member < readers.end; ++member) {
        MeasuredRounding const sums = measured_rounding(text.statistics->heads[member].rounding, errors.measure);
        double const key = (*sums.keys)[places[i]] / sums.rows;
        double const value = (*sums.values)[places[i]] / sums.rows;
        bool const maximum = errors.fold == GroupFold::maximum;
        keys = maximum ? std::max(keys, key) : keys + key;
        values = maximum ? std::max(values, value) : values + value;
      }
      errors.key_errors[readers.head * places.size() + i] += factor * keys;
      errors.value_errors[readers.head * places.size() + i] += factor * values;
    }
  }
}

/// Adds one text's errors of scored slots. @pre  shapes agree; it has the grid of the result
inline void add_scored(WeightedStatistics const& text, KvErrors& errors) {
  RetentionInfo const& info = text.statistics->info;
  std::vector<std::size_t> cells(errors.scored->size());
  std::iota(cells.begin(), cells.end(), std::size_t{0});
  std::vector<double> folded(cells.size());
  for (Readers const& readers : readers_of(info)) {
    std::fill(folded.begin(), folded.end(), 0.0);
    for (std::size_t member = readers.first; member < readers.end; ++member) {
      MeasuredScored const sums = measured_scored(text.statistics->heads[member].scored, errors.measure);
      if (sums.rows == 0) continue;  // of a layer that slides
      fold_head(errors.fold, *sums.cells, 1 / sums.rows, cells, folded);
    }
    double const factor = text.weight * text.sensitivities.at(readers.layer, readers.kv_head);
    double* const to = errors.scored_cells.data() + readers.head * cells.size();
    for (std::size_t i = 0; i < cells.size(); ++i) to[i] += factor * folded[i];
  }
}

/// Raises the heads' shares of the output to those of one text.
inline void add_output_share(RetentionStatistics const& statistics, KvErrors& errors) {
  bool const metric = statistics.info.with_output_metric;
  std::vector<double> squares(errors.size());
  for (Readers const& readers : readers_of(statistics.info)) {
    for (std::size_t member = readers.first; member < readers.end; ++member) {
      RetentionSums const& sums = statistics.heads[member];
      double const square = metric ? sums.output_metric_squared : sums.output_squared;
      squares[readers.head] +=
          square / static_cast<double>(std::max<std::int64_t>(metric ? sums.metric_rows : sums.value_rows, 1));
    }
  }
  HeadCounts const counts = kv_head_counts(errors);
  LayerHeads const heads = counts.view();
  for (std::int32_t layer = 0; layer < errors.num_layers; ++layer) {
    auto const begin = static_cast<std::size_t>(heads.first(layer));
    auto const end = static_cast<std::size_t>(heads.first(layer + 1));
    double sum = 0;
    for (std::size_t head = begin; head < end; ++head) sum += squares[head];
    double const mean = sum / static_cast<double>(end - begin);
    for (std::size_t head = begin; head < end; ++head) {
      double& share = errors.output_share[head];
      if (mean > 0) share = std::max(share, squares[head] / mean);
    }
  }
}

}  // namespace detail

/// @brief Returns the best measure that all statistics hold: after W_O, else of outputs, else mass.
/// @throws ArgumentError if there are no statistics
[[nodiscard]] inline ErrorMeasure best_measure(std::span<WeightedStatistics const> texts) {
  constexpr auto where = "best_measure";
  require(!texts.empty(), "statistics", "at least one", "none", where);
  bool values = true;
  bool metric = true;
  for (auto const& text : texts) {
    require(text.statistics != nullptr, "statistics", "a pointer", "nullptr", where);
    values = values && text.statistics->info.with_values;
    metric = metric && text.statistics->info.with_output_metric;
  }
  return metric ? ErrorMeasure::output_metric : values ? ErrorMeasure::output : ErrorMeasure::mass;
}

/// @brief E_g(s, w) = Σ_i weight_i · c_i(g) · fold over the query heads of g of their mean error, i over the texts,
/// on the (sink, window) pairs that all texts have. Of layers that read another's cache the errors are added to its KV
/// heads, with the factor of its layer. Errors of rounding likewise, in the formats that all texts have, in the order
/// of the first.
/// @param measure  of errors; nothing: `best_measure`
/// @throws ArgumentError if there are no statistics, they are of different models, have no pair in common or do not
///         hold the measure, a head has no rows (or none sampled of rounding or of scored slots), sensitivities are of
///         another shape, a weight is negative, or an error is not finite
/// @par Cost  O(texts · query heads · pairs)
[[nodiscard]] inline KvErrors weighted_errors(std::span<WeightedStatistics const> texts,
                                              std::optional<ErrorMeasure> measure = {},
                                              GroupFold fold = GroupFold::sum) {
  constexpr auto where = "weighted_errors";
  KvErrors errors;
  errors.measure = measure ? *measure : best_measure(texts);
  errors.fold = fold;
  require(!texts.empty(), "statistics", "at least one", "none", where);
  bool values = true;
  for (auto const& text : texts) {
    require(text.statistics != nullptr, "statistics", "a pointer", "nullptr", where);
    require(text.weight >= 0 && std::isfinite(text.weight), "weight", "a finite number >= 0", text.weight, where);
    detail::require_statistics(*text.statistics, errors.measure, where);
    RetentionInfo const& info = text.statistics->info;
    bool const first = &text == texts.data();
    if (first) {
      errors.num_layers = info.num_layers;
      errors.num_heads = info.num_heads;
      errors.num_kv_heads = info.num_kv_heads;
      errors.layers = info.layers;
      errors.grid = info.grid;
      errors.formats = detail::measured_formats(info, errors.measure);
      if (errors.measure != ErrorMeasure::mass) errors.scored = info.scored;
      errors.scores = info.scores;
    }
    if (errors.scored != info.scored || errors.scores != info.scores) errors.scored.reset();
    bool const alike = info.num_layers == errors.num_layers && info.num_heads == errors.num_heads &&
                       info.num_kv_heads == errors.num_kv_heads;
    require(alike, "model of the statistics", "the same shape", "another", where);
    if (errors.layers != info.layers)
      detail::require_same_shape(errors.shape(), info.shape(), false, "statistics", where);
    text.sensitivities.require_shape(info, where);
    errors.grid.sinks = detail::common(errors.grid.sinks, info.grid.sinks);
    errors.grid.windows = detail::common(errors.grid.windows, info.grid.windows);
    std::erase_if(errors.formats, [&](std::string const& name) {
      return std::find(info.formats.begin(), info.formats.end(), name) == info.formats.end();
    });
    values = values && info.with_values;
  }
  require(errors.grid.size() > 0, "(sink, window) pairs", "at least one that all statistics have", "none", where);
  errors.cells.resize(errors.size() * errors.grid.size());
  errors.dropped.resize(errors.size());
  errors.key_errors.resize(errors.size() * errors.formats.size());
  errors.value_errors.resize(errors.size() * errors.formats.size());
  if (values) errors.output_share.resize(errors.size());
  if (errors.scored) {
    errors.scored_cells.resize(errors.size() * errors.scored->size());
  } else {
    errors.scores.clear();
  }
  for (auto const& text : texts) {
    detail::add_text(text, errors);
    detail::add_rounding(text, errors);
    if (errors.scored) detail::add_scored(text, errors);
    if (values) detail::add_output_share(*text.statistics, errors);
  }
  for (auto const* list : {&errors.cells, &errors.key_errors, &errors.value_errors, &errors.scored_cells}) {
    for (double const error : *list) {
      require(error >= 0 && std::isfinite(error), "error of a KV head", "a finite number >= 0", error, where);
    }
  }
  return errors;
}

HEADAWARE_NAMESPACE_END
