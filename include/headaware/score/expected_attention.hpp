#pragma once

/// @file
/// Scores of rows by the attention that queries yet to come are expected to give them, on the CPU.

#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/score/detail/check_rows.hpp>
#include <headaware/score/detail/token_features.hpp>
#include <headaware/score/query_moments.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/score/score_features.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief What queries to expect.
struct ExpectedQueries {
  std::int64_t next_position = 0;  ///< of the first one: mostly the length of the sequence
  std::int64_t tokens = 512;       ///< over whose positions the rotation is averaged
  float scale = 0;                 ///< of q·k; 0: 1 / sqrt(head_dim)

  /// @throws ArgumentError on a negative position or scale, or no tokens
  void validate(Text const& where) const {
    require(next_position >= 0, "next position", ">= 0", next_position, where);
    constexpr std::int64_t most = std::int64_t{1} << 20;
    require(tokens > 0 && tokens <= most, "expected tokens", "in [1, 2^20]", tokens, where);
    require(scale >= 0 && scale <= 3e38F, "scale", "finite and >= 0", scale, where);
  }
};

namespace detail {

/// Mean and covariance of one head's queries, rotated as the positions to come do on average, the scale folded in.
struct ExpectedHead {
  std::vector<float> mean;        ///< [head_dim], times the scale
  std::vector<float> covariance;  ///< [head_dim, head_dim], times half the scale's square

  /// A row of the averaged rotation R has at most two entries: `own` of its channel, `other` of the one that it turns
  /// with, which is `partner`.
  template <class Rotation>
  ExpectedHead(QueryMoments const& moments, std::int32_t query_head, Rotation const& rotation,
               ExpectedQueries const& expected, double scale) {
    auto const dim = static_cast<std::size_t>(moments.head_dim());
    std::vector<double> own(dim, 1);
    std::vector<double> other(dim, 0);
    std::vector<std::size_t> partner(dim);
    for (std::size_t c = 0; c < dim; ++c) partner[c] = c;
    if constexpr (std::is_same_v<Rotation, KeyRotation>) {
      for (std::int32_t i = 0; i < rotation.rotary_dim() / 2; ++i) {
        RotaryPair const pair = rotary_pair(rotation, i);
        auto const a = static_cast<std::size_t>(pair.a);
        auto const b = static_cast<std::size_t>(pair.b);
        double cosines = 0;
        double sines = 0;
        for (std::int64_t t = 0; t < expected.tokens; ++t) {
          float cosine = 1;
          float sine = 0;
          rotation.turn_back(-(expected.next_position + t), i, cosine, sine);
          cosines += static_cast<double>(cosine);
          sines += static_cast<double>(sine);
        }
        auto const count = static_cast<double>(expected.tokens);
        own[a] = own[b] = cosines / count;
        other[a] = -sines / count;
        other[b] = sines / count;
        partner[a] = b;
        partner[b] = a;
      }
    }
    auto const queries = moments.mean(query_head);
    auto const entry = [&](std::size_t a, std::size_t b) {
      return moments.covariance(query_head, static_cast<std::int64_t>(a), static_cast<std::int64_t>(b));
    };
    mean.resize(dim);
    covariance.resize(dim * dim);
    for (std::size_t a = 0; a < dim; ++a) {
      mean[a] = static_cast<float>(scale * (own[a] * queries[a] + other[a] * queries[partner[a]]));
      for (std::size_t b = 0; b < dim; ++b) {
        double const row = own[a] * entry(a, b) + other[a] * entry(partner[a], b);
        double const turned = own[a] * entry(a, partner[b]) + other[a] * entry(partner[a], partner[b]);
        covariance[a * dim + b] = static_cast<float>(scale * scale / 2 * (own[b] * row + other[b] * turned));
      }
    }
  }
};

}  // namespace detail

HEADAWARE_TARGET_BEGIN

/// @brief Scores rows by ln of the attention expected of queries to come, times the norm of the value, on the CPU.
///
/// Queries are taken to be normal with the moments given, rotated as the next positions are on average, so the
/// expectation of exp(q·k) has a closed form: exp(μ·k + kᵀΣk / 2). It is normalised over the rows of each query head,
/// and averaged over the heads of a group.
/// @param moments   of one sequence's queries, or of several texts'
/// @param keys      [sequences, num_kv_heads, rows, head_dim] in the layout's order, as the cache holds them: rotated
///                  for their positions, if at all; host
/// @param values    likewise, [sequences, num_kv_heads, rows, value_dim]; host
/// @param layout    of both, or `KvLayouts`
/// @param features  counts; query heads and `head_dim` those of the moments
/// @param scores    what is written; host; must overlap no input
/// @param rotation  of the model's queries; `KeepPositions`: they are not rotated. What `with_positions` says is not
///                  heeded
/// @throws ArgumentError on null or misaligned pointers, counts that make no sense or differ, no moments, layouts of
///         other counts, scores that overlap, and positions beyond the rotation's table
/// @note   Deterministic. The paper keeps the first tokens whatever their score.
/// @par Cost  O(rows · num_query_heads · head_dim²); a buffer of a head's rows per thread
/// @par Source  Expected Attention, arXiv:2510.00636
template <class T, class Layout, class Rotation = KeepPositions>
void expected_attention(ScoreFeatures const& features, ScoreBatch const& batch, QueryMoments const& moments,
                        ExpectedQueries const& expected, T const* keys, T const* values, Layout const& layout,
                        RowScores const& scores, Rotation const& rotation = {}) {
  constexpr auto where = "expected_attention";
  expected.validate(where);
  require(features.num_kv_heads > 0 && features.num_query_heads % features.num_kv_heads == 0, "query heads",
          {"a multiple of ", features.num_kv_heads, " KV heads"}, features.num_query_heads, where);
  require(moments.num_query_heads() == features.num_query_heads, "query heads of the moments", features.num_query_heads,
          moments.num_query_heads(), where);
  require(moments.head_dim() == features.head_dim, "head_dim of the moments", features.head_dim, moments.head_dim(),
          where);
  require(moments.count() > 0, "queries of the moments", "> 0", moments.count(), where);
  if (!detail::check_scored_keys(features, batch, keys, values, layout, where)) return;
  scores.validate(batch.num_sequences, features.num_kv_heads, batch.tokens, where);
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    require(rotation.rotary_dim() <= features.head_dim, "rotary_dim", {"at most head_dim, ", features.head_dim},
            rotation.rotary_dim(), where);
    std::int64_t const end = expected.next_position + expected.tokens;
    require(rotation.positions() == 0 || end <= rotation.positions(), "positions of expected tokens",
            {"in the rotation's table of ", rotation.positions()}, end - 1, where);
  }
  auto const all = [&](std::int64_t) { return std::array{detail::TokenRange{0, batch.tokens}}; };
  detail::check_source_tables(layout, batch.num_sequences, all, where, where);

  double const scale =
      expected.scale > 0 ? static_cast<double>(expected.scale) : 1 / std::sqrt(static_cast<double>(features.head_dim));
  std::vector<detail::ExpectedHead> heads;
  heads.reserve(static_cast<std::size_t>(features.num_query_heads));
  for (std::int32_t h = 0; h < features.num_query_heads; ++h) heads.emplace_back(moments, h, rotation, expected, scale);
  struct State {
    std::vector<float> row;
    std::vector<float> logits;  ///< [group, rows]
    std::vector<float> norms;   ///< [rows], ln
  };
  std::int64_t const group = features.num_query_heads / features.num_kv_heads;
  std::int64_t const rows = batch.tokens;
  std::int64_t const dim = features.head_dim;
  auto const make = [&] {
    return State{std::vector<float>(static_cast<std::size_t>(std::max(dim, features.value_dim))),
                 std::vector<float>(static_cast<std::size_t>(group * rows)),
                 std::vector<float>(static_cast<std::size_t>(rows))};
  };
  auto const key_layout = detail::keys_of(layout);
  auto const value_layout = detail::values_of(layout);
  bool const keys_side_by_side = detail::rows_contiguous(key_layout, dim);
  bool const values_side_by_side = detail::rows_contiguous(value_layout, features.value_dim);
  detail::parallel_for(batch.num_sequences * features.num_kv_heads, 1, true, make, [&](State& state, std::int64_t i) {
    std::int64_t const sequence = i / features.num_kv_heads;
    std::int64_t const head = i % features.num_kv_heads;
    float* const row = state.row.data();
    for (std::int64_t t = 0; t < rows; ++t) {
      detail::copy_row(values, value_layout, sequence, head, t, features.value_dim, values_side_by_side, row);
      state.norms[static_cast<std::size_t>(t)] = detail::log_norm(row, features.value_dim);
      detail::copy_row(keys, key_layout, sequence, head, t, dim, keys_side_by_side, row);
      for (std::int64_t g = 0; g < group; ++g) {
        detail::ExpectedHead const& query = heads[static_cast<std::size_t>(head * group + g)];
        float logit = detail::dot(query.mean.data(), row, dim);
        for (std::int64_t c = 0; c < dim; ++c) {
          logit += row[c] * detail::dot(query.covariance.data() + c * dim, row, dim);
        }
        state.logits[static_cast<std::size_t>(g * rows + t)] = logit;
      }
    }
    for (std::int64_t g = 0; g < group; ++g) {
      float* const logits = state.logits.data() + g * rows;
      float const most = *std::max_element(logits, logits + rows);
      double sum = 0;
      for (std::int64_t t = 0; t < rows; ++t) sum += std::exp(static_cast<double>(logits[t] - most));
      auto const normaliser = static_cast<float>(static_cast<double>(most) + std::log(sum));
      for (std::int64_t t = 0; t < rows; ++t) logits[t] -= normaliser;
    }
    float* const to = scores.head(sequence, head);
    for (std::int64_t t = 0; t < rows; ++t) {
      float most = state.logits[static_cast<std::size_t>(t)];
      for (std::int64_t g = 1; g < group; ++g)
        most = std::max(most, state.logits[static_cast<std::size_t>(g * rows + t)]);
      float sum = 0;
      for (std::int64_t g = 0; g < group; ++g)
        sum += std::exp(state.logits[static_cast<std::size_t>(g * rows + t)] - most);
      to[t] = most + std::log(sum / static_cast<float>(group)) + state.norms[static_cast<std::size_t>(t)];
    }
  });
}

HEADAWARE_TARGET_END
HEADAWARE_NAMESPACE_END
