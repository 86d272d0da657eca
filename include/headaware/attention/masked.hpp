#pragma once

/// @file
/// Attention of a whole sequence under policies, on the CPU: what evicting at every step would give, in one pass.

#include <headaware/attention/detail/check_masked.hpp>
#include <headaware/attention/detail/weigh_logits.hpp>
#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/pack_block.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/detail/weighted_sums.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/policy/rolling_policy.hpp>
#include <headaware/policy/window_rule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {
HEADAWARE_TARGET_BEGIN

/// Sinks and window of a policy; all tokens for one of another shape, which is asked key by key.
template <class P>
WindowRule masked_rule(P const& policy) {
  if constexpr (RollingPolicy<P>) {
    return window_rule(policy);
  } else {
    return {all_tokens, 0};
  }
}

/// Output of some query rows of one head, the keys that they see block by block.
class MaskedRows {
  using B = ScoreBlocking;

 public:
  static constexpr std::int64_t max_rows = B::block_rows;

  template <class Layer>
  MaskedRows(AttentionScore const& score, Layer const& layer)
      : window_(common_window(layer.window, score.sliding_window, "attend_masked")),
        logit_map_(LogitMap::of(score.scale, score.soft_cap, layer.head_dim)),
        head_dim_(layer.head_dim),
        value_dim_(value_dim(layer)),
        channels_((value_dim_ + 2 * simd::lanes - 1) / (2 * simd::lanes) * (2 * simd::lanes)),
        queries_(static_cast<std::size_t>(max_rows * head_dim_)),
        packed_(static_cast<std::size_t>(B::block_keys * head_dim_)),
        values_(static_cast<std::size_t>(B::block_keys * channels_)),
        scores_(static_cast<std::size_t>(max_rows * B::block_keys)),
        outputs_(static_cast<std::size_t>(max_rows * channels_)),
        softmax_(static_cast<std::size_t>(max_rows)) {}

  /// Queries q … q + count - 1 of a head. @param policy  of its KV head
  template <class Layer, class P, class OutputLayout>
  void run(Layer const& layer, std::int32_t head, std::int64_t q, std::int64_t count, P const& policy, float* output,
           OutputLayout const& output_layout, float* lse) {
    std::int32_t const kv_head = head / (layer.num_query_heads / layer.num_kv_heads);
    pack_queries(layer, head, q, 1, count, max_rows, logit_map_.factor(), queries_.data());
    std::fill_n(outputs_.data(), max_rows * channels_, 0.0F);
    std::fill(softmax_.begin(), softmax_.end(), OnlineSoftmax<double>::of_sink(sink_logit(layer, head)));

    WindowRange const seen = masked_rule(policy).range_of_queries(q + count, count);
    std::int64_t const oldest = window_ > 0 ? q + 1 - window_ : 0;
    for (auto const& [begin, end] : {std::pair{std::int64_t{0}, seen.sinks}, std::pair{seen.begin, seen.length}}) {
      for (std::int64_t first = std::max(begin, oldest); first < end; first += B::block_keys) {
        add_keys(layer, kv_head, q, count, first, std::min(end - first, std::int64_t{B::block_keys}), policy);
      }
    }
    for (std::int64_t r = 0; r < count; ++r) {
      auto const inverse = static_cast<float>(softmax_[static_cast<std::size_t>(r)].inverse());
      for (std::int64_t c = 0; c < value_dim_; ++c) {
        output[output_layout.offset(0, head, q + r, c)] = outputs_.data()[r * channels_ + c] * inverse;
      }
      if (lse != nullptr) lse[head * layer.tokens + q + r] = softmax_[static_cast<std::size_t>(r)].lse();
    }
  }

 private:
  template <class Layer, class P>
  void add_keys(Layer const& layer, std::int32_t kv_head, std::int64_t q, std::int64_t count, std::int64_t first,
                std::int64_t keys, P const& policy) {
    pack_keys(layer, kv_head, first, keys, packed_.data());
    for (std::int64_t key = 0; key < keys; ++key) {
      float* const value = values_.data() + key * channels_;
      std::int64_t const token = layer.first_token + first + key;
      for (std::int64_t d = 0; d < channels_; ++d) {
        value[d] =
            d < value_dim_ ? to_float(layer.values[layer.value_layout.offset(layer.sequence, kv_head, token, d)]) : 0;
      }
    }
    score_block(queries_.data(), packed_.data(), head_dim_, keys, scores_.data());
    for (std::int64_t r = 0; r < count; ++r) weigh(r, q + r, first, keys, policy);
    for (std::int64_t r = count; r < max_rows; ++r) std::fill_n(scores_.data() + r * B::block_keys, keys, 0.0F);
    for (std::int64_t r = 0; r < count; r += B::rows) {
      add_weighted(scores_.data() + r * B::block_keys, B::block_keys, values_.data(), keys, channels_,
                   outputs_.data() + r * channels_, channels_);
    }
  }

  /// Turns one row's scores into weights relative to its largest logit so far; 0 where it does not see a key.
  template <class P>
  void weigh(std::int64_t index, std::int64_t q, std::int64_t first, std::int64_t keys, P const& policy) {
    float* const scores = scores_.data() + index * B::block_keys;
    if (logit_map_.capped()) {
      for (std::int64_t k = 0; k < keys; ++k) scores[k] = logit_map_.cap(scores[k]);
    }
    std::int64_t const padded = whole_vectors(keys);
    auto const hide = [&](std::int64_t begin, std::int64_t end) {
      auto const at = [&](std::int64_t key) { return std::clamp<std::int64_t>(key - first, 0, padded); };
      for (std::int64_t k = at(begin); k < at(end); ++k) scores[k] = hidden_logit;
    };
    WindowRange const seen = masked_rule(policy).range(q + 1);
    hide(seen.sinks, seen.begin);
    hide(std::min(seen.length, first + keys), first + padded);
    if (window_ > 0) hide(0, q + 1 - window_);
    if constexpr (!RollingPolicy<P>) {
      for (std::int64_t k = first; k < std::min(seen.length, first + keys); ++k) {
        if (!policy.keeps(k, q + 1)) scores[k - first] = hidden_logit;
      }
    }
    weigh_logits(softmax_[static_cast<std::size_t>(index)], scores, padded, outputs_.data() + index * channels_,
                 channels_);
  }

  std::int64_t window_;  ///< the layer's own; 0: none
  LogitMap logit_map_;
  std::int64_t head_dim_;
  std::int64_t value_dim_;
  std::int64_t channels_;
  FloatBuffer queries_;                         ///< [rows, head_dim]
  FloatBuffer packed_;                          ///< [strips, head_dim, strip]
  FloatBuffer values_;                          ///< [block_keys, channels]
  FloatBuffer scores_;                          ///< [rows, block_keys]
  FloatBuffer outputs_;                         ///< [rows, channels]
  std::vector<OnlineSoftmax<double>> softmax_;  ///< [rows]
};

HEADAWARE_TARGET_END
}  // namespace detail

HEADAWARE_TARGET_BEGIN

/// @brief Attention of one layer of one sequence in which every query sees the keys that its KV head's policy would
/// have kept by then, its own included: equal to decoding token by token with eviction, at the cost of one pass.
///
/// The layer's own window bounds them all, and its learned sinks take part in every softmax; a query that sees nothing
/// but its sink gives zeros.
/// @param layer   with values, host pointers; positions are 0 … tokens - 1
/// @param table   policies; @param table_layer  which of its layers this is
/// @param output  host, [num_query_heads, tokens, value_dim] by `output_layout`, sequence 0; zero where nothing is kept
/// @param lse     host, [num_query_heads, tokens], as in `AttentionOutput`, for `merge_attention`; nullptr: not wanted
/// @throws ArgumentError on shapes that disagree, and on keep-lists that are missing or do not ascend
/// @note   Deterministic. A row that sees a NaN or infinite score has a NaN output.
/// @par Cost  num_query_heads · tokens · head_dim times the keys kept (for sinks and windows; other policies see all
///            keys and are asked for each); memory for a tile of rows a thread
template <class T, class QueryLayout, class KeyLayout, class ValueLayout, class Table, class OutputLayout>
void attend_masked(LayerQkv<T, QueryLayout, KeyLayout, ValueLayout> const& layer, AttentionScore const& score,
                   Table const& table, std::int32_t table_layer, float* output, OutputLayout const& output_layout,
                   float* lse = nullptr) {
  constexpr auto where = "attend_masked";
  static_assert(check_layout<OutputLayout>());
  score.validate();
  detail::check_layer(layer, where);
  require(layer.values != nullptr || layer.tokens == 0, "values", "a pointer", "nullptr", where);
  require(output != nullptr || layer.tokens == 0, "output", "a pointer", "nullptr", where);
  require_index(table_layer, table.num_layers(), "layer", where);
  std::int32_t const heads = detail::layer_heads(table).count(table_layer);
  require(heads == layer.num_kv_heads, "table's KV heads", layer.num_kv_heads, heads, where);
  (void)detail::common_window(layer.window, score.sliding_window, where);
  if constexpr (requires { table.num_sequences(); }) {
    require(table.num_sequences() > 0, "table's sequences", "> 0", table.num_sequences(), where);
  }
  detail::check_masked_policies(table, table_layer, 0);
  std::int64_t const tile = detail::MaskedRows::max_rows;
  std::int64_t const tiles = (layer.tokens + tile - 1) / tile;
  std::int64_t const work = tiles * layer.num_query_heads;
  auto const make_rows = [&] { return detail::MaskedRows(score, layer); };
  detail::parallel_for(work, 1, true, make_rows, [&](detail::MaskedRows& rows, std::int64_t i) {
    std::int64_t const first = (tiles - 1 - i / layer.num_query_heads) * tile;
    auto const head = static_cast<std::int32_t>(i % layer.num_query_heads);
    std::int32_t const kv_head = head / (layer.num_query_heads / layer.num_kv_heads);
    detail::visit_policy(table, table_layer, 0, kv_head, [&](auto const& policy) {
      rows.run(layer, head, first, std::min(tile, layer.tokens - first), policy, output, output_layout, lse);
    });
  });
}

HEADAWARE_TARGET_END
HEADAWARE_NAMESPACE_END
