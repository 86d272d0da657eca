#pragma once

/// @file
/// The CPU pass: attention statistics from queries and keys, blocked, without an S×S buffer.

#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/retention_rows.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/stats/head_sums.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/row_state.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief What one query head adds up over one chunk.
struct HeadChunk {
  ChunkSums chunk;
  RetentionSums retention;  ///< empty unless a grid was asked for
};

/// @brief The queries, keys and values of one layer and one sequence, host pointers; positions are
/// 0 … tokens - 1, and queries and keys are rotated as the engine has them.
/// @tparam T  float, float16 or bfloat16
template <class T, class QueryLayout, class KeyLayout, class ValueLayout = KeyLayout>
struct LayerQkv {
  T const* queries = nullptr;
  T const* keys = nullptr;
  T const* values = nullptr;   ///< nullptr: mass only
  QueryLayout query_layout{};  ///< over query heads
  KeyLayout key_layout{};      ///< over KV heads
  ValueLayout value_layout{};  ///< over KV heads
  std::int32_t query_heads = 0;
  std::int32_t kv_heads = 0;
  std::int64_t tokens = 0;
  std::int64_t head_dim = 0;
  std::int64_t sequence = 0;  ///< index of the sequence in the layouts
};

namespace detail {

/// The score of a key that a row does not see: weighs nothing, and is finite, so that what is not is a mistake.
inline constexpr float unseen = -std::numeric_limits<float>::max();

/// The largest of `count` scores, or NaN if one is NaN or infinite; fills the buffer up to whole vectors.
inline float largest_score(float* scores, std::int64_t count) {
  std::int64_t const vectors = (count + simd::lanes - 1) / simd::lanes;
  for (std::int64_t i = count; i < vectors * simd::lanes; ++i) scores[i] = unseen;
  simd::Floats top = simd::load(scores);
  simd::Floats poison = top - top;
  for (std::int64_t v = 1; v < vectors; ++v) {
    simd::Floats const x = simd::load(scores + v * simd::lanes);
    top = simd::maximum(top, x);
    poison += x - x;
  }
  return simd::largest(top) + simd::sum(poison);
}

/// The softmax state, relative to `max`, of scores filled up to whole vectors.
/// @tparam Keep  leave the weights 2^(score - max) where the scores were
template <bool Keep>
RowState weigh_scores(float* scores, std::int64_t count, float max) {
  simd::Floats const least = simd::broadcast(-126.0F);
  simd::Floats sum{};
  simd::Floats weighted{};
  for (std::int64_t i = 0; i < count; i += simd::lanes) {
    simd::Floats const x = simd::maximum(simd::load(scores + i) - max, least);
    simd::Floats const e = simd::exp2(x);
    sum += e;
    weighted += e * x;
    if constexpr (Keep) simd::store(scores + i, e);
  }
  return {max, simd::sum(sum), simd::sum(weighted)};
}

/// What is kept of a row while its keys pass by.
struct RowInProgress {
  RowState all;
  RowState recent;    ///< keys of the chunk's last part
  bool valid = true;  ///< no NaN, no infinity so far
};

/// Statistics of some query rows of one head, all their keys in one pass.
class RowPass {
  using B = ScoreBlocking;

 public:
  RowPass(ObserverParameters const& parameters, AttentionScore const& score, std::int64_t tokens, std::int64_t head_dim,
          bool with_values)
      : parameters_(parameters),
        score_(score),
        head_dim_(head_dim),
        near_(std::max<std::int64_t>(parameters.num_distances, parameters.local_window + 1)),
        recent_begin_(
            static_cast<std::int64_t>(std::floor(static_cast<double>(tokens) * (1 - parameters.recent_ratio)))),
        packed_(static_cast<std::size_t>(B::block_keys * head_dim)),
        queries_(static_cast<std::size_t>(B::pack_rows * head_dim)),
        scores_(static_cast<std::size_t>(B::block_rows * B::block_keys)),
        near_scores_(static_cast<std::size_t>(B::pack_rows * near_)),
        sink_scores_(static_cast<std::size_t>(B::pack_rows) * static_cast<std::size_t>(parameters.sink_size)),
        rows_(B::pack_rows) {
    if (parameters.retention) {
      retention_.emplace(*parameters.retention, B::pack_rows, head_dim, with_values);
      values_.emplace(static_cast<std::size_t>(with_values ? B::block_keys * retention_->channels() : 0));
    }
  }

  static constexpr std::int64_t max_rows = B::pack_rows;

  /// Adds `count` query rows, at most `max_rows`, to `sums`: queries q, q + stride, …
  template <class Layer>
  void run(Layer const& layer, std::int32_t head, std::int64_t q, std::int64_t count, HeadChunk& sums) {
    std::int32_t const kv_head = head / (layer.query_heads / layer.kv_heads);
    stride_ = parameters_.query_stride;
    std::int64_t const end = q + (count - 1) * stride_ + 1;  // keys before it are seen
    pack_queries(layer, head, q, count);
    std::fill(rows_.begin(), rows_.end(), RowInProgress{});
    if (retention_) {
      retention_->clear(B::pack_rows);
      if (retention_->with_values()) {
        pack_values(layer, kv_head, 0, std::min(retention_->sinks(), layer.tokens), retention_->sink_values());
      }
    }
    std::int64_t const oldest =
        score_.sliding_window > 0 ? std::max<std::int64_t>(0, q - score_.sliding_window + 1) : 0;
    for (std::int64_t first = oldest / B::block_keys * B::block_keys; first < end; first += B::block_keys) {
      std::int64_t const keys = std::min<std::int64_t>(B::block_keys, end - first);
      pack_keys(layer, kv_head, first, keys);
      if (retention_ && retention_->with_values()) pack_values(layer, kv_head, first, keys, values_->data());
      // Rows before the block's first key see none of it.
      std::int64_t const start = std::max<std::int64_t>(0, first - q) / stride_ / B::block_rows * B::block_rows;
      for (std::int64_t row = start; row < count; row += B::block_rows) {
        std::int64_t const rows = std::min<std::int64_t>(count - row, B::block_rows);
        std::int64_t const nearest = q + (row + rows - 1) * stride_;
        std::int64_t const seen = std::min(keys, nearest + 1 - first);
        if (seen <= 0) continue;
        score_block(queries_.data() + row * head_dim_, packed_.data(), head_dim_, seen, scores_.data());
        for (std::int64_t r = 0; r < rows; ++r)
          add_scores(row + r, q + (row + r) * stride_, first, seen, scores_.data() + r * B::block_keys);
        if (retention_) {
          for (std::int64_t r = rows; r < B::block_rows; ++r)
            std::fill_n(scores_.data() + r * B::block_keys, seen, 0.0F);
          retention_->add(row, rows, q + row * stride_, stride_, first, seen, scores_.data(), B::block_keys,
                          values_->data());
        }
      }
    }
    for (std::int64_t r = 0; r < count; ++r) finish(r, q + r * stride_, sums);
  }

 private:
  template <class Layer>
  void pack_queries(Layer const& layer, std::int32_t head, std::int64_t q, std::int64_t count) {
    constexpr float log2e = 1.4426950408889634F;
    // A soft cap needs the logit itself; without one the scale and the base go into the query.
    float const factor = score_.soft_cap > 0 ? score_.scale / score_.soft_cap : score_.scale * log2e;
    std::int64_t const rows = (count + B::block_rows - 1) / B::block_rows * B::block_rows;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t d = 0; d < head_dim_; ++d) {
        float value = 0;
        if (r < count)
          value = to_float(layer.queries[layer.query_layout.offset(layer.sequence, head, q + r * stride_, d)]) * factor;
        queries_.data()[r * head_dim_ + d] = value;
      }
    }
  }

  template <class Layer>
  void pack_keys(Layer const& layer, std::int32_t kv_head, std::int64_t first, std::int64_t count) {
    std::int64_t const padded = (count + B::strip - 1) / B::strip * B::strip;
    for (std::int64_t key = 0; key < padded; ++key) {
      float* const to = packed_.data() + key / B::strip * B::strip * head_dim_ + key % B::strip;
      for (std::int64_t d = 0; d < head_dim_; ++d) {
        to[d * B::strip] =
            key < count ? to_float(layer.keys[layer.key_layout.offset(layer.sequence, kv_head, first + key, d)]) : 0;
      }
    }
  }

  template <class Layer>
  void pack_values(Layer const& layer, std::int32_t kv_head, std::int64_t first, std::int64_t count, float* to) {
    std::int64_t const channels = retention_->channels();
    for (std::int64_t key = 0; key < count; ++key) {
      for (std::int64_t d = 0; d < channels; ++d) {
        to[key * channels + d] =
            d < head_dim_ ? to_float(layer.values[layer.value_layout.offset(layer.sequence, kv_head, first + key, d)])
                          : 0;
      }
    }
  }

  /// One row against keys [first, first + seen), of which it sees those up to its own. Leaves the
  /// weights, relative to the row's maximum so far, where the scores were.
  void add_scores(std::int64_t index, std::int64_t q, std::int64_t first, std::int64_t seen, float* scores) {
    RowInProgress& row = rows_[static_cast<std::size_t>(index)];
    std::int64_t const count = std::clamp<std::int64_t>(q + 1 - first, 0, seen);
    std::int64_t skipped = 0;
    if (score_.sliding_window > 0) skipped = std::clamp<std::int64_t>(q - score_.sliding_window + 1 - first, 0, count);
    if (skipped == count) {
      if (retention_) std::fill_n(scores, seen, 0.0F);
      return;
    }
    if (score_.soft_cap > 0) {
      constexpr float log2e = 1.4426950408889634F;
      for (std::int64_t i = skipped; i < count; ++i) scores[i] = score_.soft_cap * log2e * std::tanh(scores[i]);
    }
    std::fill_n(scores, skipped, unseen);
    for (std::int64_t k = first; k < std::min<std::int64_t>(parameters_.sink_size, first + count); ++k) {
      sink_scores_[static_cast<std::size_t>(index * parameters_.sink_size + k)] = scores[k - first];
    }
    for (std::int64_t k = std::max(first + skipped, q - near_ + 1); k < first + count; ++k) {
      near_scores_[static_cast<std::size_t>(index * near_ + q - k)] = scores[k - first];
    }

    float const top = largest_score(scores, count);
    if (!std::isfinite(top)) row.valid = false;
    if (!row.valid) {
      if (retention_) std::fill_n(scores, seen, 0.0F);
      return;
    }
    if (top > row.all.max || row.all.sum == 0) {
      if (retention_ && row.all.sum > 0)
        retention_->rescale(index, static_cast<float>(std::exp2(static_cast<double>(row.all.max) - top)));
      row.all.rescale(top);
      row.recent.rescale(top);
    }
    std::int64_t const split = std::clamp<std::int64_t>(recent_begin_ - first, 0, count);
    if (split < count && split > 0) {
      // The block crosses into the recent part: a copy, as a part needs room to be filled up.
      float part[B::block_keys + simd::lanes];
      std::copy(scores + split, scores + count, part);
      largest_score(part, count - split);
      row.recent.merge(weigh_scores<false>(part, count - split, row.all.max));
    }
    RowState const state =
        retention_ ? weigh_scores<true>(scores, count, row.all.max) : weigh_scores<false>(scores, count, row.all.max);
    if (split == 0) row.recent.merge(state);
    row.all.merge(state);
    if (retention_) {
      std::fill_n(scores, skipped, 0.0F);
      std::fill(scores + count, scores + seen, 0.0F);
    }
  }

  void finish(std::int64_t index, std::int64_t q, HeadChunk& sums) {
    RowInProgress const& row = rows_[static_cast<std::size_t>(index)];
    ChunkSums& chunk = sums.chunk;
    if (!row.valid || !(row.all.sum > 0)) {
      ++chunk.invalid_rows;
      return;
    }
    ++chunk.rows;
    double const entropy = row.all.entropy();
    chunk.entropy += entropy;
    chunk.max_attention += row.all.max_probability();
    if (q > 0) {
      ++chunk.uniformity_rows;
      chunk.uniformity += std::log(static_cast<double>(q + 1)) - entropy;
    }
    std::int64_t const oldest =
        score_.sliding_window > 0 ? std::max<std::int64_t>(0, q - score_.sliding_window + 1) : 0;
    for (std::int64_t k = oldest; k < std::min<std::int64_t>(parameters_.sink_size, q + 1); ++k) {
      chunk.sink += row.all.probability(sink_scores_[static_cast<std::size_t>(index * parameters_.sink_size + k)]);
    }
    for (std::int64_t d = 0; d < near_ && q - d >= oldest; ++d) {
      double const p = row.all.probability(near_scores_[static_cast<std::size_t>(index * near_ + d)]);
      if (d < parameters_.num_distances) chunk.distances[static_cast<std::size_t>(d)] += p;
      if (d <= parameters_.local_window) chunk.local += p;
    }
    if (row.recent.sum > 0) chunk.recent += row.recent.sum / row.all.sum;
    if (retention_) retention_->finish(index, q, row.all.sum, sums.retention);
  }

  ObserverParameters parameters_;
  AttentionScore score_;
  std::int64_t head_dim_;
  std::int64_t stride_ = 1;
  std::int64_t near_;          ///< distances whose scores are kept
  std::int64_t recent_begin_;  ///< first key of the chunk's recent part
  FloatBuffer packed_;         ///< [strips, head_dim, strip]
  FloatBuffer queries_;        ///< [rows, head_dim]
  FloatBuffer scores_;         ///< [block_rows, block_keys]
  std::vector<float> near_scores_;
  std::vector<float> sink_scores_;
  std::vector<RowInProgress> rows_;
  std::optional<RetentionRows> retention_;
  std::optional<FloatBuffer> values_;  ///< [block_keys, channels]
};

}  // namespace detail

/// @brief The statistics of one chunk: all query heads of one layer of one sequence, on the CPU.
/// @return [query_heads]
/// @throws ArgumentError on shapes that make no sense
/// @note   Rows with a NaN or infinite score are counted in `invalid_rows` and nowhere else.
///         Deterministic: threads share out tiles of a fixed size, which are merged in order.
/// @par Cost  query_heads · tokens² · head_dim / 2 multiplications, twice that with values; the memory
///            of a thread does not depend on `tokens`
template <class T, class QueryLayout, class KeyLayout, class ValueLayout>
[[nodiscard]] std::vector<HeadChunk> observe_chunk(LayerQkv<T, QueryLayout, KeyLayout, ValueLayout> const& layer,
                                                   AttentionScore const& score,
                                                   ObserverParameters const& parameters = {}) {
  constexpr auto where = "observe_chunk";
  static_assert(check_layout<QueryLayout>() && check_layout<KeyLayout>() && check_layout<ValueLayout>());
  parameters.validate();
  score.validate();
  detail::require(layer.kv_heads > 0, "kv_heads", "> 0", layer.kv_heads, where);
  bool const grouped = layer.query_heads > 0 && layer.query_heads % layer.kv_heads == 0;
  detail::require(grouped, "query_heads", "a multiple of " + std::to_string(layer.kv_heads) + " KV heads",
                  layer.query_heads, where);
  detail::require(layer.tokens >= 0, "tokens", ">= 0", layer.tokens, where);
  detail::require(layer.head_dim > 0, "head_dim", "> 0", layer.head_dim, where);
  bool const given = layer.queries != nullptr && layer.keys != nullptr;
  detail::require(layer.tokens == 0 || given, "queries and keys", "pointers", "nullptr", where);

  HeadChunk empty{ChunkSums(static_cast<std::size_t>(parameters.num_distances)),
                  parameters.retention ? RetentionSums(*parameters.retention) : RetentionSums()};
  std::int64_t const queries =
      layer.tokens <= parameters.first_query
          ? 0
          : (layer.tokens - parameters.first_query + parameters.query_stride - 1) / parameters.query_stride;
  std::int64_t const tile = detail::RowPass::max_rows;
  std::int64_t const tiles = (queries + tile - 1) / tile;
  std::int64_t const work = tiles * layer.query_heads;
  std::vector<HeadChunk> parts(static_cast<std::size_t>(work), empty);
#pragma omp parallel
  {
    detail::RowPass pass(parameters, score, layer.tokens, layer.head_dim, layer.values != nullptr);
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < work; ++i) {
      // The rows with most keys first, so that the last tile to finish is a short one.
      std::int64_t const first = (tiles - 1 - i / layer.query_heads) * tile;
      auto const head = static_cast<std::int32_t>(i % layer.query_heads);
      pass.run(layer, head, parameters.first_query + first * parameters.query_stride, std::min(tile, queries - first),
               parts[static_cast<std::size_t>(i)]);
    }
  }
  std::vector<HeadChunk> result(static_cast<std::size_t>(layer.query_heads), empty);
  for (std::int64_t i = work - 1; i >= 0; --i) {
    HeadChunk& head = result[static_cast<std::size_t>(i % layer.query_heads)];
    head.chunk.merge(parts[static_cast<std::size_t>(i)].chunk);
    head.retention.merge(parts[static_cast<std::size_t>(i)].retention);
  }
  return result;
}

HEADAWARE_NAMESPACE_END
