#pragma once

/// @file
/// Running mean and covariance of each query head's queries, before rotary embedding, on the CPU.

#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/score/detail/check_rows.hpp>
#include <headaware/score/score_features.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Mean and covariance of each query head's queries, gathered chunk by chunk in double precision: the same
/// however the queries are cut into chunks and those merged, but for rounding.
/// @par Cost  num_query_heads · head_dim² doubles
/// @par Source  merging: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample
///              Variances, 1979
class QueryMoments {
 public:
  /// @throws ArgumentError on counts that are not positive
  QueryMoments(std::int32_t num_query_heads, std::int64_t head_dim)
      : num_query_heads_(num_query_heads), head_dim_(head_dim) {
    ScoreFeatures{num_query_heads, 1, head_dim, 1}.validate("QueryMoments");
    auto const dim = static_cast<std::size_t>(head_dim);
    heads_.assign(static_cast<std::size_t>(num_query_heads),
                  {std::vector<double>(dim), std::vector<double>(dim * dim)});
  }

  [[nodiscard]] std::int32_t num_query_heads() const { return num_query_heads_; }
  [[nodiscard]] std::int64_t head_dim() const { return head_dim_; }
  /// Queries per head so far.
  [[nodiscard]] std::int64_t count() const { return count_; }
  /// [head_dim]; zeros before the first query. @pre 0 <= query_head < num_query_heads()
  [[nodiscard]] std::span<double const> mean(std::int32_t query_head) const { return head(query_head).mean; }
  /// An entry of the covariance (over all queries, not one less); 0 before the first query.
  [[nodiscard]] double covariance(std::int32_t query_head, std::int64_t a, std::int64_t b) const {
    double const sum = head(query_head).products[static_cast<std::size_t>(a * head_dim_ + b)];
    return count_ > 0 ? sum / static_cast<double>(count_) : 0;
  }

  /// @brief Adds one sequence's queries.
  /// @param queries   over query heads, in the layout's order; host. Float, float16 or bfloat16
  /// @param sequence  of the layout @param begin, end  tokens of it
  /// @param rotation  as in `score_rows`: what queries after rotary embedding are turned back by
  /// @throws ArgumentError on null or misaligned queries, a layout without these, and as `score_rows` of the rotation
  /// @par Cost  O(queries · head_dim²); a buffer of one head's queries per thread
  template <class T, class Layout, class Rotation = KeepPositions>
  void add(T const* queries, Layout const& layout, std::int64_t sequence, std::int64_t begin, std::int64_t end,
           Rotation const& rotation = {}) {
    static_assert(check_layout<Layout>());
    constexpr auto where = "QueryMoments::add";
    require(sequence >= 0, "sequence", ">= 0", sequence, where);
    require(begin >= 0 && begin <= end, "tokens", "[begin, end) with 0 <= begin <= end", {"[", begin, ", ", end, ")"},
            where);
    detail::check_scored_layout(layout, {sequence + 1, end}, num_query_heads_, head_dim_, "queries", where);
    if (begin == end) return;
    require_pointer(queries, "queries", where);
    require_aligned(queries, "queries", where);
    detail::check_tables(
        layout, sequence + 1,
        [&](std::int64_t s) {
          return std::array{detail::TokenRange{begin, s == sequence ? end : begin}};
        },
        where);
    if constexpr (std::is_same_v<Rotation, KeyRotation>) {
      require(rotation.rotary_dim() <= head_dim_, "rotary_dim", {"at most head_dim, ", head_dim_},
              rotation.rotary_dim(), where);
      std::vector<std::int32_t> const lengths(static_cast<std::size_t>(sequence + 1), static_cast<std::int32_t>(end));
      detail::check_positions(rotation, lengths, where);
    }
    QueryMoments chunk(num_query_heads_, head_dim_);
    chunk.count_ = end - begin;
    auto const make = [&] { return std::vector<double>(static_cast<std::size_t>((end - begin) * head_dim_)); };
    detail::parallel_for(num_query_heads_, 1, true, make, [&](std::vector<double>& rows, std::int64_t h) {
      for (std::int64_t t = begin; t < end; ++t) {
        double* const row = rows.data() + (t - begin) * head_dim_;
        for (std::int64_t c = 0; c < head_dim_; ++c) {
          row[c] = static_cast<double>(to_float(queries[layout.offset(sequence, h, t, c)]));
        }
        if constexpr (std::is_same_v<Rotation, KeyRotation>) turn_back(rotation, sequence, t, row);
      }
      chunk.heads_[static_cast<std::size_t>(h)].take(rows, head_dim_);
    });
    merge(chunk);
  }

  /// @brief Adds what another one has gathered. @throws ArgumentError if it has other counts of heads or channels
  void merge(QueryMoments const& other) {
    constexpr auto where = "QueryMoments::merge";
    require(other.num_query_heads_ == num_query_heads_, "query heads", num_query_heads_, other.num_query_heads_, where);
    require(other.head_dim_ == head_dim_, "head_dim", head_dim_, other.head_dim_, where);
    if (other.count_ == 0) return;
    auto const mine = static_cast<double>(count_);
    auto const theirs = static_cast<double>(other.count_);
    double const all = mine + theirs;
    std::vector<double> apart(static_cast<std::size_t>(head_dim_));
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      Head& to = heads_[h];
      Head const& from = other.heads_[h];
      for (std::size_t c = 0; c < apart.size(); ++c) apart[c] = from.mean[c] - to.mean[c];
      for (std::size_t a = 0; a < apart.size(); ++a) {
        for (std::size_t b = 0; b < apart.size(); ++b) {
          std::size_t const at = a * apart.size() + b;
          to.products[at] += from.products[at] + apart[a] * apart[b] * (mine * theirs / all);
        }
      }
      for (std::size_t c = 0; c < apart.size(); ++c) to.mean[c] += apart[c] * (theirs / all);
    }
    count_ += other.count_;
  }

 private:
  struct Head {
    std::vector<double> mean;      ///< [head_dim]
    std::vector<double> products;  ///< [head_dim, head_dim], of deviations from the mean

    /// @param rows  [queries, head_dim], left as deviations
    void take(std::vector<double>& rows, std::int64_t dim) {
      auto const width = static_cast<std::size_t>(dim);
      std::size_t const count = rows.size() / width;
      for (std::size_t i = 0; i < rows.size(); ++i) mean[i % width] += rows[i] / static_cast<double>(count);
      for (std::size_t i = 0; i < rows.size(); ++i) rows[i] -= mean[i % width];
      for (std::size_t row = 0; row < count; ++row) {
        double const* const x = rows.data() + row * width;
        for (std::size_t a = 0; a < width; ++a) {
          for (std::size_t b = 0; b < width; ++b) products[a * width + b] += x[a] * x[b];
        }
      }
    }
  };

  static void turn_back(KeyRotation const& rotation, std::int64_t sequence, std::int64_t token, double* row) {
    std::int64_t const first = rotation.distance(sequence, token, 0);
    for (std::int32_t i = 0; i < rotation.rotary_dim() / 2; ++i) {
      RotaryPair const pair = rotary_pair(rotation, i);
      auto a = static_cast<float>(row[pair.a]);
      auto b = static_cast<float>(row[pair.b]);
      rotation.turn_back(rotation.distance_of_pair(first, sequence, token, 0, i), i, a, b);
      row[pair.a] = static_cast<double>(a);
      row[pair.b] = static_cast<double>(b);
    }
  }

  [[nodiscard]] Head const& head(std::int32_t query_head) const { return heads_[static_cast<std::size_t>(query_head)]; }

  std::int32_t num_query_heads_;
  std::int64_t head_dim_;
  std::int64_t count_ = 0;
  std::vector<Head> heads_;
};

HEADAWARE_NAMESPACE_END
