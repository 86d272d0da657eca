#pragma once

/// @file
/// Compaction on the CPU: copies the kept tokens of every head into a compressed cache, or moves them to the
/// front of the cache they are in. All cores, where the compiler has OpenMP.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/check_in_place.hpp>
#include <headaware/cache/detail/check_pages.hpp>
#include <headaware/cache/detail/kept_tokens.hpp>
#include <headaware/cache/detail/move_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/cache/validate.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/layout/concept.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Compresses a cache on the CPU: copies the kept tokens of every head to their rows of the destination.
/// @param compaction  made for these lengths
/// @param transfers   keys and values, and further tensors that go with them (scales); host pointers
/// @throws ArgumentError before anything is written: see `validate`; also tokens of keep-lists and of policies of your
///         own out of order or range, tables of the source without places for kept tokens, pages beyond the pool (if
///         `paged` was told its `num_pages`) or given to two heads, and positions (`KeyRotation::with_positions`) out
///         of range
/// @note   Destinations of one call must not overlap each other. Deterministic.
/// @par Cost  Each kept byte is read once and written once; all cores with OpenMP. Tables are read once more, and the
///            tokens of policies of your own asked for once more. Pages that are written are noted (40 bytes each) and
///            sorted where a layer's do not ascend, as those of `consecutive_pages` do
template <class Table, class... Ts, class... Sources, class... Forms, class... Rotations>
void compress(Compaction<Table> const& compaction, Transfer<Ts, Sources, Forms, Rotations> const&... transfers) {
  constexpr auto where = "compress";
  validate(compaction, transfers...);
  detail::check_policies(compaction, where);
  detail::KeptTokens const tokens(compaction);
  (detail::check_tables_of_tokens(compaction, transfers.source, tokens, "compress, keys", "compress, values"), ...);
  (detail::check_positions(transfers.rotation, compaction.lengths(), where), ...);
  (detail::check_capacity(compaction, transfers.kept), ...);
  detail::WrittenPages written;
  (detail::check_block_table(compaction, transfers.kept, written, where), ...);
  detail::check_pages_apart(compaction, written, where);
  detail::check_pages_not_read(compaction, tokens, written, where, transfers...);
  (detail::run_transfer(compaction, transfers), ...);
}

/// @brief Compresses keys and values alone.
/// @param layers  [num_layers] `LayerKv`, host pointers
/// @param source  how each layer's keys and values lie
/// @param kept    `ragged`, `padded`, `grouped`, `paged` or `rolling`
template <class Table, LayerRange Layers, class Source, class T, class Form>
void compress(Compaction<Table> const& compaction, Layers const& layers, Source const& source,
              Destination<T, Form> const& kept) {
  compress(compaction, transfer(layers, source, kept));
}

/// @brief Moves the kept tokens of every head to the head's first rows, in the cache they are in.
///
/// No second buffer. The memory after them is then free: `CacheSizes::kept` tells how much, and for paged
/// caches `CacheSizes::pages_needed` which pages may go back to their allocator.
/// @param layers    [num_layers] `LayerKv`, host pointers
/// @param source    how each layer's keys and values lie; no two heads may share memory
/// @param rotation  `KeyRotation`, or nothing to keep positions. After the call a key's position is its row
/// @throws ArgumentError before anything moves, as `compress`; on tensors of layers that overlap (unless by whole
///         pages, which tables tell apart), pages that two sequences name, and where 16-bit keys are to turn for too
///         few evicted tokens, which is not worth the rounding: see `KeyRotation::evicting`
/// @par Cost  Moves only tokens whose place changes; memory for a head's token numbers per thread
template <class Table, LayerRange Layers, class Source, class Rotation = KeepPositions>
void compress_in_place(Compaction<Table> const& compaction, Layers const& layers, Source const& source,
                       Rotation const& rotation = {}) {
  constexpr auto where = "compress_in_place";
  auto const pointers = layer_span(layers);
  using T = std::remove_pointer_t<decltype(pointers.front().keys)>;
  detail::check_in_place(detail::bounds_of(compaction), pointers, source, rotation,
                         [&](std::size_t layer) { return compaction.num_kv_heads(static_cast<std::int32_t>(layer)); });
  detail::check_policies(compaction, where);
  detail::for_each_layout(source, compaction, [&](auto const& of_layer) {
    detail::check_source_tables(of_layer, compaction.num_sequences(), detail::tokens_in(compaction.lengths()),
                                "compress_in_place, keys", "compress_in_place, values");
    detail::check_pages_of_one_sequence(detail::keys_of(of_layer), compaction.lengths(), "compress_in_place, keys");
    detail::check_pages_of_one_sequence(detail::values_of(of_layer), compaction.lengths(), "compress_in_place, values");
  });
  detail::check_positions(rotation, compaction.lengths(), where);
  if constexpr (detail::rounds_in_place<T, Rotation>) {
    auto const fewest = detail::fewest_evicted(compaction.table(), compaction, true);
    if (fewest.tokens != 0) detail::check_evictions<T>(rotation, fewest.tokens, fewest.segment.name());
  }
  using Tokens = std::vector<std::int64_t>;
  detail::parallel_for(
      compaction.num_segments(), 1, true, [] { return Tokens(); },
      [&](Tokens& tokens, std::int64_t s) {
        Segment const segment = compaction.segment(s);
        auto const layer = static_cast<std::size_t>(segment.layer);
        auto const& of_layer = detail::layer_source(source, layer);
        detail::move_to_front(compaction, segment, pointers[layer], detail::keys_of(of_layer),
                              detail::values_of(of_layer), rotation, tokens);
      });
}

HEADAWARE_NAMESPACE_END
