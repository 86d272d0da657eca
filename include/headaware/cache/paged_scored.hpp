#pragma once

/// @file
/// Pages of single heads that keep tokens of high scores beside sinks and a window (`SinkWindowScored`), on the CPU:
/// new tokens come with their scores, and one that leaves the window takes a scored slot, in pages of these, or goes.
///
/// Scores and records lie beside the pages: `RollingScores(pages.slots())`, a share for each sequence, whatever pages
/// sequences share. What a scored slot's row costs is what it costs in a rolling cache; a fork costs the records, and
/// with the next append of either sequence that a token leaves the window with, a copy of all its pages of scored
/// slots, since which of them are written to is only known where the append runs. So sequences share pages of scored
/// slots up to their next tokens, and all others as those of windows.

#include <headaware/cache/detail/scored_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>

#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks scores of an append to pages, or of a fork.
inline void check_token_scores(AppendShape const& shape, PagedHeadsView const& pages, RollingScoresView const& records,
                               TokenScores const& scores) {
  check_token_scores(shape, pages.max_scored, pages.slots_id, records, scores);
}

}  // namespace detail

/// @brief Writes new tokens, which come with their scores, into the pages that `PagedHeads::append` has given them, on
/// the CPU, to heads of every policy.
///
/// Which tokens stay is as of the `append` with scores to a rolling cache (`cache/scored_append.hpp`): the same at the
/// same scores, in one call, in chunks or token by token.
/// @param pages, step, tokens, source, storage, first_layer  as the `append` without scores
/// @param records  of `RollingScores(pages.slots())`; none are needed where no head has scored slots
/// @param scores   of the new tokens: [layers, num_sequences, num_kv_heads, tokens] in any strides, host
/// @throws ArgumentError before anything is written, as the `append` without scores, and on records of other slots and
///         missing scores
/// @note  A step is appended to each layer once: its scores replace those of the tokens that leave the ring.
/// @par Cost  O(bytes that stay) and copies on write, those of scored slots' pages too, and `scored + slack` records of
///            16 bytes for every token that enters, once more for the first that leaves the window
template <LayerRange Tokens, class Source, class T>
void append(PagedHeads const& pages, PageStep const& step, Tokens const& tokens, Source const& source,
            PageStorage<T> const& storage, RollingScoresView const& records, TokenScores const& scores,
            std::int32_t first_layer = 0) {
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(pages, step, layers, source, storage, first_layer);
  PagedHeadsView const view = pages.view();
  detail::check_token_scores(shape, view, records, scores);
  detail::append_scored_rows(shape, detail::PagedAppend{view, storage.page_stride}, layers, source,
                             detail::paged_buffers(view, storage, first_layer), records, scores,
                             {step.lengths, step.high_water, step.counts});
  detail::append_checked(shape, pages, step, layers, source, storage);
}

/// @brief Makes an empty sequence continue another: they share all pages, and have scores and records of their own.
/// @param pages, from, to  as `PagedHeads::fork`
/// @param records  of `RollingScores(pages.slots())`, host
/// @throws ArgumentError as `PagedHeads::fork`, and on records of other slots; nothing has changed then
/// @par Cost  As `PagedHeads::fork`, and the records: 16 bytes a scored slot and 4 a slot of the ring
inline void fork(PagedHeads& pages, std::int32_t from, std::int32_t to, RollingScoresView const& records) {
  PagedHeadsView const view = pages.view();
  detail::check_scores(view.max_scored, view.slots_id, records, "fork");
  pages.fork(from, to, [&] {
    for (std::int32_t index = 0; index < view.num_heads; ++index) {
      detail::copy_records(view.heads[index].rolling(view.slack), index, records, from, to);
    }
  });
}

HEADAWARE_NAMESPACE_END
