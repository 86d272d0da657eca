#pragma once

// Errors of keys and of values that go through formats: exact attention and, per format, that over rounded rows, of
// some query rows at once.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/pack_block.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/detail/weighted_sums.hpp>
#include <headaware/element.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/stats/detail/pack_values.hpp>
#include <headaware/stats/detail/rounding_rows.hpp>
#include <headaware/stats/detail/weigh_scores.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/rounding.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// @brief Sampled query rows of all heads of a group, their keys in one pass; each block of keys and values is encoded
/// once per format for all of them.
///
/// Sums of a row are those of states: state 0 is the exact softmax, with the sums Σ w v and, per format, Σ w (v' - v)
/// of rounded values v'; state 1 + f that of keys rounded to format f, with Σ w v. Of a latent, whose row is rounded
/// once, a format has the latter alone, of rounded values.
class RoundingPass {
  using B = ScoreBlocking;

 public:
  template <class Layer>
  RoundingPass(ObserverParameters const& parameters, AttentionScore const& score, Layer const& layer)
      : window_(common_window(layer.window, score.sliding_window, "observe_chunk")),
        logit_map_(LogitMap::of(score.scale, score.soft_cap, layer.head_dim)),
        group_(layer.num_query_heads / layer.num_kv_heads),
        head_dim_(layer.head_dim),
        value_dim_(value_dim(layer)),
        part_((value_dim_ + 2 * simd::lanes - 1) / (2 * simd::lanes) * (2 * simd::lanes)),
        latent_(layer.values == layer.keys),
        max_rows_((queries_at_once(group_) * group_ + B::rows - 1) / B::rows * B::rows),
        num_formats_(static_cast<std::int64_t>(parameters.formats.size())),
        error_rows_((2 * num_formats_ + B::rows - 1) / B::rows * B::rows),
        queries_(count_of(max_rows_ * head_dim_)),
        keys_(count_of(B::block_keys * head_dim_)),
        packed_(count_of(B::block_keys * head_dim_)),
        values_(count_of(B::block_keys * part_)),
        rounded_(count_of(B::block_keys * part_)),
        row_(count_of(std::max(head_dim_, part_))),
        weights_(count_of(max_rows_ * B::block_keys)),
        scores_(count_of(B::rows * B::block_keys)),
        sums_(count_of((1 + 2 * num_formats_) * max_rows_ * part_)),
        errors_(count_of(error_rows_ * part_)),
        states_(count_of((1 + num_formats_) * max_rows_)),
        valid_(count_of(max_rows_)) {
    std::int64_t words = 0;
    for (auto const& name : parameters.formats) {
      formats_.push_back(DefaultFormats::id_of_name(name));
      words = std::max(words, AnyFormat<>::of_name(name).row_words(std::max(head_dim_, value_dim_)));
    }
    words_.resize(count_of(words));
    if (layer.output_factors != nullptr) {
      metric_.emplace(count_of(value_dim_ * part_));
      moved_.emplace(count_of(error_rows_ * part_));
    }
    std::fill_n(errors_.data(), error_rows_ * part_, 0.0F);
  }

  /// Sampled positions that one run takes, of a group of so many heads: enough rows that encoding costs little.
  [[nodiscard]] static std::int64_t queries_at_once(std::int64_t group) {
    constexpr std::int64_t rows = 256;
    return std::max<std::int64_t>(1, rows / group);
  }

  /// Adds sampled positions [first, first + count) of a KV head, at most `queries_at_once`.
  /// @param sums  [group]
  template <class Layer>
  void run(Layer const& layer, std::int32_t kv_head, SampledRows const& sampled, std::int64_t first, std::int64_t count,
           RoundingSums* sums) {
    q_ = sampled.first + first * sampled.step;
    step_ = sampled.step;
    rows_ = count * group_;
    padded_ = (rows_ + B::rows - 1) / B::rows * B::rows;
    std::int64_t const head = kv_head * group_;
    for (std::int64_t r = 0; r < padded_; ++r) {
      pack_queries(layer, static_cast<std::int32_t>(head + r % group_), query_of(r), 1, r < rows_ ? 1 : 0, 1,
                   logit_map_.factor(), queries_.data() + r * head_dim_);
    }
    std::fill(states_.begin(), states_.end(), EntropySoftmax<double>{});
    std::fill(valid_.begin(), valid_.end(), char{1});
    std::fill_n(sums_.data(), (1 + 2 * num_formats_) * max_rows_ * part_, 0.0F);
    spoiled_keys_.clear();
    std::int64_t const end = query_of(rows_ - 1) + 1;
    for (first_ = oldest_of(q_) / B::block_keys * B::block_keys; first_ < end; first_ += B::block_keys) {
      block_ = std::min<std::int64_t>(B::block_keys, end - first_);
      add_block(layer, kv_head);
    }
    for (std::int64_t h = 0; h < group_; ++h) {
      auto const query_head = static_cast<std::int32_t>(head + h);
      if (metric_) pack_metric(layer, query_head, value_dim_, part_, metric_->data());
      double const sink = static_cast<double>(sink_logit(layer, query_head) * log2_e);
      for (std::int64_t r = h; r < rows_; r += group_) finish(r, sink, sums[h]);
    }
  }

 private:
  [[nodiscard]] static std::size_t count_of(std::int64_t count) { return static_cast<std::size_t>(count); }

  /// The position of a row: heads of the group side by side.
  [[nodiscard]] std::int64_t query_of(std::int64_t row) const { return q_ + std::min(row, rows_ - 1) / group_ * step_; }
  /// The first key that a query sees.
  [[nodiscard]] std::int64_t oldest_of(std::int64_t q) const {
    return window_ > 0 ? std::max<std::int64_t>(0, q - window_ + 1) : 0;
  }
  /// The sums of a row: exact at 0, of values rounded from 1 on, of keys rounded from 1 + formats on.
  [[nodiscard]] float* sums_of(std::int64_t index, std::int64_t row) {
    return sums_.data() + (index * max_rows_ + row) * part_;
  }
  [[nodiscard]] EntropySoftmax<double>& state_of(std::int64_t state, std::int64_t row) {
    return states_[count_of(state * max_rows_ + row)];
  }

  /// Adds the block of keys from `first_` on.
  template <class Layer>
  void add_block(Layer const& layer, std::int32_t kv_head) {
    read_block(layer, kv_head);
    for_each_group([&](std::int64_t row, std::int64_t skip, std::int64_t seen) {
      float* const weights = weights_.data() + row * B::block_keys + skip;
      weigh_group(0, row, skip, seen, weights);
      add_values(values_.data(), row, skip, seen, weights, 0);
    });
    for (std::int64_t f = 0; f < num_formats_; ++f) {
      DefaultFormats::visit_type(formats_[count_of(f)], [&](auto const& format) {
        round_keys(format);
        if (!latent_) round_values(format);
      });
      if (!latent_) {
        for_each_group([&](std::int64_t row, std::int64_t skip, std::int64_t seen) {
          add_values(rounded_.data(), row, skip, seen, weights_.data() + row * B::block_keys + skip, 1 + f);
        });
      }
      for_each_group([&](std::int64_t row, std::int64_t skip, std::int64_t seen) {
        weigh_group(1 + f, row, skip, seen, scores_.data());
        add_values(latent_ ? rounded_.data() : values_.data(), row, skip, seen, scores_.data(), 1 + num_formats_ + f);
      });
    }
  }

  /// Calls f(row, skip, seen) for all groups of rows that see some of the block: of its keys those from `skip` on,
  /// whole strips, and before `seen`.
  template <class F>
  void for_each_group(F const& f) {
    for (std::int64_t row = 0; row < padded_; row += B::rows) {
      std::int64_t const seen = std::min(block_, query_of(row + B::rows - 1) + 1 - first_);
      if (seen <= 0) continue;
      std::int64_t const passed = std::max<std::int64_t>(0, oldest_of(query_of(row)) - first_);
      if (passed >= block_) break;  // nor do rows after it
      f(row, passed / B::strip * B::strip, seen);
    }
  }

  template <class Layer>
  void read_block(Layer const& layer, std::int32_t kv_head) {
    for (std::int64_t key = 0; key < block_; ++key) {
      std::int64_t const token = layer.first_token + first_ + key;
      float* const k = keys_.data() + key * head_dim_;
      for (std::int64_t d = 0; d < head_dim_; ++d)
        k[d] = to_float(layer.keys[layer.key_layout.offset(layer.sequence, kv_head, token, d)]);
      pack_key(key, k);
      float* const v = values_.data() + key * part_;
      if (!read_value(layer, kv_head, first_ + key, value_dim_, part_, v)) spoiled_keys_.add(first_ + key);
    }
    zero_strip_end();
  }
  void pack_key(std::int64_t key, float const* from) {
    float* const column = packed_.data() + key / B::strip * B::strip * head_dim_ + key % B::strip;
    for (std::int64_t d = 0; d < head_dim_; ++d) column[d * B::strip] = from[d];
  }
  /// Zeroes the keys of the last strip that are beyond the block.
  void zero_strip_end() {
    std::fill_n(row_.data(), head_dim_, 0.0F);
    for (std::int64_t key = block_; key % B::strip != 0; ++key) pack_key(key, row_.data());
  }

  /// Packs the block's keys as a format has them; of a latent also its values.
  template <class F>
  void round_keys(F const& format) {
    for (std::int64_t key = 0; key < block_; ++key) {
      round_row(format, keys_.data() + key * head_dim_, head_dim_, words_.data(), row_.data());
      pack_key(key, row_.data());
      if (!latent_) continue;
      float* const to = rounded_.data() + key * part_;
      std::copy_n(row_.data(), value_dim_, to);
      std::fill(to + value_dim_, to + part_, 0.0F);
    }
  }
  /// Writes what a format changes of the block's values.
  template <class F>
  void round_values(F const& format) {
    for (std::int64_t key = 0; key < block_; ++key) {
      float const* const from = values_.data() + key * part_;
      float* const to = rounded_.data() + key * part_;
      round_row(format, from, value_dim_, words_.data(), to);
      for (std::int64_t d = 0; d < value_dim_; ++d) to[d] -= from[d];
      std::fill(to + value_dim_, to + part_, 0.0F);
    }
  }

  /// Turns the scores of a group's rows with the packed keys into weights, relative to the rows' largest score so far.
  /// @param weights  [rows, block_keys], of keys [skip, seen)
  void weigh_group(std::int64_t state, std::int64_t row, std::int64_t skip, std::int64_t seen, float* weights) {
    score_block(queries_.data() + row * head_dim_, packed_.data() + skip * head_dim_, head_dim_, seen - skip, weights,
                B::rows);
    for (std::int64_t r = 0; r < B::rows; ++r)
      weigh_row(state, row + r, first_ + skip, seen - skip, weights + r * B::block_keys);
  }

  void weigh_row(std::int64_t state, std::int64_t row, std::int64_t first, std::int64_t seen, float* scores) {
    std::int64_t const q = query_of(row);
    std::int64_t const count = std::clamp<std::int64_t>(q + 1 - first, 0, seen);
    std::int64_t const skipped = std::clamp<std::int64_t>(oldest_of(q) - first, 0, count);
    char& valid = valid_[count_of(row)];
    if (skipped == count || row >= rows_ || valid == 0) {
      std::fill_n(scores, seen, 0.0F);
      return;
    }
    if (logit_map_.capped()) {
      for (std::int64_t i = skipped; i < count; ++i) scores[i] = logit_map_.cap(scores[i]);
    }
    std::fill_n(scores, skipped, hidden_logit);
    float const block_max = largest_score(scores, count);
    if (!std::isfinite(block_max)) {
      valid = 0;
      std::fill_n(scores, seen, 0.0F);
      return;
    }
    EntropySoftmax<double>& all = state_of(state, row);
    if (block_max > all.max || all.sum == 0) {
      if (all.sum > 0) rescale(state, row, static_cast<float>(all.factor(block_max)));
      all.rescale(block_max);
    }
    all.merge(weigh_scores<true>(scores, count, all.max));
    std::fill_n(scores, skipped, 0.0F);
    std::fill(scores + count, scores + seen, 0.0F);
  }

  /// Rescales the sums of a state to a larger maximum.
  void rescale(std::int64_t state, std::int64_t row, float factor) {
    auto const scale = [&](std::int64_t index) {
      float* const sums = sums_of(index, row);
      for (std::int64_t c = 0; c < part_; ++c) sums[c] *= factor;
    };
    if (state > 0) return scale(num_formats_ + state);
    for (std::int64_t index = 0; index <= num_formats_; ++index) scale(index);
  }

  void add_values(float const* values, std::int64_t row, std::int64_t skip, std::int64_t seen, float const* weights,
                  std::int64_t index) {
    add_weighted(weights, B::block_keys, values + skip * part_, seen - skip, part_, sums_of(index, row), part_);
  }

  /// Adds a row's errors to `sums`, unless it is invalid. @param sink  the head's learned sink, in base 2
  void finish(std::int64_t row, double sink, RoundingSums& sums) {
    std::int64_t const q = query_of(row);
    if (valid_[count_of(row)] == 0 || spoiled_keys_.any(oldest_of(q), q)) return;
    auto const inverse_of = [&](std::int64_t state) {
      EntropySoftmax<double> const& all = state_of(state, row);
      return static_cast<float>(1 / (all.sum + std::exp2(sink - static_cast<double>(all.max))));
    };
    float const inverse = inverse_of(0);
    for (std::int64_t f = 0; f < num_formats_; ++f) {
      float const own = inverse_of(1 + f);
      for (std::int64_t c = 0; c < part_; ++c) {
        errors_.data()[(num_formats_ + f) * part_ + c] = inverse * sums_of(1 + f, row)[c];
        errors_.data()[f * part_ + c] = own * sums_of(1 + num_formats_ + f, row)[c] - inverse * sums_of(0, row)[c];
      }
    }
    if (metric_) move_by_metric(errors_.data(), error_rows_, metric_->data(), value_dim_, part_, moved_->data());
    // A row counts for all formats or for none.
    squares_.clear();
    for (FloatBuffer const* const errors : {&errors_, metric_ ? &*moved_ : nullptr}) {
      for (std::int64_t r = 0; errors != nullptr && r < 2 * num_formats_; ++r)
        squares_.push_back(sum_of_squares(errors->data() + r * part_, part_));
    }
    if (!std::all_of(squares_.begin(), squares_.end(), [](double x) { return std::isfinite(x); })) return;
    ++sums.rows;
    if (metric_) ++sums.metric_rows;
    for (std::size_t f = 0; f < sums.formats(); ++f) {
      sums.key_error_squared[f] += squares_[f];
      sums.value_error_squared[f] += squares_[sums.formats() + f];
      if (!metric_) continue;
      sums.key_metric_error_squared[f] += squares_[2 * sums.formats() + f];
      sums.value_metric_error_squared[f] += squares_[3 * sums.formats() + f];
    }
  }

  std::int64_t window_;  ///< keys that a row sees; 0: all before it
  LogitMap logit_map_;
  std::int64_t group_;  ///< query heads per KV head
  std::int64_t head_dim_;
  std::int64_t value_dim_;
  std::int64_t part_;  ///< floats of a value, filled up with zeros
  bool latent_;
  std::int64_t max_rows_;
  std::int64_t num_formats_;
  std::int64_t error_rows_;  ///< errors of a row, of keys and of values, rounded up
  std::vector<std::uint8_t> formats_;
  FloatBuffer queries_;  ///< [max_rows, head_dim]
  FloatBuffer keys_;     ///< [block_keys, head_dim]
  FloatBuffer packed_;   ///< [strips, head_dim, strip]: those, or rounded
  FloatBuffer values_;   ///< [block_keys, part]
  FloatBuffer rounded_;  ///< [block_keys, part]: what a format changes of them; of a latent: rounded
  FloatBuffer row_;
  FloatBuffer weights_;                         ///< [max_rows, block_keys]: exact
  FloatBuffer scores_;                          ///< [rows, block_keys]
  FloatBuffer sums_;                            ///< [1 + 2 formats, max_rows, part]
  FloatBuffer errors_;                          ///< [error_rows, part]: keys rounded, values rounded
  std::vector<EntropySoftmax<double>> states_;  ///< [1 + formats, max_rows]
  std::vector<char> valid_;                     ///< [max_rows]: no NaN, no infinity so far
  std::vector<std::uint32_t> words_;
  std::vector<double> squares_;
  std::optional<FloatBuffer> metric_;  ///< [value_dim, part]
  std::optional<FloatBuffer> moved_;   ///< [error_rows, part]: errors after the metric
  SpoiledKeys spoiled_keys_;
  std::int64_t q_ = 0;  ///< position of the first row
  std::int64_t step_ = 1;
  std::int64_t rows_ = 0;
  std::int64_t padded_ = 0;
  std::int64_t first_ = 0;  ///< key of the block
  std::int64_t block_ = 0;  ///< its keys
};

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
