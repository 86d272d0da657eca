#pragma once

/// @file
/// Errors of heads that keep tokens by their scores, measured on the CPU.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/stats/detail/rounding_rows.hpp>
#include <headaware/stats/detail/scored_pass.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN
HEADAWARE_TARGET_BEGIN

/// @brief Adds the errors of scored slots of one text: all query heads of one layer of one sequence, on the CPU.
///
/// A row at position q counts as a cache of `SinkWindowScored` shows it: the sinks, the newest `window` tokens, and of
/// those between them the `scored` of the highest scores (`score_rank`), renormalised. That is what evicting at every
/// step leaves, for the best of all that have left a window are those that win its slots one after the other. A learned
/// sink stays, as in `observe_chunk`.
/// @param layer   a `LayerQkv` with values, without a window of its own
/// @param score   how the engine makes logits
/// @param scores  host, [1, num_kv_heads, tokens]
/// @param first_query, query_stride, sample_stride  which rows count: of those from `first_query` on, every
///                `query_stride`-th, every `sample_stride`-th, the last one among them
/// @param sums    [num_query_heads], of the grid
/// @throws ArgumentError on shapes that make no sense, missing or misaligned pointers, a layer that slides, or sums of
///         another grid
/// @note   Rows with a NaN or infinite logit, or that see a value which is NaN, infinite or beyond 1e15, do not count.
///         Deterministic.
/// @par Cost  a row: tokens · head_dim multiplications for its weights, at most windows · (most slots) · value_dim for
///            what slots hold, and windows · slots · value_dim² with output factors; memory tokens · (head_dim +
///            value_dim) a thread
template <class Layer>
void observe_scored(Layer const& layer, AttentionScore const& score, RowScores const& scores, ScoredGrid const& grid,
                    std::int64_t first_query, std::int64_t query_stride, std::int64_t sample_stride,
                    std::span<ScoredSums> sums) {
  constexpr auto where = "observe_scored";
  grid.validate(where);
  score.validate();
  detail::check_layer(layer, where);
  require(layer.values != nullptr, "values", "a pointer", "nullptr", where);
  std::int64_t const window = detail::common_window(layer.window, score.sliding_window, where);
  require(window == 0, "window of the layer", "none: what has left it is not seen", window, where);
  require(first_query >= 0, "first_query", ">= 0", first_query, where);
  require(query_stride > 0 && sample_stride > 0, "strides", "> 0", query_stride > 0 ? sample_stride : query_stride,
          where);
  scores.validate(1, layer.num_kv_heads, layer.tokens, where);
  require(std::ssize(sums) == layer.num_query_heads, "sums", {layer.num_query_heads, ", of as many query heads"},
          sums.size(), where);
  for (ScoredSums const& of_head : sums)
    require(of_head.size() == grid.size(), "grid of the sums", grid.size(), of_head.size(), where);
  detail::SampledRows const sampled(layer.tokens, first_query, query_stride, sample_stride);
  if (sampled.count == 0) return;
  std::size_t const group = static_cast<std::size_t>(layer.num_query_heads / layer.num_kv_heads);
  auto const make_pass = [&] { return detail::ScoredPass(grid, score, layer, layer.tokens); };
  detail::parallel_for(layer.num_kv_heads, 1, true, make_pass, [&](detail::ScoredPass& pass, std::int64_t kv_head) {
    pass.run(layer, static_cast<std::int32_t>(kv_head), scores.head(0, kv_head), sampled,
             sums.subspan(static_cast<std::size_t>(kv_head) * group, group).data());
  });
}

HEADAWARE_TARGET_END
HEADAWARE_NAMESPACE_END
