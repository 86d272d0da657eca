#pragma once

// Errors of heads that keep sinks, a window and the tokens of the highest scores, of some query rows of a head.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/pack_block.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/stats/detail/pack_values.hpp>
#include <headaware/stats/detail/rounding_rows.hpp>
#include <headaware/stats/detail/weigh_scores.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// @brief A KV head's rows and the order of its scores; sampled query rows of its heads, a few at once.
///
/// Each row's weights are made once. Then, for each window, tokens before it come in the order of their scores: what a
/// cache's slots hold is the best of them, and the sums at each number of slots are on the way to the next.
class ScoredPass {
  using B = ScoreBlocking;

 public:
  /// @param keys  that sampled rows see
  template <class Layer>
  ScoredPass(ScoredGrid const& grid, AttentionScore const& score, Layer const& layer, std::int64_t keys)
      : grid_(&grid),
        logit_map_(LogitMap::of(score.scale, score.soft_cap, layer.head_dim)),
        head_dim_(layer.head_dim),
        value_dim_(value_dim(layer)),
        part_((value_dim_ + 2 * simd::lanes - 1) / (2 * simd::lanes) * (2 * simd::lanes)),
        keys_((keys + B::block_keys - 1) / B::block_keys * B::block_keys),
        error_rows_((static_cast<std::int64_t>(grid.size()) + B::rows - 1) / B::rows * B::rows),
        packed_(count_of(keys_ * head_dim_)),
        values_(count_of(keys_ * part_)),
        queries_(count_of(B::rows * head_dim_)),
        scores_(count_of(B::rows * B::block_keys)),
        weights_(count_of(B::rows * keys_)),
        sums_(count_of(3 * part_)),
        errors_(count_of(error_rows_ * part_)) {
    if (layer.output_factors != nullptr) {
      metric_.emplace(count_of(value_dim_ * part_));
      moved_.emplace(count_of(error_rows_ * part_));
    }
    std::fill_n(errors_.data(), error_rows_ * part_, 0.0F);
  }

  /// Adds sampled rows of a KV head. @param scores  of its tokens @param sums  [group]
  template <class Layer>
  void run(Layer const& layer, std::int32_t kv_head, float const* scores, SampledRows const& sampled,
           ScoredSums* sums) {
    std::int64_t const end = sampled.first + (sampled.count - 1) * sampled.step + 1;
    read_head(layer, kv_head, scores, end);
    std::int32_t const group = layer.num_query_heads / layer.num_kv_heads;
    for (std::int32_t h = 0; h < group; ++h) {
      std::int32_t const head = kv_head * group + h;
      if (metric_) pack_metric(layer, head, value_dim_, part_, metric_->data());
      double const sink = static_cast<double>(sink_logit(layer, head) * log2_e);
      for (std::int64_t row = 0; row < sampled.count; row += B::rows) {
        std::int64_t const rows = std::min<std::int64_t>(B::rows, sampled.count - row);
        std::int64_t const first = sampled.first + row * sampled.step;
        score_rows(layer, head, first, sampled.step, rows);
        for (std::int64_t r = 0; r < rows; ++r) finish(r, first + r * sampled.step, sink, sums[h]);
      }
    }
  }

 private:
  [[nodiscard]] static std::size_t count_of(std::int64_t count) { return static_cast<std::size_t>(count); }

  template <class Layer>
  void read_head(Layer const& layer, std::int32_t kv_head, float const* scores, std::int64_t end) {
    pack_keys(layer, kv_head, 0, end, packed_.data());
    spoiled_keys_.clear();
    for (std::int64_t token = 0; token < end; ++token) {
      float* const v = values_.data() + token * part_;
      if (!read_value(layer, kv_head, token, value_dim_, part_, v)) spoiled_keys_.add(token);
    }
    best_first_.resize(count_of(end));
    std::iota(best_first_.begin(), best_first_.end(), std::int32_t{0});
    std::sort(best_first_.begin(), best_first_.end(),
              [&](std::int32_t a, std::int32_t b) { return score_rank(scores[a], a) > score_rank(scores[b], b); });
  }

  /// Logits of queries first, first + step, … with the keys that the last of them sees.
  template <class Layer>
  void score_rows(Layer const& layer, std::int32_t head, std::int64_t first, std::int64_t step, std::int64_t rows) {
    pack_queries(layer, head, first, step, rows, B::rows, logit_map_.factor(), queries_.data());
    std::int64_t const end = first + (rows - 1) * step + 1;
    for (std::int64_t key = 0; key < end; key += B::block_keys) {
      std::int64_t const count = std::min<std::int64_t>(B::block_keys, end - key);
      score_block(queries_.data(), packed_.data() + key * head_dim_, head_dim_, count, scores_.data(), B::rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        std::copy_n(scores_.data() + r * B::block_keys, count, weights_.data() + r * keys_ + key);
      }
    }
  }

  /// A softmax over some of the keys.
  struct Kept {
    double weight = 0;
    float* sums;  ///< [part] Σ w v
  };
  void add(Kept& kept, float const* weights, std::int64_t token) const {
    float const weight = weights[token];
    kept.weight += static_cast<double>(weight);
    float const* const v = values_.data() + token * part_;
    simd::Floats const w = simd::broadcast(weight);
    for (std::int64_t c = 0; c < part_; c += simd::lanes) {
      simd::store(kept.sums + c, simd::load(kept.sums + c) + w * simd::load(v + c));
    }
  }

  /// Adds a row's errors, unless it is invalid. @param sink  the head's learned sink, in base 2
  void finish(std::int64_t row, std::int64_t q, double sink, ScoredSums& sums) {
    if (spoiled_keys_.any(0, q)) return;
    float* const weights = weights_.data() + row * keys_;
    if (logit_map_.capped()) {
      for (std::int64_t i = 0; i <= q; ++i) weights[i] = logit_map_.cap(weights[i]);
    }
    float const max = largest_score(weights, q + 1);
    if (!std::isfinite(max)) return;
    (void)weigh_scores<true>(weights, q + 1, max);
    double const learned = std::exp2(sink - static_cast<double>(max));

    Kept all{0, sums_.data()};
    std::fill_n(sums_.data(), 3 * part_, 0.0F);
    for (std::int64_t token = 0; token <= q; ++token) add(all, weights, token);
    auto const scale = static_cast<float>(1 / (all.weight + learned));
    for (std::int64_t c = 0; c < part_; ++c) all.sums[c] *= scale;

    // Sinks and the window, which grows; then slots on top.
    Kept base{0, sums_.data() + part_};
    std::int64_t const sinks = std::min<std::int64_t>(grid_->sink, q + 1);
    for (std::int64_t token = 0; token < sinks; ++token) add(base, weights, token);
    std::int64_t oldest = q + 1;  // of the window so far
    for (std::size_t w = 0; w < grid_->windows.size(); ++w) {
      std::int64_t const begin = std::max<std::int64_t>(sinks, q + 1 - grid_->windows[w]);
      while (oldest > begin) add(base, weights, --oldest);
      Kept kept{base.weight, sums_.data() + 2 * part_};
      std::copy_n(base.sums, part_, kept.sums);
      std::size_t slot = 0;
      std::int32_t held = 0;
      for (std::int32_t const token : best_first_) {
        if (token < sinks || token >= begin) continue;
        add(kept, weights, token);
        if (++held != grid_->slots[slot]) continue;
        float* const error = error_of(w, slot);
        auto const own = static_cast<float>(1 / (kept.weight + learned));
        for (std::int64_t c = 0; c < part_; ++c) error[c] = own * kept.sums[c] - all.sums[c];
        if (++slot == grid_->slots.size()) break;
      }
      // More slots than tokens: everything is kept.
      for (; slot < grid_->slots.size(); ++slot) std::fill_n(error_of(w, slot), part_, 0.0F);
    }
    add_squares(sums);
  }

  void add_squares(ScoredSums& sums) {
    if (metric_) move_by_metric(errors_.data(), error_rows_, metric_->data(), value_dim_, part_, moved_->data());
    // A row counts for all pairs or for none.
    squares_.clear();
    for (FloatBuffer const* const errors : {&errors_, metric_ ? &*moved_ : nullptr}) {
      for (std::size_t i = 0; errors != nullptr && i < grid_->size(); ++i) {
        squares_.push_back(sum_of_squares(errors->data() + static_cast<std::int64_t>(i) * part_, part_));
      }
    }
    if (!std::all_of(squares_.begin(), squares_.end(), [](double x) { return std::isfinite(x); })) return;
    ++sums.rows;
    if (metric_) ++sums.metric_rows;
    for (std::size_t i = 0; i < grid_->size(); ++i) {
      sums.error_squared[i] += squares_[i];
      if (metric_) sums.metric_error_squared[i] += squares_[grid_->size() + i];
    }
  }

  [[nodiscard]] float* error_of(std::size_t window, std::size_t slot) {
    return errors_.data() + static_cast<std::int64_t>(grid_->cell(window, slot)) * part_;
  }

  ScoredGrid const* grid_;
  LogitMap logit_map_;
  std::int64_t head_dim_;
  std::int64_t value_dim_;
  std::int64_t part_;                  ///< floats of a value, filled up with zeros
  std::int64_t keys_;                  ///< that there is room for
  std::int64_t error_rows_;            ///< pairs of the grid, rounded up
  FloatBuffer packed_;                 ///< [strips, head_dim, strip]
  FloatBuffer values_;                 ///< [keys, part]
  FloatBuffer queries_;                ///< [rows, head_dim]
  FloatBuffer scores_;                 ///< [rows, block_keys]
  FloatBuffer weights_;                ///< [rows, keys]
  FloatBuffer sums_;                   ///< [3, part]: all tokens, sinks and window, and slots
  FloatBuffer errors_;                 ///< [error_rows, part]
  std::optional<FloatBuffer> metric_;  ///< [value_dim, part]
  std::optional<FloatBuffer> moved_;   ///< [error_rows, part]: errors after the metric
  std::vector<std::int32_t> best_first_;
  std::vector<double> squares_;
  SpoiledKeys spoiled_keys_;
};

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
