#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/coded_blocks.hpp>
#include <headaware/attention/detail/coded_rows.hpp>
#include <headaware/attention/detail/integer_rows.hpp>
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
  IntegerQueries integers;

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
  /// @param queries         rows, at most
  /// @param key_channels    floats of a query: whole vectors
  /// @param value_channels  floats of a sum: whole vectors
  QueryTile(AttentionShape const& shape, AttentionOptions const& options, std::int64_t queries,
            std::int64_t key_channels, std::int64_t value_channels)
      : shape_(shape),
        options_(options),
        map_(logit_map(shape, options)),
        window_(attention_window(options)),
        key_channels_(key_channels),
        value_channels_(value_channels) {
    auto const size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    QueryTileBuffers& buffers = QueryTileBuffers::of_thread();
    queries_ = buffers.queries.grow(size(queries * key_channels_));
    scores_ = buffers.scores.grow(size(queries * attend_block));
    rows_ = buffers.rows.grow(size(attend_block * std::max(key_channels_, value_channels_)));
    sums_ = buffers.sums.grow(size(queries * value_channels_));
    integers_ = &buffers.integers;
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
    coded_.forget();
    std::fill_n(sums_, count * value_channels_, 0.0F);
  }

  /// Attends to rows [begin, end) of a head. @param rows  `PlainRows` or `CodedRows`
  template <class Rows>
  void attend(Rows const& rows, std::int64_t begin, std::int64_t end) {
    for_each_seen_block(rows, begin, end, [&](std::int64_t first, std::int64_t count) {
      auto const add_values = [&](auto const& values) { weigh_block(rows, values, count); };
      rows.with_keys(*this, first, count, [&](auto const& keys) {
        find_logits(rows, keys, count);
        for (std::int64_t q = 0; q < count_; ++q) weigh(q, count);
        if (rows.values_in_keys()) add_values(keys);
      });
      if (!rows.values_in_keys()) rows.with_values(*this, first, count, add_values);
    });
  }

  /// Calls `f(q, first, count, logits)` for each query row and block of rows [begin, end) of which some query sees
  /// some; logits [count] in base 2, `hidden_logit` where the query does not see a row. @param rows  as `attend`
  template <class Rows, class F>
  void for_each_logits(Rows const& rows, std::int64_t begin, std::int64_t end, F const& f) {
    for_each_seen_block(rows, begin, end, [&](std::int64_t first, std::int64_t count) {
      rows.with_keys(*this, first, count, [&](auto const& keys) {
        find_logits(rows, keys, count);
        for (std::int64_t q = 0; q < count_; ++q) f(q, first, count, scores_ + q * attend_block);
      });
    });
  }
  /// Adds rows [begin, end) to the queries' softmaxes, without values. @pre  no value channels
  template <class Rows>
  void add_softmax(Rows const& rows, std::int64_t begin, std::int64_t end) {
    for_each_logits(rows, begin, end,
                    [&](std::int64_t q, std::int64_t, std::int64_t count, float*) { weigh(q, count); });
  }

  /// Calls `f` with pointers to a block's rows: in the cache itself, or converted to floats where that saves
  /// converting them again and again, or where rows are no whole vectors.
  /// @param row  (row of the block) to its first element
  template <class Row, class F>
  void with_rows(Row const& row, std::int64_t count, std::int64_t channels, std::int64_t padded, F const& f) {
    using Pointer = decltype(row(0));
    using T = std::remove_cv_t<std::remove_pointer_t<Pointer>>;
    if (channels == padded && (std::is_same_v<T, float> || count_ <= few_queries)) {
      Pointer rows[attend_block];
      for (std::int64_t k = 0; k < attend_block; ++k) {
        // Blocks are worked on in whole groups of rows: those beyond the end are the last one again.
        rows[k] = k < count ? row(k) : rows[k - 1];
      }
      f(static_cast<Pointer const*>(rows));
      return;
    }
    with_floats(count, padded, f, [&](std::int64_t k, float* to) {
      Pointer const from = row(k);
      std::int64_t c = 0;
      for (; c + simd::lanes <= channels; c += simd::lanes) simd::store(to + c, simd::load_floats(from + c));
      for (; c < channels; ++c) to[c] = to_float(from[c]);
      std::fill(to + channels, to + padded, 0.0F);
    });
  }

  /// The same of encoded rows, which stay rotated where they are. @param at  of the codes in a row, in bytes
  template <class Format, class F>
  void with_codes(Format const& format, std::int64_t at, std::int64_t count, std::int64_t channels, std::int64_t padded,
                  F const& f) {
    std::int64_t const blocks = (channels + Format::group - 1) / Format::group;
    using Reader = simd::CodeReader<Format>;
    if constexpr (Reader::reads) {
      std::int64_t const ranges = padded / Reader::channels;
      if (blocks * Format::group == padded && padded % Reader::channels == 0 && ranges <= CodeRanges::most) {
        code_ranges_.read(format, coded_.rows(), at, ranges);
        if constexpr (has_integer_rows<Format>) {
          if (count_ <= few_queries) return f(IntegerRows<Format>{coded_.rows(), at, code_ranges_.scales(0)});
        }
        CodedRow<Format> rows[attend_block];
        for (std::int64_t k = 0; k < attend_block; ++k) rows[k] = {coded_.rows()[k] + at, code_ranges_.scales(k)};
        if (count_ <= few_queries) {
          f(static_cast<CodedRow<Format> const*>(rows));
        } else {
          with_floats(count, padded, f, [&](std::int64_t k, float* to) { decode_codes(rows[k], padded, to); });
        }
        return;
      }
    }
    with_floats(count, padded, f, [&](std::int64_t k, float* to) {
      auto const* const words = reinterpret_cast<std::uint32_t const*>(coded_.rows()[k] + at);
      float block[Format::group];
      for (std::int64_t b = 0; b < blocks; ++b) {
        format.decode(words + b * Format::block_words, block);
        std::copy_n(block, std::min<std::int64_t>(Format::group, padded - b * Format::group), to + b * Format::group);
      }
      std::int64_t const coded = std::min(padded, blocks * Format::group);
      std::fill(to + coded, to + padded, 0.0F);
    });
  }

  /// The query rows that were taken, [count, key channels].
  [[nodiscard]] float* queries() { return queries_; }
  /// Makes the queries ready for rows of integers, after they have been turned.
  void take_integers() {
    if (count_ <= few_queries) integers_->take(queries_, count_, key_channels_);
  }
  [[nodiscard]] std::int64_t query_count() const { return count_; }
  [[nodiscard]] CodedBlocks& coded() { return coded_; }
  [[nodiscard]] std::int64_t key_channels() const { return key_channels_; }

  [[nodiscard]] OnlineSoftmax<float> const& part(std::int64_t q) const { return parts_[static_cast<std::size_t>(q)]; }
  /// [value_dim()], weighted by 2^(logit - part(q).max).
  [[nodiscard]] float* sums(std::int64_t q) const { return sums_ + q * value_channels_; }
  [[nodiscard]] std::int64_t value_dim() const { return value_channels_; }

 private:
  template <class Rows, class F>
  void for_each_seen_block(Rows const& rows, std::int64_t begin, std::int64_t end, F const& f) {
    for (std::int64_t first = begin; first < end; first += attend_block) {
      std::int64_t const count = std::min<std::int64_t>(attend_block, end - first);
      if (!masked_ || find_positions(rows.head, first, count)) f(first, count);
    }
  }
  /// Logits of a block in base 2, hidden where a query does not see a row.
  template <class Rows, class Keys>
  void find_logits(Rows const& rows, Keys const& keys, std::int64_t count) {
    score_block(rows, keys, count);
    for (std::int64_t q = 0; q < count_; ++q) {
      map_logits(map_, scores_ + q * attend_block);
      if (partly_seen_) hide_rows(rows.head, q, count);
    }
  }
  /// Products of a block. What memory is slowest at is the next block: half of it is fetched here.
  template <class Rows, class Keys>
  void score_block(Rows const& rows, Keys const& keys, std::int64_t count) {
    auto const passed = [&](std::int64_t first, std::int64_t end) { rows.fetch_next(*this, first / 2, end / 2); };
    if constexpr (std::is_pointer_v<Keys>) {
      score_rows(queries_, count_, keys, count, key_channels_, scores_, passed);
    } else {
      score_rows(*integers_, count_, keys, count, key_channels_, scores_, passed);
    }
  }
  /// Adds a block's values; half of the next block is fetched here.
  template <class Rows, class Values>
  void weigh_block(Rows const& rows, Values const& values, std::int64_t count) {
    auto const passed = [&](std::int64_t first, std::int64_t end) {
      rows.fetch_next(*this, attend_block / 2 + first / 2, attend_block / 2 + end / 2);
    };
    if constexpr (std::is_pointer_v<Values>) {
      if (partly_seen_) {
        weigh_seen_rows(rows.head, values, count);
        return;
      }
    }
    weigh_rows(scores_, count_, values, count, value_channels_, sums_, passed);
  }

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
  template <class Row, class Head>
  [[gnu::noinline]] void weigh_seen_rows(Head const& head, Row const* rows, std::int64_t count) {
    for (std::int64_t q = 0; q < count_; ++q) {
      float const* const scores = scores_ + q * attend_block;
      std::int64_t const query = query_positions_[static_cast<std::size_t>(q)];
      float weights[attend_block] = {};
      Row seen_rows[attend_block];
      std::int64_t seen = 0;
      for (std::int64_t k = 0; k < count; ++k) {
        if (!is_seen(head, positions_[k], query, window_)) continue;
        weights[seen] = scores[k];
        seen_rows[seen++] = rows[k];
      }
      if (seen == 0) continue;
      std::fill(seen_rows + seen, seen_rows + attend_block, seen_rows[seen - 1]);
      weigh_rows(weights, 1, static_cast<Row const*>(seen_rows), seen, value_channels_, sums_ + q * value_channels_,
                 [](std::int64_t, std::int64_t) {});
    }
  }

  /// Calls `f` with rows of floats. @param fill  (row of the block, [padded]) writes one
  template <class F, class Fill>
  void with_floats(std::int64_t count, std::int64_t padded, F const& f, Fill const& fill) {
    float const* rows[attend_block];
    for (std::int64_t k = 0; k < attend_block; ++k) {
      if (k >= count) {
        rows[k] = rows[k - 1];
        continue;
      }
      fill(k, rows_ + k * padded);
      rows[k] = rows_ + k * padded;
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
  CodeRanges code_ranges_;  ///< of a block's rows
  CodedBlocks coded_;
  IntegerQueries* integers_;
};

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
