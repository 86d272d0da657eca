#pragma once

/// @file
/// Accumulates the attention statistics of a model, layer by layer, text by text.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/stats/head_statistics.hpp>
#include <headaware/stats/observe.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/sums_layout.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Checks that what is observed is a layer of the model.
/// @param alike   whether the model is uniform
/// @param window  0: not said
/// @throws ArgumentError naming the layer and what is not its own
inline void check_layer_of(ModelShape const& model, bool alike, std::int32_t index, std::int32_t query_heads,
                           std::int32_t kv_heads, std::int64_t head_dim, std::int64_t value_dim, std::int64_t window,
                           char const* where) {
  LayerShape const& layer = model.layer(index);
  auto const place = [&] { return alike ? std::string(where) : Text{where, ", layer ", index}.str(); };
  require(layer.attends(), "layer", "one that attends", "one without attention", place);
  require(query_heads == layer.num_query_heads, "query heads", layer.num_query_heads, query_heads, place);
  require(kv_heads == layer.num_kv_heads, "KV heads", layer.num_kv_heads, kv_heads, place);
  if (alike) return;  // which may be all that is known of the model
  auto const known = [&](std::int64_t expected, std::int64_t got, char const* what) {
    require(expected == 0 || got == 0 || got == expected, what, expected, got, place);
  };
  known(layer.head_dim, head_dim, "head_dim");
  known(layer.value_dim, value_dim, "value_dim");
  require(window == 0 || window == layer.window, "window",
          layer.window == 0 ? Text("0: the layer sees all tokens") : Text{layer.window, ", or 0"}, window, place);
}

}  // namespace detail

/// @brief Accumulates statistics of a model's attention: call `observe` with every layer of every text.
///
/// Layers may differ: each is observed under the model's own number with its own query heads, one that reads another's
/// cache too; layers without attention have no heads. What a layer's window hides does not exist for its statistics.
///
/// Its size depends on the model and the parameters alone. Observers of the same model and parameters merge, in
/// any order and grouping: one per thread, process or GPU, reduced in the end. Not safe to share among threads;
/// `observe` itself uses all cores.
class AttentionObserver {
 public:
  /// @throws ArgumentError if the parameters make no sense
  explicit AttentionObserver(ModelShape model, ObserverParameters parameters = {})
      : model_(std::move(model)), counts_(detail::query_heads_of(model_)), parameters_(std::move(parameters)) {
    parameters_.validate();
    ObservedHead const empty{HeadSums(static_cast<std::size_t>(parameters_.num_distances)), parameters_.empty_sums()};
    heads_.assign(static_cast<std::size_t>(counts_.view().total()), empty);
  }
  /// All layers alike. @throws ArgumentError if the model's counts or the parameters make no sense
  explicit AttentionObserver(ModelConfig const& model, ObserverParameters parameters = {})
      : AttentionObserver(ModelShape(model), std::move(parameters)) {}

  AttentionObserver(AttentionObserver const&) = default;
  AttentionObserver& operator=(AttentionObserver const&) = default;
  /// A moved-from observer has a model without layers.
  AttentionObserver(AttentionObserver&& other) noexcept
      : model_(std::exchange(other.model_, {})),
        counts_(std::exchange(other.counts_, {})),
        parameters_(std::exchange(other.parameters_, {})),
        heads_(std::exchange(other.heads_, {})) {}
  AttentionObserver& operator=(AttentionObserver&& other) noexcept {
    AttentionObserver moved(std::move(other));
    std::swap(model_, moved.model_);
    std::swap(counts_, moved.counts_);
    std::swap(parameters_, moved.parameters_);
    std::swap(heads_, moved.heads_);
    return *this;
  }
  ~AttentionObserver() = default;

  [[nodiscard]] ModelShape const& model() const { return model_; }
  [[nodiscard]] ObserverParameters const& parameters() const { return parameters_; }

  /// @brief Adds one sequence of one layer. `chunk_size` cuts it into chunks, each a text of its own; chunks
  /// shorter than `min_chunk` are skipped.
  /// @param layer      of the model
  /// @param attention  `LayerQkv` or `LayerProbabilities` (the latter as one chunk), host pointers; its
  ///                   window may be 0, or that of the model's layer. A model whose layers are all alike says nothing
  ///                   of windows
  /// @param score      how the engine makes logits of queries and keys; by default with a scale of 1 / sqrt(head_dim)
  /// @throws ArgumentError on a layer or shapes that are not the model's; then nothing has been added
  template <class Attention, class Target = detail::Target>
  void observe(std::int32_t layer, Attention const& attention, AttentionScore const& score = {}) {
    constexpr auto where = "AttentionObserver::observe";
    std::int64_t const window = window_of(layer, attention, score, where);
    detail::check_layer(attention, where);
    std::int64_t const chunk = parameters_.chunk_size > 0 ? parameters_.chunk_size : attention.tokens;
    if constexpr (detail::has_probabilities<Attention>) {
      require(attention.tokens <= chunk, "tokens of ready probabilities", {"at most a chunk, ", chunk},
              attention.tokens, where);
    }
    for (std::int64_t first = 0; first < attention.tokens; first += chunk) {
      Attention part = attention;
      part.tokens = std::min(chunk, attention.tokens - first);
      part.window = window;
      if (part.tokens < parameters_.min_chunk) continue;
      if constexpr (!detail::has_probabilities<Attention>) part.first_token += first;
      add(layer, observe_chunk(part, score, parameters_));
    }
  }

  /// All sums of one query head. @throws ArgumentError if there is no such head
  [[nodiscard]] ObservedHead const& head(std::int32_t layer, std::int32_t head) const {
    require_index(layer, model_.num_layers(), "layer", "AttentionObserver::head");
    require_index(head, model_.layer(layer).num_query_heads, "query head", "AttentionObserver::head");
    return heads_[index(layer, head)];
  }

  /// The place of a layer's first query head among all, in `sums()` and in statistics.
  /// @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int64_t first_head(std::int32_t layer) const {
    require_index(layer, model_.num_layers(), "layer", "AttentionObserver::first_head");
    return counts_.view().first(layer);
  }

  /// Rows of all heads that were counted and not averaged: NaN, infinity, padding.
  [[nodiscard]] std::int64_t invalid_rows() const {
    std::int64_t rows = 0;
    for (ObservedHead const& head : heads_) rows += head.head.invalid_rows;
    return rows;
  }

  /// @brief Merges another observer into this one.
  /// @throws ArgumentError if it observes with other parameters, or another model: naming the first layer and field
  ///         that differ
  void merge(AttentionObserver const& other) {
    constexpr auto where = "AttentionObserver::merge";
    detail::require_same_shape(model_, other.model_, false, "the other model", where);
    require(parameters_ == other.parameters_, "parameters", "the same", "others", where);
    for (std::size_t i = 0; i < heads_.size(); ++i) heads_[i].merge(other.heads_[i]);
  }

  /// Layout of the sums of a head in `sums()`.
  [[nodiscard]] SumsLayout sums_layout() const { return SumsLayout(parameters_); }

  /// @brief All sums as plain doubles, [query heads of all layers, sums_layout().size()], layer by layer: to be added
  /// entry by entry (`MPI_Reduce`, `ncclAllReduce`) or kept.
  [[nodiscard]] std::vector<double> sums() const {
    SumsLayout const layout = sums_layout();
    auto const size = static_cast<std::size_t>(layout.size());
    std::vector<double> result(heads_.size() * size);
    for (std::size_t i = 0; i < heads_.size(); ++i) layout.store(heads_[i], std::span(result).subspan(i * size, size));
    return result;
  }

  /// @brief Adds sums of another process, or of a device, in the layout of `sums()`.
  /// @throws ArgumentError if there are more or fewer, or naming the head of one that is not finite; then nothing has
  ///         been added
  void add_sums(std::span<double const> sums) {
    SumsLayout const layout = sums_layout();
    auto const size = static_cast<std::size_t>(layout.size());
    require(sums.size() == heads_.size() * size, "sums", heads_.size() * size, sums.size(),
            "AttentionObserver::add_sums");
    for (std::size_t i = 0; i < sums.size(); ++i) {
      require(std::isfinite(sums[i]), "sum", "a finite number (are all values finite?)", sums[i], [&] {
        auto const head = static_cast<std::int64_t>(i / size);
        std::int32_t const layer = counts_.view().layer_of(head, 1);
        return Text{"AttentionObserver::add_sums, layer ", layer, ", head ", head - first_head(layer)}.str();
      });
    }
    for (std::size_t i = 0; i < heads_.size(); ++i) layout.add(sums.subspan(i * size, size), heads_[i]);
  }

  /// @brief Returns the statistics so far, as `head_statistics.json` holds them.
  /// @throws ArgumentError naming the first head of which no chunk was seen, or all of whose rows are invalid
  [[nodiscard]] ModelStatistics statistics() const {
    ModelStatistics result;
    detail::set_shape(result.model_info, model_);
    result.model_info.sink_size = parameters_.sink_size;
    result.model_info.local_window = parameters_.local_window;
    result.model_info.recent_ratio = parameters_.recent_ratio;
    for (std::int32_t layer = 0; layer < model_.num_layers(); ++layer) {
      for (std::int32_t h = 0; h < model_.layer(layer).num_query_heads; ++h) {
        result.heads.push_back(heads_[index(layer, h)].head.statistics(layer, h));
      }
    }
    return result;
  }

  /// @brief Returns the errors of keeping only sinks and a window, and of formats, as `retention_statistics.json` holds
  /// them. Without a row sampled in every head (ready probabilities, masses alone) there are no formats.
  /// @throws ArgumentError if no grid was asked for, or only some rows came with values or with output factors
  [[nodiscard]] RetentionStatistics retention_statistics() const {
    constexpr auto where = "AttentionObserver::retention_statistics";
    require(parameters_.retention.has_value(), "retention grid", "one in the parameters", "none", where);
    RetentionStatistics result;
    RetentionInfo& info = result.info;
    info.set_shape(model_);
    info.first_query = parameters_.first_query;
    info.query_stride = parameters_.query_stride;
    info.grid = *parameters_.retention;
    std::int64_t rows = 0;
    std::int64_t value_rows = 0;
    std::int64_t metric_rows = 0;
    bool rounded = !heads_.empty() && parameters_.num_formats() > 0;
    for (ObservedHead const& head : heads_) {
      rounded = rounded && head.retention.rounding.rows > 0;
      rows += head.retention.rows;
      value_rows += head.retention.value_rows;
      metric_rows += head.retention.metric_rows;
      result.heads.push_back(head.retention);
    }
    auto const all_or_none = [&](std::int64_t some, char const* what) {
      require(some == 0 || some == rows, what, {"none or all ", rows}, some, where);
      return some > 0;
    };
    info.with_values = all_or_none(value_rows, "rows with values");
    info.with_output_metric = all_or_none(metric_rows, "rows with output factors");
    if (rounded) info.formats = parameters_.formats;
    for (RetentionSums& head : result.heads) {
      if (!rounded) head.rounding = RoundingSums();
    }
    return result;
  }

 private:
  [[nodiscard]] std::size_t index(std::int32_t layer, std::int32_t head) const {
    return static_cast<std::size_t>(counts_.view().first(layer) + head);
  }

  /// Checks that a layer's attention is that of the model's. @return its window
  template <class Attention>
  [[nodiscard]] std::int64_t window_of(std::int32_t index, Attention const& attention, AttentionScore const& score,
                                       char const* where) const {
    require_index(index, model_.num_layers(), "layer", where);
    std::int64_t const window = detail::common_window(attention.window, score.sliding_window, where);
    detail::check_layer_of(model_, model_.uniform(), index, attention.num_query_heads, attention.num_kv_heads,
                           detail::head_dim(attention), attention.values != nullptr ? detail::value_dim(attention) : 0,
                           window, where);
    return window != 0 ? window : model_.layer(index).window;
  }

  void add(std::int32_t layer, std::vector<HeadChunk> const& chunks) {
    for (std::size_t h = 0; h < chunks.size(); ++h) {
      ObservedHead& head = heads_[index(layer, static_cast<std::int32_t>(h))];
      head.head.add(chunks[h].chunk);
      head.retention.merge(chunks[h].retention);
    }
  }

  ModelShape model_;
  detail::HeadCounts counts_;  ///< query heads
  ObserverParameters parameters_;
  std::vector<ObservedHead> heads_;  ///< query heads of all layers
};

HEADAWARE_NAMESPACE_END
