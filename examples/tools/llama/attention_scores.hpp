#pragma once

// Scores of a text's tokens by the attention that they get while a model reads it, or reads it again.

#include "tools/llama/attention_tap.hpp"

#include <headaware/attention/attention.hpp>
#include <headaware/attention/key_scores.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/score/selection.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama_adapter {

/// Rows as an engine's evaluation has them, [tokens, num_kv_heads, channels]: row i is token i.
struct TappedView {
  struct Rows {
    std::int64_t held;
    std::int64_t kv_head;
    std::int64_t num_kv_heads;
    [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return held; }
    [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
      return (row * num_kv_heads + kv_head) * channels;
    }
    [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const { return row; }
  };
  std::int64_t tokens = 0;
  std::int64_t num_kv_heads = 0;

  [[nodiscard]] HEADAWARE_HOST_DEVICE Rows head(std::int64_t, std::int64_t kv_head) const {
    return {tokens, kv_head, num_kv_heads};
  }
};
static_assert(headaware::KeptView<TappedView>);

/// @brief Scores a layer's first tokens by what a span of its queries looks at; queries see what the layer lets them
/// see.
/// @param first_query, end_query  tokens of the queries that count
/// @param all     memory for the scores of all tokens before `end_query`
/// @param tokens  that are scored, at most `end_query`
/// @param to      [num_kv_heads, tokens]
inline void score_tapped_keys(TappedAttention const& attention, std::int64_t first_query, std::int64_t end_query,
                              headaware::KeyScoreReduction reduction, std::vector<float>& all, std::int64_t tokens,
                              float* to) {
  namespace ha = headaware;
  std::int64_t const count = end_query - first_query;
  std::array<std::int32_t, 1> const first{static_cast<std::int32_t>(first_query)};
  float const* const queries = attention.queries + first_query * attention.num_query_heads * attention.head_dim;
  all.assign(static_cast<std::size_t>(attention.num_kv_heads * end_query), 0.0F);
  ha::score_keys(
      {1, attention.num_query_heads, attention.num_kv_heads, count, attention.head_dim, 0},
      ha::AttentionQueries{queries, ha::strided_bshd(1, count, attention.num_query_heads, attention.head_dim)},
      ha::KeptCache{attention.keys, static_cast<float const*>(nullptr), TappedView{end_query, attention.num_kv_heads}},
      {.scale = attention.scale,
       .soft_cap = attention.soft_cap,
       .first_positions = first.data(),
       .window = attention.sliding_window,
       .sinks = attention.sinks},
      reduction, ha::KeyScores{all.data(), end_query});
  for (std::int32_t head = 0; head < attention.num_kv_heads; ++head) {
    std::copy_n(all.data() + head * end_query, tokens, to + head * tokens);
  }
}

/// Scores the first tokens of an evaluation, for every layer and KV head.
class AttentionScores {
 public:
  /// @param tokens       that are scored, the first ones
  /// @param first_query, end_query  the queries that count: those of these tokens
  AttentionScores(headaware::ModelShape const& shape, std::int64_t tokens, std::int64_t first_query,
                  std::int64_t end_query, headaware::KeyScoreReduction reduction)
      : tokens_(tokens), first_query_(first_query), end_query_(end_query), reduction_(reduction) {
    headaware::require(first_query >= 0 && first_query < end_query && tokens <= end_query, "queries",
                       {"some, the last not before token ", tokens}, {first_query, " to ", end_query},
                       "AttentionScores");
    std::int64_t heads = 0;
    for (headaware::LayerShape const& layer : shape.layers()) {
      first_heads_.push_back(heads);
      if (layer.has_cache()) heads += layer.num_kv_heads;
    }
    scores_.resize(static_cast<std::size_t>(heads * tokens));
  }

  /// Scores a layer.
  void take(TappedAttention const& attention) {
    auto const start = std::chrono::steady_clock::now();
    headaware::require(attention.tokens >= end_query_, "tokens of an evaluation", {"at least ", end_query_},
                       attention.tokens, "AttentionScores");
    score_tapped_keys(attention, first_query_, end_query_, reduction_, all_, tokens_,
                      scores_.data() + first_heads_[static_cast<std::size_t>(attention.layer)] * tokens_);
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  /// [KV heads of all layers, tokens].
  [[nodiscard]] std::vector<float> const& scores() const { return scores_; }
  /// Spent on scoring.
  [[nodiscard]] double seconds() const { return seconds_; }

  /// Means over `width` neighbouring tokens, as SnapKV pools: what is read in a run is kept in a run. At the ends
  /// fewer.
  [[nodiscard]] std::vector<float> pooled(std::int64_t width) const {
    std::vector<float> result(scores_.size());
    for (std::size_t row = 0; row < scores_.size(); row += static_cast<std::size_t>(tokens_)) {
      for (std::int64_t token = 0; token < tokens_; ++token) {
        std::int64_t const begin = std::max<std::int64_t>(0, token - width / 2);
        std::int64_t const end = std::min(tokens_, token + width / 2 + 1);
        float sum = 0;
        for (std::int64_t i = begin; i < end; ++i) sum += scores_[row + static_cast<std::size_t>(i)];
        result[row + static_cast<std::size_t>(token)] = sum / static_cast<float>(end - begin);
      }
    }
    return result;
  }

 private:
  std::int64_t tokens_;
  std::int64_t first_query_;
  std::int64_t end_query_;
  headaware::KeyScoreReduction reduction_;
  std::vector<std::int64_t> first_heads_;  ///< of each layer
  std::vector<float> scores_;
  std::vector<float> all_;  ///< of a layer's tokens that are not wanted, too
  double seconds_ = 0;
};

}  // namespace llama_adapter
