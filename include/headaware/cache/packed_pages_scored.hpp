#pragma once

/// @file
/// Pages of single heads that hold encoded rows and keep tokens of high scores, on the CPU: the appends of
/// `cache/paged_scored.hpp` into a pool made by `packed_pages`. A row that moves to a scored slot keeps its codes.

#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_pages.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/packed_scored.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/paged_scored.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Encodes new tokens, which come with their scores, into the pages that `PagedHeads::append` has given them, on
/// the CPU: the rows that the `append` without scores writes, and of scored slots copies of their codes.
/// @param pages, step, tokens, source, records, scores, first_layer  as the `append` with scores into plain rows
/// @param cache  made by `packed_pages` for these heads and sequences, with a pool
/// @throws ArgumentError before anything is written, as that `append`, and on pages of other heads
/// @par Cost  As that `append`
template <LayerRange Tokens, class Source, class Registry>
void append(PagedHeads const& pages, PageStep const& step, Tokens const& tokens, Source const& source,
            PackedPages<Registry> const& cache, RollingScoresView const& records, TokenScores const& scores,
            std::int32_t first_layer = 0) {
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(pages, step, layers, source, cache, first_layer);
  PagedHeadsView const view = pages.view();
  detail::check_token_scores(shape, view, records, scores);
  detail::append_scored_encoded(shape, detail::PagedAppend{view, cache.page_units}, layers, source, cache.channels,
                                std::span<PackedSegment<Registry> const>(cache.segments),
                                [&](std::size_t) { return cache.rows; }, records, scores,
                                {step.lengths, step.high_water, step.counts});
  detail::append_checked(shape, pages, step, layers, source, cache);
}

HEADAWARE_NAMESPACE_END
