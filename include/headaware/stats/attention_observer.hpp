#pragma once

/// @file
/// Accumulates the attention statistics of a model, layer by layer, text by text.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
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
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Accumulates statistics of a model's attention: call `observe` with every layer of every text.
///
/// Its size depends on the model and the parameters alone. Observers of the same model and parameters merge, in
/// any order and grouping: one per thread, process or GPU, reduced in the end. Not safe to share among threads;
/// `observe` itself uses all cores.
class AttentionObserver {
 public:
  /// @throws ArgumentError if the model's counts or the parameters make no sense
  explicit AttentionObserver(ModelConfig const& model, ObserverParameters parameters = {})
      : model_(model), parameters_(std::move(parameters)) {
    model_.validate();
    parameters_.validate();
    ObservedHead const empty{HeadSums(static_cast<std::size_t>(parameters_.num_distances)),
                             parameters_.retention ? RetentionSums(*parameters_.retention) : RetentionSums()};
    heads_.assign(
        static_cast<std::size_t>(model_.num_hidden_layers) * static_cast<std::size_t>(model_.num_attention_heads),
        empty);
  }

  AttentionObserver(AttentionObserver const&) = default;
  AttentionObserver& operator=(AttentionObserver const&) = default;
  /// A moved-from observer has a model without layers.
  AttentionObserver(AttentionObserver&& other) noexcept
      : model_(std::exchange(other.model_, {})),
        parameters_(std::exchange(other.parameters_, {})),
        heads_(std::exchange(other.heads_, {})) {}
  AttentionObserver& operator=(AttentionObserver&& other) noexcept {
    AttentionObserver moved(std::move(other));
    std::swap(model_, moved.model_);
    std::swap(parameters_, moved.parameters_);
    std::swap(heads_, moved.heads_);
    return *this;
  }
  ~AttentionObserver() = default;

  [[nodiscard]] ModelConfig const& model() const { return model_; }
  [[nodiscard]] ObserverParameters const& parameters() const { return parameters_; }

  /// @brief Adds one sequence of one layer. `chunk_size` cuts it into chunks, each a text of its own; chunks
  /// shorter than `min_chunk` are skipped.
  /// @param layer      of the model
  /// @param attention  `LayerQkv` or `LayerProbabilities` (the latter as one chunk), host pointers
  /// @param score      how the engine makes logits of queries and keys; by default with a scale of 1 / sqrt(head_dim)
  /// @throws ArgumentError on a layer or shapes that are not the model's; then nothing has been added
  template <class Attention, class Target = detail::Target>
  void observe(std::int32_t layer, Attention const& attention, AttentionScore const& score = {}) {
    constexpr auto where = "AttentionObserver::observe";
    require_index(layer, model_.num_hidden_layers, "layer", where);
    require(attention.num_query_heads == model_.num_attention_heads, "query heads", model_.num_attention_heads,
            attention.num_query_heads, where);
    require(attention.num_kv_heads == model_.num_key_value_heads, "KV heads", model_.num_key_value_heads,
            attention.num_kv_heads, where);
    detail::check_layer(attention, where);
    std::int64_t const chunk = parameters_.chunk_size > 0 ? parameters_.chunk_size : attention.tokens;
    if constexpr (detail::has_probabilities<Attention>) {
      require(attention.tokens <= chunk, "tokens of ready probabilities", {"at most a chunk, ", chunk},
              attention.tokens, where);
    }
    for (std::int64_t first = 0; first < attention.tokens; first += chunk) {
      Attention part = attention;
      part.tokens = std::min(chunk, attention.tokens - first);
      if (part.tokens < parameters_.min_chunk) continue;
      if constexpr (!detail::has_probabilities<Attention>) part.first_token += first;
      add(layer, observe_chunk(part, score, parameters_));
    }
  }

  /// All sums of one query head. @throws ArgumentError if there is no such head
  [[nodiscard]] ObservedHead const& head(std::int32_t layer, std::int32_t head) const {
    require_index(layer, model_.num_hidden_layers, "layer", "AttentionObserver::head");
    require_index(head, model_.num_attention_heads, "query head", "AttentionObserver::head");
    return heads_[index(layer, head)];
  }

  /// Rows of all heads that were counted and not averaged: NaN, infinity, padding.
  [[nodiscard]] std::int64_t invalid_rows() const {
    std::int64_t rows = 0;
    for (ObservedHead const& head : heads_) rows += head.head.invalid_rows;
    return rows;
  }

  /// @brief Merges another observer into this one.
  /// @throws ArgumentError if it observes another model or with other parameters
  void merge(AttentionObserver const& other) {
    constexpr auto where = "AttentionObserver::merge";
    require(model_ == other.model_, "model", "the same", "another", where);
    require(parameters_ == other.parameters_, "parameters", "the same", "others", where);
    for (std::size_t i = 0; i < heads_.size(); ++i) heads_[i].merge(other.heads_[i]);
  }

  /// Layout of the sums of a head in `sums()`.
  [[nodiscard]] SumsLayout sums_layout() const { return SumsLayout(parameters_); }

  /// @brief All sums as plain doubles, [num_hidden_layers, num_attention_heads, sums_layout().size()]: to be added
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
      std::size_t const head = i / size;
      auto const heads = static_cast<std::size_t>(model_.num_attention_heads);
      require(std::isfinite(sums[i]), "sum", "a finite number (are all values finite?)", sums[i],
              {"AttentionObserver::add_sums, layer ", head / heads, ", head ", head % heads});
    }
    for (std::size_t i = 0; i < heads_.size(); ++i) layout.add(sums.subspan(i * size, size), heads_[i]);
  }

  /// @brief Returns the statistics so far, as `head_statistics.json` holds them.
  /// @throws ArgumentError naming the first head of which no chunk was seen, or all of whose rows are invalid
  [[nodiscard]] ModelStatistics statistics() const {
    ModelStatistics result;
    result.model_info = {model_.num_hidden_layers, model_.num_attention_heads, parameters_.sink_size,
                         parameters_.local_window, parameters_.recent_ratio};
    for (std::int32_t layer = 0; layer < model_.num_hidden_layers; ++layer) {
      for (std::int32_t h = 0; h < model_.num_attention_heads; ++h) {
        result.heads.push_back(heads_[index(layer, h)].head.statistics(layer, h));
      }
    }
    return result;
  }

  /// @brief Returns the errors of keeping only sinks and a window, as `retention_statistics.json` holds it.
  /// @throws ArgumentError if no grid was asked for, or only some rows came with values or with output factors
  [[nodiscard]] RetentionStatistics retention_statistics() const {
    constexpr auto where = "AttentionObserver::retention_statistics";
    require(parameters_.retention.has_value(), "retention grid", "one in the parameters", "none", where);
    RetentionStatistics result;
    RetentionInfo& info = result.info;
    info = {model_.num_hidden_layers,
            model_.num_attention_heads,
            model_.num_key_value_heads,
            parameters_.first_query,
            parameters_.query_stride,
            true,
            true,
            *parameters_.retention};
    std::int64_t rows = 0;
    std::int64_t value_rows = 0;
    std::int64_t metric_rows = 0;
    for (ObservedHead const& head : heads_) {
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
    return result;
  }

 private:
  [[nodiscard]] std::size_t index(std::int32_t layer, std::int32_t head) const {
    return static_cast<std::size_t>(layer) * static_cast<std::size_t>(model_.num_attention_heads) +
           static_cast<std::size_t>(head);
  }

  void add(std::int32_t layer, std::vector<HeadChunk> const& chunks) {
    for (std::size_t h = 0; h < chunks.size(); ++h) {
      ObservedHead& head = heads_[index(layer, static_cast<std::int32_t>(h))];
      head.head.add(chunks[h].chunk);
      head.retention.merge(chunks[h].retention);
    }
  }

  ModelConfig model_;
  ObserverParameters parameters_;
  std::vector<ObservedHead> heads_;  ///< [layers, query heads]
};

HEADAWARE_NAMESPACE_END
