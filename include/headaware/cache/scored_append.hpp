#pragma once

/// @file
/// Rolling caches whose heads keep tokens of high scores beside sinks and a window (`SinkWindowScored`), on the CPU:
/// new tokens come with their scores, and one that leaves the window replaces the scored token of the lowest score, or
/// goes.
/// @par Source  Zhang et al., H2O, arXiv:2306.14048 (a heavy hitter replaces another while decoding)

#include <headaware/cache/detail/scored_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Writes new tokens with their scores, which have been checked.
template <class T, class U, class Source>
void append_scored_checked(AppendShape const& shape, RollingSlotsView const& slots, RollingState const& state,
                           std::span<LayerKv<U> const> tokens, Source const& source,
                           std::span<std::int32_t const> counts, Destination<T, RollingSlotsView> const& cache,
                           RollingScoresView const& records, TokenScores const& scores, AppendOptions const& options) {
  append_scored_rows(shape, RollingAppend{slots}, tokens, source, rolling_buffers(cache, options.first_layer), records,
                     scores, {state.lengths(), state.high_water(), counts});
  append_checked(shape, slots, state, tokens, source, counts, cache, options);
}

}  // namespace detail

/// @brief Appends new tokens of every sequence with their scores, on the CPU, to heads of every policy that a rolling
/// cache takes.
///
/// A head of `SinkWindowScored` keeps sinks and window as others do. A token that leaves the window when the sequence
/// becomes L tokens long stays, in a slot after the ring, if it is among the `scored` best of all that have left so far
/// (`score_rank`: of equal scores the newer token stays, NaN is below all others): its row is copied once, the codes of
/// an encoded row as they are. Appending a prompt in one call, in chunks or token by token keeps the same tokens: to
/// compress a prompt, append all of it to an empty sequence; only rows that stay are read.
/// @param slots, state, tokens, source, counts, options  as the `append` without scores
/// @param cache    made by `rolling`; of encoded rows: `cache/packed_scored.hpp`
/// @param records  `RollingScores::view()` of these slots; none are needed where no head has scored slots
/// @param scores   of the new tokens: [layers, num_sequences, num_kv_heads, tokens] in any strides, host; kept with the
///                 tokens while they are in the ring
/// @throws ArgumentError before anything is written, as the `append` without scores, and on records of other slots and
///         missing scores
/// @note  A step is appended to each layer once: its scores replace those of the tokens that leave the ring.
/// @par Cost  O(bytes that stay), and `scored + slack` records of 16 bytes for every token that enters, once more for
///            the first that leaves the window
template <LayerRange Tokens, class Source, class T>
void append(RollingSlotsView const& slots, RollingState& state, Tokens const& tokens, Source const& source,
            std::span<std::int32_t const> counts, Destination<T, RollingSlotsView> const& cache,
            RollingScoresView const& records, TokenScores const& scores, AppendOptions const& options = {}) {
  state.check(slots, counts, "append");
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(slots, layers, source, counts, cache, options);
  detail::check_token_scores(shape, slots, records, scores);
  detail::append_scored_checked(shape, slots, state, layers, source, counts, cache, records, scores, options);
  if (options.advance) state.advance(slots, counts);
}

/// @brief Makes sequences continue others (a fork, or beams that survive), on the CPU: rows, counters, scores and
/// records of scored slots.
/// @param slots, state, copies, cache  as the `copy_sequences` without scores; plain rows
/// @param records  `RollingScores::view()` of these slots
/// @throws ArgumentError before anything is written, as that, and on records of other slots
/// @par Cost  The rows that hold something, and the records
template <class T>
void copy_sequences(RollingSlotsView const& slots, RollingState& state, std::span<SequenceCopy const> copies,
                    Destination<T, RollingSlotsView> const& cache, RollingScoresView const& records) {
  detail::check_scores(slots, records, "copy_sequences");
  detail::copy_rolling_sequences(slots, state, copies, cache,
                                 [&](RollingHead const& head, std::int64_t index, auto const& copy, auto const& move) {
                                   detail::copy_scored(head, index, state, records, copy.from, copy.to, move);
                                 });
}

/// @brief Writes the token that every slot of a head shows to attention, those of scored slots too.
/// @param records    of the slots
/// @param layer, kv_head, sequence  the head
/// @param positions  [head.slots()]: the token; -1 for slots to leave out
/// @throws ArgumentError on an array of another size, a head that is not there and records of other slots
/// @par Cost  O(head.slots())
inline void slot_positions(RollingSlotsView const& slots, RollingScoresView const& records, std::int32_t layer,
                           std::int32_t kv_head, std::int32_t sequence, std::int64_t length,
                           std::span<std::int32_t> positions) {
  constexpr auto where = "slot_positions";
  require_index(layer, slots.num_layers, "layer", where);
  require_index(kv_head, slots.layer_heads().count(layer), "KV head", where);
  require_index(sequence, slots.num_sequences, "sequence", where);
  detail::check_scores(slots, records, where);
  RollingHead const& head = slots.head(layer, kv_head);
  slot_positions(head, length, positions);
  if (head.scored == 0) return;
  HeadScores const of = records.of(head, slots.layer_heads().first(layer) + kv_head, sequence);
  for (std::int64_t i = 0; i < head.scored_used(length); ++i) {
    if (of.slots[i].is_shown(length)) positions[static_cast<std::size_t>(head.ring_end() + i)] = of.slots[i].token;
  }
}

HEADAWARE_NAMESPACE_END
