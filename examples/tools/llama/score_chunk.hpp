#pragma once

// Scores of a chunk's rows while the model runs.

#include "tools/llama/attention_tap.hpp"

#include <headaware/cache/rotation.hpp>
#include <headaware/error.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/score/linear_score.hpp>
#include <headaware/score/row_scores.hpp>

#include <cstddef>
#include <span>

namespace llama_adapter {

/// @brief Scores the rows that a layer's attention brings.
/// @param rotations  of `key_rotations`, [layers]
/// @param scores     [1, num_kv_heads, tokens of the evaluation]
/// @throws ArgumentError if the scorer is another model's, or as `headaware::score_rows`
inline void score_chunk(headaware::RowScorer const& scorer, std::span<headaware::KeyRotation const> rotations,
                        TappedAttention const& attention, headaware::RowScores const& scores) {
  namespace ha = headaware;
  auto const layer = static_cast<std::size_t>(attention.layer);
  ha::ScoreFeatures const features{attention.num_query_heads, attention.num_kv_heads, attention.head_dim,
                                   attention.value_dim};
  bool const fits =
      layer < scorer.weights.size() && layer < rotations.size() && scorer.features(attention.layer) == features;
  ha::require(
      fits, "model of the scores", "the one that runs", [&] { return scorer.saved.model; }, "score_chunk");
  auto const rows = [&](std::int64_t heads, std::int64_t channels) {
    return ha::strided_shd(attention.tokens, heads, channels);
  };
  ha::score_rows(features, {1, attention.tokens},
                 ha::TokenRows{attention.queries, rows(features.num_query_heads, features.head_dim), attention.keys,
                               attention.values,
                               ha::KvLayouts{rows(features.num_kv_heads, features.head_dim),
                                             rows(features.num_kv_heads, features.value_dim)}},
                 scorer.weights[layer].data(), scores,
                 rotations[layer].with_positions(attention.positions.data(), attention.tokens));
}

}  // namespace llama_adapter
