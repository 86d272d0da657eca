#pragma once

/// @file
/// Scores of rows by the attention that they get, on the CPU: what methods that choose tokens (SnapKV, H2O, KVzip)
/// rank rows by.

#include <headaware/attention/attend.hpp>
#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/check_key_scores.hpp>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/detail/query_tile.hpp>
#include <headaware/attention/detail/tile_rows.hpp>
#include <headaware/attention/key_score_buffer.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/detail/simd.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Merges a query's probabilities of a block of rows into their scores.
/// @param logits  in base 2, `hidden_logit` where the query does not see a row @param part  the query's softmax
inline void merge_probabilities(KeyScoreReduction reduction, OnlineSoftmax<float> const& part, float const* logits,
                                std::int64_t count, float* scores) {
  // A row of queries with a NaN or an infinite logit has no probabilities.
  if (!(part.sum > 0) || !(part.sum < INFINITY) || part.max == hidden_logit) return;
  float const inverse = 1 / part.sum;
  for (std::int64_t k = 0; k < count; ++k) {
    float const probability = exp2f(logits[k] - part.max) * inverse;
    scores[k] = reduction == KeyScoreReduction::max ? std::max(scores[k], probability) : scores[k] + probability;
  }
}

HEADAWARE_TARGET_END
}  // namespace detail

HEADAWARE_TARGET_BEGIN

/// @brief Merges, into the score of every row, the attention probabilities that it gets from the queries of its KV
/// head's group, on the CPU.
///
/// The probability is that of `attend` with the same arguments: over the rows that the query sees, a learned sink
/// included. Which method it is depends on the queries: the last ones of a prompt (SnapKV), all of them, chunk by chunk
/// (H2O), or those of a second reading of it (KVzip). Queries with a NaN or an infinite logit count for nothing.
/// @param shape      counts; `value_dim` does not matter
/// @param queries    [sequences, num_query_heads, query_tokens, head_dim] in the layout's order; host
/// @param cache      `KeptCache`, whose values are not read and may be null, `LatentCache` or `PackedCache`; host
/// @param options    as in `attend`; without `first_positions` every query sees every row (not causal)
/// @param reduction  what becomes of a row's probabilities: the largest, or their sum; the mean is the sum over
///                   `query_rows()` of all calls
/// @param scores     merged into: zeros before the first call; later calls, and buffers of other chunks or devices,
///                   merge by the same reduction; must overlap no input
/// @throws ArgumentError as `attend`, and on null or misaligned scores, and a stride below the rows that a KV head
/// holds
/// @note   Deterministic: the result does not depend on the number of threads.
/// @par Cost  Two passes over the rows held for every 32 query rows, no values and no buffer of queries × rows;
///            16 bytes per query row. Allocates nothing once the threads have made room for calls of this size
/// @par Source  SnapKV, arXiv:2404.14469; H2O, arXiv:2306.14048; KVzip, arXiv:2505.23416
template <class Q, class QLayout, class Cache>
void score_keys(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                AttentionOptions const& options, KeyScoreReduction reduction, KeyScores const& scores) {
  if (!detail::check_key_scores(shape, queries, cache, options, scores)) return;
  AttentionShape keys_alone = shape;
  keys_alone.value_dim = shape.head_dim;
  constexpr std::int64_t split_rows = 512;
  auto const access = detail::access_to(cache, keys_alone);
  auto const cut = detail::KvSplit::of(shape, access.tile_rows, split_rows);
  // A thread keeps the memory, so that later calls allocate nothing.
  thread_local std::vector<detail::OnlineSoftmax<float>> softmaxes;  // [segments, query rows]
  thread_local std::vector<detail::AttentionItem> items;
  auto& parts = softmaxes;
  auto& work = items;
  parts.assign(static_cast<std::size_t>(shape.segments() * shape.query_rows()), {});
  work.clear();
  std::int64_t rows = 0;
  for (std::int64_t s = 0; s < shape.segments(); ++s) {
    std::int64_t const held = detail::check_scored_rows(shape, cache.view, s, scores);
    rows += held;
    for (std::int64_t split = 0; split * split_rows < held; ++split) work.push_back({s, 0, split, 0});
  }
  detail::check_key_pointers(cache, rows > 0);
  constexpr std::int64_t few_bytes = 131072;
  bool const share = rows * cut.tiles * access.row_bytes() > few_bytes;
  auto const make_tile = [&] {
    return detail::QueryTile(shape, options, cut.tile_rows, access.padded(shape.head_dim), 0);
  };
  auto const take = [&](detail::QueryTile& tile, std::int64_t segment, std::int64_t index) {
    std::int64_t const first = index * cut.tile_rows;
    tile.take_queries(queries, segment / shape.num_kv_heads, segment % shape.num_kv_heads, first,
                      std::min(cut.tile_rows, shape.query_rows() - first), true);
    access.turn_queries(segment, tile);
  };
  auto const head_of = [&](std::int64_t segment) {
    return cache.view.head(segment / shape.num_kv_heads, segment % shape.num_kv_heads);
  };
  detail::parallel_for(shape.segments() * cut.tiles, 1, share, make_tile, [&](detail::QueryTile& tile, std::int64_t i) {
    std::int64_t const segment = i / cut.tiles;
    auto const head = head_of(segment);
    take(tile, segment, i % cut.tiles);
    tile.add_softmax(access.rows(head, segment), 0, head.rows());
    auto const at = static_cast<std::size_t>(segment * shape.query_rows() + i % cut.tiles * cut.tile_rows);
    for (std::int64_t q = 0; q < tile.query_count(); ++q) parts[at + static_cast<std::size_t>(q)] = tile.part(q);
  });
  auto const count = static_cast<std::int64_t>(work.size());
  detail::parallel_for(count, 1, share, make_tile, [&](detail::QueryTile& tile, std::int64_t i) {
    detail::AttentionItem const& item = work[static_cast<std::size_t>(i)];
    auto const head = head_of(item.segment);
    std::int64_t const begin = item.split * split_rows;
    std::int64_t const end = std::min(head.rows(), begin + split_rows);
    float* const to = scores.data + item.segment * scores.stride;
    for (std::int64_t index = 0; index < cut.tiles; ++index) {
      take(tile, item.segment, index);
      auto const at = static_cast<std::size_t>(item.segment * shape.query_rows() + index * cut.tile_rows);
      tile.for_each_logits(access.rows(head, item.segment), begin, end,
                           [&](std::int64_t q, std::int64_t first, std::int64_t rows_of_block, float const* logits) {
                             detail::merge_probabilities(reduction, parts[at + static_cast<std::size_t>(q)], logits,
                                                         rows_of_block, to + first);
                           });
    }
  });
}

HEADAWARE_TARGET_END
HEADAWARE_NAMESPACE_END
