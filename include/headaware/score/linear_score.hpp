#pragma once

/// @file
/// Scores of rows by a linear function of what a layer computes for their token anyway, on the CPU: known when the row
/// is written, and the same ever after.

#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/score/detail/check_rows.hpp>
#include <headaware/score/detail/token_features.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/score/score_features.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One layer's queries, keys and values of the tokens to score, in an engine's layouts, whose token 0 is the
/// first of them.
/// @tparam Q, T  float, float16 or bfloat16 @tparam Layout  of keys and values alike, or `KvLayouts`
template <class Q, class QLayout, class T, class Layout>
struct TokenRows {
  Q const* queries = nullptr;
  QLayout query_layout;  ///< over query heads
  T const* keys = nullptr;
  T const* values = nullptr;
  Layout layout;
};
template <class Q, class QLayout, class T, class Layout>
TokenRows(Q*, QLayout, T*, T*, Layout) -> TokenRows<std::remove_const_t<Q>, QLayout, std::remove_const_t<T>, Layout>;

namespace detail {
HEADAWARE_TARGET_BEGIN

/// Gathers every token's features and hands them over, by threads. @param each  (sequence, token, features)
template <class Rows, class Rotation, class Each>
void for_each_token(ScoreFeatures const& features, ScoreBatch const& batch, Rows const& rows, Rotation const& rotation,
                    char const* where, Each const& each) {
  auto const all = [&](std::int64_t) { return std::array{TokenRange{0, batch.tokens}}; };
  check_tables(rows.query_layout, batch.num_sequences, all, where);
  check_source_tables(rows.layout, batch.num_sequences, all, where, where);
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    if (rotation.token_positions() != nullptr) {
      std::vector<std::int32_t> const lengths(static_cast<std::size_t>(batch.num_sequences),
                                              static_cast<std::int32_t>(batch.tokens));
      check_positions(rotation, lengths, where);
    }
  }
  constexpr std::int64_t block = 16;
  constexpr std::int64_t few = 65536;
  std::int64_t const blocks = (batch.tokens + block - 1) / block;
  struct State {
    TokenGatherer<Rotation> gatherer;
    std::vector<float> row;
  };
  auto const make = [&] {
    return State{TokenGatherer<Rotation>(features, rotation),
                 std::vector<float>(static_cast<std::size_t>(features.count()))};
  };
  bool const share = batch.num_sequences * batch.tokens * features.count() > few;
  parallel_for(batch.num_sequences * blocks, 1, share, make, [&](State& state, std::int64_t i) {
    std::int64_t const sequence = i / blocks;
    std::int64_t const first = i % blocks * block;
    std::int64_t const end = std::min(first + block, batch.tokens);
    for (std::int64_t token = first; token < end; ++token) {
      state.gatherer.gather(rows, sequence, token, state.row.data());
      each(sequence, token, state.row.data());
    }
  });
}

HEADAWARE_TARGET_END
}  // namespace detail

HEADAWARE_TARGET_BEGIN

/// @brief Writes the features of tokens, for whoever fits weights to them, on the CPU.
/// @param rows      host
/// @param to        [sequences, tokens, features.count()]; host
/// @param rotation  as in `score_rows`
/// @throws ArgumentError as `score_rows`
/// @par Cost  O(features); a buffer of one token's features per thread
template <class Q, class QLayout, class T, class Layout, class Rotation = KeepPositions>
void score_features(ScoreFeatures const& features, ScoreBatch const& batch,
                    TokenRows<Q, QLayout, T, Layout> const& rows, float* to, Rotation const& rotation = {}) {
  constexpr auto where = "score_features";
  if (!detail::check_scored_rows(features, batch, rows, rotation, where)) return;
  require_pointer(to, "features", where);
  detail::for_each_token(
      features, batch, rows, rotation, where, [&](std::int64_t sequence, std::int64_t token, float const* row) {
        std::copy_n(row, features.count(), to + (sequence * batch.tokens + token) * features.count());
      });
}

/// @brief Scores tokens by a linear function of their features per KV head, on the CPU.
///
/// The weights of a calibration (`scores.json`) predict the logarithm of the largest attention probability that the row
/// gets when the text is read again.
/// @param rows      queries and keys before rotary embedding, or, with a rotation, after it; host
/// @param weights   [num_kv_heads, features.count()], standardisation folded in; host
/// @param scores    what is written; host; must overlap no input
/// @param rotation  `KeepPositions`: queries and keys are not rotated. `KeyRotation`: they are turned back from their
///                  token's index in the call, or from what `with_positions` says it was rotated for (host)
/// @throws ArgumentError on null or misaligned pointers, counts that make no sense, layouts of other counts, scores
///         that overlap, a rotation of more channels than there are, and positions that are negative or beyond its
///         table
/// @note   A row with a NaN or an infinity has a score that is none. Deterministic: a token's score depends neither on
///         the tokens beside it nor on the number of threads. Latents: the value is given as the row's first channels.
/// @par Cost  (num_kv_heads + 1) · features.count() multiplications per token, a sine and cosine per pair of channels
///            where they are turned back; allocates one token's features per thread
/// @par Source  KVzip, arXiv:2505.23416 (what is predicted); KVzap, arXiv:2601.07891 (predicting it)
template <class Q, class QLayout, class T, class Layout, class Rotation = KeepPositions>
void score_rows(ScoreFeatures const& features, ScoreBatch const& batch, TokenRows<Q, QLayout, T, Layout> const& rows,
                float const* weights, RowScores const& scores, Rotation const& rotation = {}) {
  constexpr auto where = "score_rows";
  if (!detail::check_scored_rows(features, batch, rows, rotation, where)) return;
  require_pointer(weights, "weights", where);
  require_aligned(weights, "weights", where);
  scores.validate(batch.num_sequences, features.num_kv_heads, batch.tokens, where);
  detail::for_each_token(
      features, batch, rows, rotation, where, [&](std::int64_t sequence, std::int64_t token, float const* row) {
        for (std::int64_t head = 0; head < features.num_kv_heads; ++head) {
          scores.head(sequence, head)[token] = detail::dot(weights + head * features.count(), row, features.count());
        }
      });
}

HEADAWARE_TARGET_END
HEADAWARE_NAMESPACE_END
