#pragma once

/// @file
/// Error of each KV head at each (sink, window) pair: retention statistics, weighted and folded onto KV heads.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/detail/text_sums.hpp>
#include <headaware/plan/detail/window_part.hpp>
#include <headaware/plan/error_measure.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/sensitivity.hpp>
#include <headaware/policy/sink_window_scored.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Statistics of one kind of text. Several kinds, each with sensitivities of its own, plan together: natural
/// text with weight 1, and a probe (a passage followed by itself, which exercises retrieval) with 0.3 to 0.5.
struct WeightedStatistics {
  RetentionStatistics const* statistics = nullptr;  ///< borrowed
  Sensitivities sensitivities{};                    ///< empty: 1 everywhere
  double weight = 1;                                ///< ν
};

/// @brief Errors of all KV heads on one grid; input of the planner. Heads are numbered layer by layer; layers without a
/// cache of their own have none.
struct KvErrors {
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;     ///< query heads per layer; where they differ, of the layer that has most
  std::int32_t num_kv_heads = 0;  ///< likewise
  ErrorMeasure measure = ErrorMeasure::output;
  GroupFold fold = GroupFold::sum;
  RetentionGrid grid{};
  std::vector<double> cells;    ///< [KV heads, grid]
  std::vector<double> dropped;  ///< [KV heads]: where nothing is kept, and the head's output is zero
  /// [KV heads]: mean ‖W_O o‖² (‖o‖² without W_O) of the head's query heads over the mean of its layer's KV heads; of
  /// several texts the largest. Empty where values were not observed.
  std::vector<double> output_share;
  ModelShape layers{};  ///< where they differ; empty: all alike
  /// Names of row formats whose errors all texts hold; none by mass. What has 16 bits has no error and no need of one.
  std::vector<std::string> formats{};
  std::vector<double> key_errors{};    ///< [KV heads, formats]: where all keys are rounded, and nothing is dropped
  std::vector<double> value_errors{};  ///< [KV heads, formats] the same of values
  /// Pairs of windows and scored slots, where all texts hold errors of the same, of the same scores; nothing: none.
  std::optional<ScoredGrid> scored{};
  std::vector<double> scored_cells{};  ///< [KV heads, scored]; of layers that slide 0, as they have no such slots
  std::string scores{};                ///< `RetentionInfo::scores` of these

  /// KV heads of all layers.
  [[nodiscard]] std::size_t size() const {
    if (layers.num_layers() > 0) return static_cast<std::size_t>(detail::kv_heads_of(layers).view().total());
    return static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_kv_heads);
  }
  /// Every layer's shape, also where all are alike. @throws ArgumentError if a count is not positive
  [[nodiscard]] ModelShape shape() const { return detail::shape_of(*this); }
  [[nodiscard]] std::span<double const> of(std::size_t head) const {
    return std::span(cells).subspan(head * grid.size(), grid.size());
  }

  /// The same on the grid of scored slots.
  [[nodiscard]] std::span<double const> scored_of(std::size_t head) const {
    return std::span(scored_cells).subspan(head * scored->size(), scored->size());
  }

  /// @brief Returns the errors of the named layers alone, in the order named. Layers that read another's cache have
  /// none.
  /// @throws ArgumentError if no layer is named or one is out of range
  [[nodiscard]] KvErrors select_layers(std::span<std::int32_t const> selected) const {
    constexpr auto where = "KvErrors::select_layers";
    require(!selected.empty(), "layers", "at least one", "none", where);
    KvErrors result = *this;
    detail::HeadCounts const counts = detail::kv_head_counts(*this);
    LayerHeads const heads = counts.view();
    auto const select = [&](std::vector<double> const& from, std::vector<double>& to, std::size_t each) {
      if (from.empty()) return;
      to.clear();
      for (std::int32_t const layer : selected) {
        require_index(layer, num_layers, "layer", where);
        auto const at = [&](std::int32_t l) {
          return from.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(heads.first(l)) * each);
        };
        to.insert(to.end(), at(layer), at(layer + 1));
      }
    };
    select(cells, result.cells, grid.size());
    select(dropped, result.dropped, 1);
    select(output_share, result.output_share, 1);
    select(key_errors, result.key_errors, formats.size());
    select(value_errors, result.value_errors, formats.size());
    select(scored_cells, result.scored_cells, scored ? scored->size() : 0);
    result.num_layers = static_cast<std::int32_t>(selected.size());
    if (layers.num_layers() == 0) return result;
    std::vector<LayerShape> shapes;
    for (std::int32_t const layer : selected) {
      LayerShape const& l = layers.layer(layer);
      shapes.push_back(l.has_cache() ? l : LayerShape{.kind = LayerKind::none});
    }
    detail::set_shape(result, ModelShape(std::move(shapes)));
    return result;
  }

  /// @brief The error of keeping `sink` and `window` of `context` tokens, also off the grid: linear in the logarithm
  /// of the window (from the largest one on down to 0 where all is kept), linear in the sink, constant below and
  /// beside the grid. Where the layer slides, sinks are as many tokens of window, and all is its window.
  /// @param head  number of the KV head, layer by layer
  [[nodiscard]] double at(std::size_t head, std::int64_t sink, std::int64_t window, std::int64_t context) const {
    if (layers.num_layers() > 0) {
      detail::HeadCounts const counts = detail::kv_heads_of(layers);
      LayerShape const& layer = layers.layer(counts.view().layer_of(static_cast<std::int64_t>(head), 1));
      if (layer.window != 0) {
        window += sink;
        sink = 0;
        context = layer.visible(context);
      }
    }
    if (sink + window >= context) return 0;
    auto const& sinks = grid.sinks;
    auto const above = static_cast<std::size_t>(std::lower_bound(sinks.begin(), sinks.end(), sink) - sinks.begin());
    if (above == sinks.size()) return in_row(head, above - 1, sink, window, context);
    double const right = in_row(head, above, sink, window, context);
    if (above == 0 || sinks[above] == sink) return right;
    double const left = in_row(head, above - 1, sink, window, context);
    double const part = static_cast<double>(sink - sinks[above - 1]) / (sinks[above] - sinks[above - 1]);
    return left + (right - left) * part;
  }

  /// @brief The error of a head that keeps tokens by scores: that of the largest pair of the grid that is no larger, or
  /// of its windows alone, whichever is less. Of layers that slide that of windows. @param head  number of the KV head,
  /// layer by layer
  [[nodiscard]] double scored_at(std::size_t head, SinkWindowScored const& policy, std::int64_t context) const {
    if (std::int64_t{policy.sink} + policy.window + policy.scored >= context) return 0;
    double const windows = at(head, policy.sink, policy.window, context);
    if (!scored || policy.sink < scored->sink || slides(head)) return windows;
    auto const places_below = [](std::vector<std::int32_t> const& values, std::int64_t value) {
      return static_cast<std::size_t>(std::upper_bound(values.begin(), values.end(), value) - values.begin());
    };
    std::size_t const window = places_below(scored->windows, policy.window);
    std::size_t const slots = places_below(scored->slots, policy.scored);
    if (window == 0 || slots == 0) return windows;
    return std::min(windows, scored_of(head)[scored->cell(window - 1, slots - 1)]);
  }

  /// @brief The place of a format in `formats`; -1: none, as 16 bits have no error.
  /// @throws ArgumentError naming the formats that there are, or on a scale other than 1: errors are of that
  [[nodiscard]] std::int32_t format_place(AnyFormat<> const& format, Text const& where) const {
    if (has_sixteen_bits(format)) return -1;
    auto const found = std::find(formats.begin(), formats.end(), format.name());
    auto const known = [&] {
      std::string names = "fp16, bf16";
      for (std::string const& name : formats) names += ", " + name;
      return names + (formats.empty() ? ", as the errors hold no others" : ", whose errors are known");
    };
    require(found != formats.end(), "format", {"one of ", known}, format.name(), where);
    require(format.scale() == 1, "scale of a format", "1, of which errors are known", format.scale(), where);
    return static_cast<std::int32_t>(found - formats.begin());
  }
  /// @brief The error of keys and values rounded, nothing dropped; where a layer holds a latent, of its keys.
  /// @param head  number of the KV head, layer by layer
  /// @throws ArgumentError naming the formats whose errors are known
  [[nodiscard]] double rounding_error(std::size_t head, HeadFormats const& of) const {
    constexpr auto where = "KvErrors::rounding_error";
    std::int32_t const value = holds_latent(head) ? -1 : format_place(of.value, where);
    return rounding_error(head, format_place(of.key, where), value);
  }
  /// The same by places, of `format_place`.
  [[nodiscard]] double rounding_error(std::size_t head, std::int32_t key, std::int32_t value) const {
    auto const at = [&](std::vector<double> const& errors, std::int32_t place) {
      return place < 0 ? 0 : errors[head * formats.size() + static_cast<std::size_t>(place)];
    };
    return at(key_errors, key) + at(value_errors, value);
  }

 private:
  [[nodiscard]] LayerShape const& layer_of(std::size_t head) const {
    detail::HeadCounts const counts = detail::kv_heads_of(layers);
    return layers.layer(counts.view().layer_of(static_cast<std::int64_t>(head), 1));
  }
  [[nodiscard]] bool slides(std::size_t head) const { return layers.num_layers() > 0 && layer_of(head).window != 0; }
  [[nodiscard]] bool holds_latent(std::size_t head) const {
    return layers.num_layers() > 0 && layer_of(head).kind == LayerKind::latent;
  }
  [[nodiscard]] double in_row(std::size_t head, std::size_t row, std::int64_t sink, std::int64_t window,
                              std::int64_t context) const {
    auto const& windows = grid.windows;
    double const* const errors = of(head).data() + row * windows.size();
    // Pairs that keep all are not looked up: `context` may be shorter than the texts.
    std::int64_t const whole = context - sink;
    std::size_t above = 0;
    while (above < windows.size() && windows[above] < window && windows[above] < whole) ++above;
    bool const known = above < windows.size() && windows[above] < whole;
    if (above == 0) return errors[0];
    if (known && windows[above] == window) return errors[above];
    double const far = known ? errors[above] : 0;
    double const part = detail::window_part(window, windows[above - 1], known ? windows[above] : whole);
    return errors[above - 1] + (far - errors[above - 1]) * part;
  }
};

namespace detail {

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
  bool const maximum = errors.fold == GroupFold::maximum;
  std::vector<double> folded(cells.size());
  for (Readers const& readers : readers_of(info)) {
    std::fill(folded.begin(), folded.end(), 0.0);
    double dropped = 0;
    for (std::size_t member = readers.first; member < readers.end; ++member) {
      MeasuredSums const sums = measured(text.statistics->heads[member], errors.measure);
      double const scale = 1 / sums.rows;
      double const* const values = sums.cells->data();
      if (maximum) {
        for (std::size_t i = 0; i < cells.size(); ++i) folded[i] = std::max(folded[i], values[cells[i]] * scale);
        dropped = std::max(dropped, sums.dropped * scale);
      } else {
        for (std::size_t i = 0; i < cells.size(); ++i) folded[i] += values[cells[i]] * scale;
        dropped += sums.dropped * scale;
      }
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
  std::size_t const cells = errors.scored->size();
  std::vector<double> folded(cells);
  for (Readers const& readers : readers_of(info)) {
    std::fill(folded.begin(), folded.end(), 0.0);
    for (std::size_t member = readers.first; member < readers.end; ++member) {
      MeasuredScored const sums = measured_scored(text.statistics->heads[member].scored, errors.measure);
      if (sums.rows == 0) continue;  // of a layer that slides
      for (std::size_t i = 0; i < cells; ++i) {
        double const error = (*sums.cells)[i] / sums.rows;
        folded[i] = errors.fold == GroupFold::maximum ? std::max(folded[i], error) : folded[i] + error;
      }
    }
    double const factor = text.weight * text.sensitivities.at(readers.layer, readers.kv_head);
    for (std::size_t i = 0; i < cells; ++i) errors.scored_cells[readers.head * cells + i] += factor * folded[i];
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
