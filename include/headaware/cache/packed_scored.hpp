#pragma once

/// @file
/// Rolling caches of encoded rows whose heads keep tokens of high scores, on the CPU: the appends of
/// `cache/scored_append.hpp` into caches made by `packed_rolling`. A row that moves to a scored slot keeps its codes.

#include <headaware/cache/detail/encode_rows.hpp>
#include <headaware/cache/detail/scored_rows.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/scored_append.hpp>
#include <headaware/config.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Encodes rows of scored slots, before those of rings are overwritten.
/// @param channels  of all layers, before they are encoded
/// @param segments  of all layers
/// @param rows      (layer) to the buffer that its rows lie in
template <class Cache, class U, class Source, class Registry, class Rows>
void append_scored_encoded(AppendShape const& shape, Cache const& cache, std::span<LayerKv<U> const> tokens,
                           Source const& source, LayerChannels const& channels,
                           std::span<PackedSegment<Registry> const> segments, Rows const& rows,
                           RollingScoresView const& records, TokenScores const& scores,
                           AppendedTokens const& appended) {
  using T = std::remove_const_t<U>;
  append_scored(
      shape, static_cast<std::int64_t>(tokens.size()), cache, records, scores, appended, [] { return PackBuffers{}; },
      [&](PackBuffers& buffers, Segment const& segment, auto const& row) {
        auto const layer = static_cast<std::size_t>(segment.layer);
        PackedSegment<Registry> const& packed = segments[static_cast<std::size_t>(segment.index)];
        RowUnit* const data = rows(layer) + packed.shift;
        RowUnit* const to = data + row.to(packed.units);
        if (row.new_token < 0) {
          std::memcpy(to, data + row.from(packed.units), static_cast<std::size_t>(packed.units) * sizeof(RowUnit));
          return;
        }
        std::size_t const i = layer - static_cast<std::size_t>(shape.first_layer);
        RowEncoder const encoder(layer_source(source, i), LayerKv<T const>{tokens[i].keys, tokens[i].values},
                                 channels.of(layer), segment.sequence, segment.kv_head, buffers);
        encoder.encode(packed, row.new_token, to, [](float*) {});
      });
}

/// Encodes new tokens that come with their scores, which have been checked.
template <class U, class Source, class Registry>
void append_scored_checked(AppendShape const& shape, RollingSlotsView const& slots, RollingState const& state,
                           std::span<LayerKv<U> const> tokens, Source const& source,
                           std::span<std::int32_t const> counts,
                           PackedDestination<RollingSlotsView, Registry> const& cache, RollingScoresView const& records,
                           TokenScores const& scores, AppendOptions const& options) {
  append_scored_encoded(shape, RollingAppend{slots}, tokens, source, cache.channels,
                        std::span<PackedSegment<Registry> const>(cache.segments),
                        [&](std::size_t layer) { return cache.layers[layer]; }, records, scores,
                        {state.lengths(), state.high_water(), counts});
  append_checked(shape, slots, state, tokens, source, counts, cache, options);
}

}  // namespace detail

/// @brief Appends new tokens of every sequence with their scores, on the CPU, each encoded in its head's formats: the
/// rows that the `append` without scores writes, and of scored slots copies of their codes.
/// @param slots, state, tokens, source, counts, records, scores, options  as the `append` into plain rows
/// @param cache  made by `packed_rolling` for these slots, with buffers
/// @throws ArgumentError before anything is written, as that `append`
/// @par Cost  As that `append`
template <LayerRange Tokens, class Source, class Registry>
void append(RollingSlotsView const& slots, RollingState& state, Tokens const& tokens, Source const& source,
            std::span<std::int32_t const> counts, PackedDestination<RollingSlotsView, Registry> const& cache,
            RollingScoresView const& records, TokenScores const& scores, AppendOptions const& options = {}) {
  state.check(slots, counts, "append");
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(slots, layers, source, counts, cache, options);
  detail::check_token_scores(shape, slots, records, scores);
  detail::append_scored_checked(shape, slots, state, layers, source, counts, cache, records, scores, options);
  if (options.advance) state.advance(slots, counts);
}

/// @brief Makes sequences continue others, on the CPU: encoded rows, counters, scores and records of scored slots.
/// @param slots, state, copies, cache  as the `copy_sequences` without scores
/// @param records  `RollingScores::view()` of these slots
/// @throws ArgumentError before anything is written, as that, and on records of other slots
/// @par Cost  The rows that hold something, and the records
template <class Registry>
void copy_sequences(RollingSlotsView const& slots, RollingState& state, std::span<SequenceCopy const> copies,
                    PackedDestination<RollingSlotsView, Registry> const& cache, RollingScoresView const& records) {
  detail::check_scores(slots, records, "copy_sequences");
  detail::copy_packed_sequences(slots, state, copies, cache,
                                [&](RollingHead const& head, std::int64_t index, auto const& copy, auto const& move) {
                                  detail::copy_scored(head, index, state, records, copy.from, copy.to, move);
                                });
}

HEADAWARE_NAMESPACE_END
