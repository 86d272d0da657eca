#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/detail/row_kernels.hpp>
#include <headaware/attention/detail/weigh_logits.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Hyperbolic tangent, to about 3e-7 of the result.
inline simd::Floats tanh(simd::Floats y) {
  // tanh |y| = (1 - t) / (1 + t) with t = exp(-2 |y|), which cancels where y is small: there, the series.
  simd::Floats const size = y < 0.0F ? -y : y;
  simd::Floats const t = weights_of(size * (-2 * log2_e));
  simd::Floats const large = (1.0F - t) / (1.0F + t);
  simd::Floats const z = y * y;
  simd::Floats p = z * (62.0F / 2835) - 17.0F / 315;
  p = p * z + 2.0F / 15;
  p = p * z - 1.0F / 3;
  simd::Floats const small = y + y * (p * z);
  return size < 0.25F ? small : (y < 0.0F ? -large : large);
}

/// Maps a block's products to logits in base 2, in place.
inline void map_logits(LogitMap const& map, float* scores) {
  for (int i = 0; i < attend_block; i += simd::lanes) {
    simd::Floats x = simd::load(scores + i);
    if (map.inner == 0) {
      x *= map.outer;
    } else {
      x = tanh(x * map.inner) * map.outer;
    }
    simd::store(scores + i, x);
  }
}

/// Memory of a thread's tiles: kept, so that later calls allocate nothing.
struct QueryTileBuffers {
  FloatBuffer queries;  ///< [queries, head_dim]
  FloatBuffer scores;   ///< [queries, attend_block]
  FloatBuffer rows;     ///< [attend_block, channels]
  FloatBuffer sums;     ///< [queries, value_dim]

  static QueryTileBuffers& of_thread() {
    thread_local QueryTileBuffers buffers;
    return buffers;
  }
};

/// One thread's attention of some query rows of a segment over a KV split, block by block: each row is read once for
/// all of them.
class QueryTile {
 public:
  /// Query rows of a tile, at most.
  static constexpr std::int64_t max_queries = 32;
  /// The same over a latent, whose rows are wide and serve all query heads.
  static constexpr std::int64_t max_latent_queries = 128;

  /// @param queries  rows, at most
  QueryTile(AttentionShape const& shape, AttentionOptions const& options, std::int64_t queries)
      : shape_(shape),
        options_(options),
        map_(logit_map(shape, options)),
        window_(attention_window(options)),
        key_channels_(whole_vectors(shape.head_dim)),
        value_channels_(whole_vectors(shape.output_dim())) {
    auto const size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    QueryTileBuffers& buffers = QueryTileBuffers::of_thread();
    queries_ = buffers.queries.grow(size(queries * key_channels_));
    scores_ = buffers.scores.grow(size(queries * attend_block));
    rows_ = buffers.rows.grow(size(attend_block * std::max(key_channels_, value_channels_)));
    sums_ = buffers.sums.grow(size(queries * value_channels_));
  }

  /// Takes query rows [begin, begin + count) of a head.
  /// @param with_sinks  whether their softmaxes begin from the learned sinks: in one split of a segment
  template <class Q, class Layout>
  void take_queries(AttentionQueries<Q, Layout> const& queries, std::int64_t sequence, std::int64_t kv_head,
                    std::int64_t begin, std::int64_t count, bool with_sinks) {
    std::int32_t const* const first_positions = options_.first_positions;
    count_ = count;
    for (std::int64_t q = 0; q < count; ++q) {
      QueryRow const row(shape_, sequence, kv_head, begin + q);
      float* const to = queries_ + q * key_channels_;
      for (std::int64_t c = 0; c < shape_.head_dim; ++c) {
        to[c] = to_float(queries.data[queries.layout.offset(row.sequence, row.head, row.token, c)]);
      }
      std::fill(to + shape_.head_dim, to + key_channels_, 0.0F);
      if (first_positions != nullptr) {
        query_positions_[static_cast<std::size_t>(q)] = std::int64_t{first_positions[sequence]} + row.token;
      }
      bool const has_sink = with_sinks && options_.sinks != nullptr;
      parts_[static_cast<std::size_t>(q)] =
          has_sink ? OnlineSoftmax<float>::of_sink(options_.sinks[row.head]) : OnlineSoftmax<float>{};
    }
    masked_ = first_positions != nullptr;
    partly_seen_ = false;
    std::fill_n(sums_, count * value_channels_, 0.0F);
  }

  /// Attends to rows [begin, end) of the head. @param values  nullptr: a latent's, the first channels of the keys
  template <class T, class Head>
  void attend(Head const& head, T const* keys, T const* values, std::int64_t begin, std::int64_t end) {
    for (std::int64_t first = begin; first < end; first += attend_block) {
      std::int64_t const count = std::min<std::int64_t>(attend_block, end - first);
      if (masked_ && !find_positions(head, first, count)) continue;
      auto const add_values = [&](auto const* const* rows) {
        if (partly_seen_) {
          weigh_seen_rows(head, rows, count);
        } else {
          weigh_rows(scores_, count_, rows, count, value_channels_, sums_);
        }
      };
      with_rows(head, keys, first, count, shape_.head_dim, key_channels_, [&](auto const* const* rows) {
        score_rows(queries_, count_, rows, count, key_channels_, scores_);
        for (std::int64_t q = 0; q < count_; ++q) {
          map_logits(map_, scores_ + q * attend_block);
          if (partly_seen_) hide_rows(head, q, count);
          weigh(q, count);
        }
        if (values == nullptr) add_values(rows);
      });
      if (values != nullptr) {
        with_rows(head, values, first, count, shape_.output_dim(), value_channels_, add_values);
      }
    }
  }

  [[nodiscard]] OnlineSoftmax<float> const& part(std::int64_t q) const { return parts_[static_cast<std::size_t>(q)]; }
  /// [value_dim()], weighted by 2^(logit - part(q).max).
  [[nodiscard]] float* sums(std::int64_t q) const { return sums_ + q * value_channels_; }
  [[nodiscard]] std::int64_t value_dim() const { return value_channels_; }

 private:
  /// Positions of a block's rows. @return whether any query sees any row
  template <class Head>
  bool find_positions(Head const& head, std::int64_t first, std::int64_t count) {
    partly_seen_ = false;
    if constexpr (requires { head.position(first); }) {
      bool any = false;
      bool all = true;
      std::int64_t const first_query = query_positions_.front();
      std::int64_t const last_query = query_positions_[static_cast<std::size_t>(count_ - 1)];
      for (std::int64_t k = 0; k < count; ++k) {
        positions_[k] = head.position(first + k);
        any = any || is_seen_by_any(head, positions_[k], first_query, last_query, window_);
        all = all && is_seen(head, positions_[k], first_query, window_) &&
              is_seen(head, positions_[k], last_query, window_);
      }
      partly_seen_ = !all;
      return any;
    }
    return true;
  }

  /// Hides the rows that a query does not see.
  template <class Head>
  void hide_rows(Head const& head, std::int64_t q, std::int64_t count) {
    float* const scores = scores_ + q * attend_block;
    std::int64_t const query = query_positions_[static_cast<std::size_t>(q)];
    for (std::int64_t k = 0; k < count; ++k)
      scores[k] = is_seen(head, positions_[k], query, window_) ? scores[k] : hidden_logit;
  }

  /// Adds to each query the rows that it sees and no others, as a hidden row may hold NaN. Not inlined: the loop over
  /// rows that all queries see would get slower.
  template <class E, class Head>
  [[gnu::noinline]] void weigh_seen_rows(Head const& head, E const* const* rows, std::int64_t count) {
    for (std::int64_t q = 0; q < count_; ++q) {
      float const* const scores = scores_ + q * attend_block;
      std::int64_t const query = query_positions_[static_cast<std::size_t>(q)];
      float weights[attend_block] = {};
      E const* seen_rows[attend_block];
      std::int64_t seen = 0;
      for (std::int64_t k = 0; k < count; ++k) {
        if (!is_seen(head, positions_[k], query, window_)) continue;
        weights[seen] = scores[k];
        seen_rows[seen++] = rows[k];
      }
      if (seen == 0) continue;
      std::fill(seen_rows + seen, seen_rows + attend_block, seen_rows[seen - 1]);
      weigh_rows(weights, 1, seen_rows, seen, value_channels_, sums_ + q * value_channels_);
    }
  }

  /// Calls `f` with pointers to a block's rows: in the cache itself, or converted to floats where that saves
  /// converting them again and again, or where rows are no whole vectors.
  template <class T, class Head, class F>
  void with_rows(Head const& head, T const* data, std::int64_t first, std::int64_t count, std::int64_t channels,
                 std::int64_t padded, F const& f) {
    constexpr std::int64_t few = 8;
    if (channels == padded && (std::is_same_v<T, float> || count_ <= few)) {
      T const* rows[attend_block];
      for (std::int64_t k = 0; k < attend_block; ++k) {
        // Blocks are worked on in whole groups of rows: those beyond the end are the last one again.
        rows[k] = k < count ? data + head.offset(first + k, channels) : rows[k - 1];
      }
      f(static_cast<T const* const*>(rows));
      return;
    }
    float const* rows[attend_block];
    for (std::int64_t k = 0; k < attend_block; ++k) {
      if (k >= count) {
        rows[k] = rows[k - 1];
        continue;
      }
      T const* const from = data + head.offset(first + k, channels);
      float* const to = rows_ + k * padded;
      std::int64_t c = 0;
      for (; c + simd::lanes <= channels; c += simd::lanes) simd::store(to + c, simd::load_floats(from + c));
      for (; c < channels; ++c) to[c] = to_float(from[c]);
      std::fill(to + channels, to + padded, 0.0F);
      rows[k] = to;
    }
    f(static_cast<float const* const*>(rows));
  }

  /// Turns a query's logits into weights, and adds them to its softmax.
  void weigh(std::int64_t q, std::int64_t count) {
    float* const scores = scores_ + q * attend_block;
    std::fill(scores + count, scores + attend_block, hidden_logit);
    weigh_logits(parts_[static_cast<std::size_t>(q)], scores, attend_block, sums(q), value_channels_);
  }

  AttentionShape shape_;
  AttentionOptions options_;
  LogitMap map_;
  std::int64_t window_;
  std::int64_t key_channels_;
  std::int64_t value_channels_;
  std::int64_t count_ = 0;
  bool masked_ = false;
  bool partly_seen_ = false;  ///< some query does not see some row of the block
  float* queries_;            ///< of `QueryTileBuffers`
  float* scores_;
  float* rows_;
  float* sums_;
  std::array<OnlineSoftmax<float>, max_latent_queries> parts_{};
  std::array<std::int64_t, max_latent_queries> query_positions_{};  ///< ascending
  std::int64_t positions_[attend_block] = {};
};

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
