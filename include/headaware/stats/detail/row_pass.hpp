#pragma once

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/pack_block.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>
#include <headaware/stats/detail/pack_values.hpp>
#include <headaware/stats/detail/retention_rows.hpp>
#include <headaware/stats/detail/weigh_scores.hpp>
#include <headaware/stats/head_sums.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Sums of one query head over one chunk.
struct HeadChunk {
  ChunkSums chunk;
  RetentionSums retention;  ///< empty unless a grid was asked for
};

namespace detail {
HEADAWARE_TARGET_BEGIN

/// State of a row while its keys pass by.
struct RowInProgress {
  EntropySoftmax<double> all;
  EntropySoftmax<double> recent;  ///< keys of the chunk's last part
  bool valid = true;              ///< no NaN, no infinity so far
};

/// Statistics of some query rows of one head, all their keys in one pass.
class RowPass {
  using B = ScoreBlocking;

 public:
  template <class Layer>
  RowPass(ObserverParameters const& parameters, AttentionScore const& score, Layer const& layer)
      : parameters_(parameters),
        window_(common_window(layer.window, score.sliding_window, "observe_chunk")),
        logit_map_(LogitMap::of(score.scale, score.soft_cap, head_dim(layer))),
        head_dim_(head_dim(layer)),
        value_dim_(value_dim(layer)),
        near_(std::max<std::int64_t>(parameters.num_distances, parameters.local_window + 1)),
        recent_begin_(
            static_cast<std::int64_t>(std::floor(static_cast<double>(layer.tokens) * (1 - parameters.recent_ratio)))),
        packed_(static_cast<std::size_t>(B::block_keys * head_dim_)),
        queries_(static_cast<std::size_t>(B::pack_rows * head_dim_)),
        scores_(static_cast<std::size_t>(B::block_rows * B::block_keys)),
        near_scores_(static_cast<std::size_t>(B::pack_rows * near_)),
        sink_scores_(static_cast<std::size_t>(B::pack_rows) * static_cast<std::size_t>(parameters.sink_size)),
        rows_(B::pack_rows) {
    if (parameters.retention) {
      bool const with_values = layer.values != nullptr;
      bool const with_metric = with_values && layer.output_factors != nullptr;
      retention_.emplace(*parameters.retention, window_, B::pack_rows, value_dim_, with_values, with_metric);
      values_.emplace(static_cast<std::size_t>(with_values ? B::block_keys * retention_->channels() : 0));
      if (with_metric) metric_.emplace(static_cast<std::size_t>(value_dim_ * retention_->part()));
    }
  }

  static constexpr std::int64_t max_rows = B::pack_rows;

  /// Adds `count` query rows, at most `max_rows`, to `sums`: queries q, q + stride, …
  template <class Layer>
  void run(Layer const& layer, std::int32_t head, std::int64_t q, std::int64_t count, HeadChunk& sums) {
    std::int32_t const kv_head = head / (layer.num_query_heads / layer.num_kv_heads);
    stride_ = parameters_.query_stride;
    std::int64_t const end = q + (count - 1) * stride_ + 1;  // keys before it are seen
    if constexpr (!has_probabilities<Layer>) {
      std::int64_t const rows = (count + B::block_rows - 1) / B::block_rows * B::block_rows;
      pack_queries(layer, head, q, stride_, count, rows, logit_map_.factor(), queries_.data());
    }
    if (metric_) pack_metric(layer, head, value_dim_, retention_->part(), metric_->data());
    std::fill(rows_.begin(), rows_.end(), RowInProgress{});
    if (retention_) {
      retention_->clear(B::pack_rows);
      if (retention_->with_values()) {
        pack_values(layer, kv_head, 0, std::min(retention_->sinks(), layer.tokens), retention_->sink_values());
        spoiled_keys_.clear();  // only of keys that rows see, which come block by block
      }
    }
    sink_ = sink_logit(layer, head) * log2_e;
    std::int64_t const oldest = oldest_of(q);
    for (std::int64_t first = oldest / B::block_keys * B::block_keys; first < end; first += B::block_keys) {
      std::int64_t const keys = std::min<std::int64_t>(B::block_keys, end - first);
      std::int64_t const nearest_row = std::max<std::int64_t>(0, first - q + stride_ - 1) / stride_;
      if (oldest_of(q + nearest_row * stride_) >= first + keys) continue;  // no row sees the block
      if constexpr (!has_probabilities<Layer>) pack_keys(layer, kv_head, first, keys, packed_.data());
      if (retention_ && retention_->with_values()) pack_values(layer, kv_head, first, keys, values_->data());
      // Rows before the block's first key see none of it.
      std::int64_t const start = std::max<std::int64_t>(0, first - q) / stride_ / B::block_rows * B::block_rows;
      for (std::int64_t row = start; row < count; row += B::block_rows) {
        std::int64_t const rows = std::min<std::int64_t>(count - row, B::block_rows);
        std::int64_t const nearest = q + (row + rows - 1) * stride_;
        std::int64_t const seen = std::min(keys, nearest + 1 - first);
        if (seen <= 0) continue;
        std::int64_t const passed = std::max<std::int64_t>(0, oldest_of(q + row * stride_) - first);
        if (passed >= keys) break;  // no row from here on sees the block
        // Whole strips that no row from here on sees are left out.
        std::int64_t const skip = passed / B::strip * B::strip;
        float* const scores = scores_.data() + skip;
        if constexpr (has_probabilities<Layer>) {
          take_probabilities(layer, head, q + row * stride_, rows, first + skip, seen - skip, scores);
        } else {
          score_block(queries_.data() + row * head_dim_, packed_.data() + skip * head_dim_, head_dim_, seen - skip,
                      scores);
        }
        for (std::int64_t r = 0; r < rows; ++r)
          add_scores(row + r, q + (row + r) * stride_, first + skip, seen - skip, scores + r * B::block_keys);
        if (retention_) {
          for (std::int64_t r = rows; r < B::block_rows; ++r)
            std::fill_n(scores + r * B::block_keys, seen - skip, 0.0F);
          retention_->add(row, rows, q + row * stride_, stride_, first + skip, seen - skip, scores, B::block_keys,
                          retention_->with_values() ? values_->data() + skip * retention_->channels() : nullptr);
        }
      }
    }
    for (std::int64_t r = 0; r < count; ++r) {
      // A row of ready probabilities is valid only if they sum to 1.
      if constexpr (has_probabilities<Layer>) rows_[static_cast<std::size_t>(r)].valid &= sums_to_one(r);
      finish(r, q + r * stride_, sums);
    }
  }

 private:
  template <class Layer>
  void pack_values(Layer const& layer, std::int32_t kv_head, std::int64_t first, std::int64_t count, float* to) {
    std::int64_t const channels = retention_->channels();
    std::int64_t const part = retention_->part();
    for (std::int64_t key = 0; key < count; ++key) {
      float* const row = to + key * channels;
      if (!read_value(layer, kv_head, first + key, value_dim_, channels, row)) spoiled_keys_.add(first + key);
      if (!metric_) continue;
      for (std::int64_t d = 0; d < value_dim_; ++d) {
        for (std::int64_t c = 0; c < part; c += simd::lanes) {
          simd::store(row + part + c, simd::load(row + part + c) + row[d] * simd::load(metric_->data() + d * part + c));
        }
      }
      if (!usable_values(row + part, part)) spoil(row, first + key);
    }
  }

  /// Zeroes a value that is not finite and notes its key.
  void spoil(float* row, std::int64_t key) {
    std::fill_n(row, retention_->channels(), 0.0F);
    spoiled_keys_.add(key);
  }

  /// Probabilities as scores: their logarithms to base 2, whose softmax they are.
  /// @param scores  [rows, block_keys]
  template <class Layer>
  void take_probabilities(Layer const& layer, std::int32_t head, std::int64_t q, std::int64_t rows, std::int64_t first,
                          std::int64_t count, float* scores) {
    for (std::int64_t r = 0; r < rows; ++r) {
      auto const* const from = layer.probabilities + layer.row(head, q + r * stride_) + first;
      float* const to = scores + r * B::block_keys;
      std::int64_t const seen = std::clamp<std::int64_t>(q + r * stride_ + 1 - first, 0, count);
      for (std::int64_t k = 0; k < seen; ++k) {
        float const p = to_float(from[k]);
        to[k] = p == 0 ? hidden_logit : std::log2(p);  // NaN for a negative one
      }
      std::fill(to + seen, to + count, hidden_logit);
    }
  }

  [[nodiscard]] bool sums_to_one(std::int64_t index) const {
    constexpr double tolerance = 0.01;  // as far as rounding to 16 bits goes
    EntropySoftmax<double> const& all = rows_[static_cast<std::size_t>(index)].all;
    return std::abs(std::exp2(static_cast<double>(all.max)) * all.sum - 1) <= tolerance;
  }

  /// Adds keys [first, first + seen) to one row, of which it sees those up to its own. Leaves the
  /// weights, relative to the row's maximum so far, where the scores were.
  void add_scores(std::int64_t index, std::int64_t q, std::int64_t first, std::int64_t seen, float* scores) {
    RowInProgress& row = rows_[static_cast<std::size_t>(index)];
    std::int64_t const count = std::clamp<std::int64_t>(q + 1 - first, 0, seen);
    std::int64_t const skipped = std::clamp<std::int64_t>(oldest_of(q) - first, 0, count);
    if (skipped == count) {
      if (retention_) std::fill_n(scores, seen, 0.0F);
      return;
    }
    if (logit_map_.capped()) {
      for (std::int64_t i = skipped; i < count; ++i) scores[i] = logit_map_.cap(scores[i]);
    }
    std::fill_n(scores, skipped, hidden_logit);
    for (std::int64_t k = first; k < std::min<std::int64_t>(parameters_.sink_size, first + count); ++k) {
      sink_scores_[static_cast<std::size_t>(index * parameters_.sink_size + k)] = scores[k - first];
    }
    for (std::int64_t k = std::max(first + skipped, q - near_ + 1); k < first + count; ++k) {
      near_scores_[static_cast<std::size_t>(index * near_ + q - k)] = scores[k - first];
    }

    float const block_max = largest_score(scores, count);
    if (!std::isfinite(block_max)) row.valid = false;
    if (!row.valid) {
      if (retention_) std::fill_n(scores, seen, 0.0F);
      return;
    }
    if (block_max > row.all.max || row.all.sum == 0) {
      if (retention_ && row.all.sum > 0)
        retention_->rescale(index, static_cast<float>(std::exp2(static_cast<double>(row.all.max) - block_max)));
      row.all.rescale(block_max);
      row.recent.rescale(block_max);
    }
    std::int64_t const split = std::clamp<std::int64_t>(recent_begin_ - first, 0, count);
    if (split < count && split > 0) {
      // The block crosses into the recent part: a copy, as a part needs room to be filled up.
      float part[B::block_keys + simd::lanes];
      std::copy(scores + split, scores + count, part);
      largest_score(part, count - split);
      row.recent.merge(weigh_scores<false>(part, count - split, row.all.max));
    }
    auto const state =
        retention_ ? weigh_scores<true>(scores, count, row.all.max) : weigh_scores<false>(scores, count, row.all.max);
    if (split == 0) row.recent.merge(state);
    row.all.merge(state);
    if (retention_) {
      std::fill_n(scores, skipped, 0.0F);
      std::fill(scores + count, scores + seen, 0.0F);
    }
  }

  void finish(std::int64_t index, std::int64_t q, HeadChunk& sums) {
    RowInProgress& row = rows_[static_cast<std::size_t>(index)];
    ChunkSums& chunk = sums.chunk;
    std::int64_t const oldest = oldest_of(q);
    if (!row.valid || !(row.all.sum > 0) || spoiled_keys_.any(oldest, q)) {
      ++chunk.invalid_rows;
      return;
    }
    ++chunk.rows;
    double largest = row.all.max_probability();
    double sink_weight = 0;
    if (std::isfinite(sink_)) {
      float const key_max = row.all.max;
      row.all.merge({{sink_, 1}, 0});
      if (row.all.max > key_max) {
        row.recent.rescale(row.all.max);
        if (retention_)
          retention_->rescale(index, static_cast<float>(std::exp2(static_cast<double>(key_max) - row.all.max)));
      }
      largest = row.all.probability(key_max);
      sink_weight = std::exp2(static_cast<double>(sink_) - row.all.max);
    }
    double const entropy = row.all.entropy();
    chunk.entropy += entropy;
    chunk.max_attention += largest;
    if (q > 0) {
      std::int64_t const outcomes = q + 1 - oldest + (std::isfinite(sink_) ? 1 : 0);
      ++chunk.uniformity_rows;
      chunk.uniformity += std::log(static_cast<double>(outcomes)) - entropy;
    }
    for (std::int64_t k = oldest; k < std::min<std::int64_t>(parameters_.sink_size, q + 1); ++k) {
      chunk.sink += row.all.probability(sink_scores_[static_cast<std::size_t>(index * parameters_.sink_size + k)]);
    }
    for (std::int64_t d = 0; d < near_ && q - d >= oldest; ++d) {
      double const p = row.all.probability(near_scores_[static_cast<std::size_t>(index * near_ + d)]);
      if (d < parameters_.num_distances) chunk.distances[static_cast<std::size_t>(d)] += p;
      if (d <= parameters_.local_window) chunk.local += p;
    }
    if (row.recent.sum > 0) chunk.recent += row.recent.sum / row.all.sum;
    if (retention_) retention_->finish(index, q, row.all.sum, sink_weight, sums.retention);
  }

  /// The first key that query q sees.
  [[nodiscard]] std::int64_t oldest_of(std::int64_t q) const {
    return window_ > 0 ? std::max<std::int64_t>(0, q - window_ + 1) : 0;
  }

  ObserverParameters parameters_;
  std::int64_t window_;  ///< keys that a row sees; 0: all before it
  float sink_ = 0;       ///< logit of the head's learned sink, in base 2; -infinity: none
  LogitMap logit_map_;
  std::int64_t head_dim_;
  std::int64_t value_dim_;
  std::int64_t stride_ = 1;
  std::int64_t near_;          ///< distances whose scores are kept
  std::int64_t recent_begin_;  ///< first key of the chunk's recent part
  FloatBuffer packed_;         ///< [strips, head_dim, strip]
  FloatBuffer queries_;        ///< [rows, head_dim]
  FloatBuffer scores_;         ///< [block_rows, block_keys]
  std::vector<float> near_scores_;
  std::vector<float> sink_scores_;
  std::vector<RowInProgress> rows_;
  SpoiledKeys spoiled_keys_;
  std::optional<RetentionRows> retention_;
  std::optional<FloatBuffer> values_;  ///< [block_keys, channels]
  std::optional<FloatBuffer> metric_;  ///< [value_dim, part]
};

HEADAWARE_TARGET_END
}  // namespace detail

HEADAWARE_NAMESPACE_END
