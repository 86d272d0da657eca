#pragma once

/// @file
/// Compaction into packed caches on the CPU: kept rows are encoded in their heads' formats on the way.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_packed.hpp>
#include <headaware/cache/detail/check_pages.hpp>
#include <headaware/cache/detail/check_transfer.hpp>
#include <headaware/cache/detail/encode_rows.hpp>
#include <headaware/cache/detail/kept_tokens.hpp>
#include <headaware/cache/detail/move_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Checks the arguments of packing that need no tensor and no table.
/// @return the source's part, as a move into plain rows without buffers would have it
template <class T, class Layers, class Source, class Form, class Registry, class Rotation>
Transfer<T, Source, Form, Rotation> check_packing(CacheBounds const& bounds, Layers const& layers, Source const& source,
                                                  PackedDestination<Form, Registry> const& kept,
                                                  Rotation const& rotation, bool tables_known) {
  constexpr auto where = "compress";
  Transfer<T, Source, Form, Rotation> transfer{
      {}, source, {kept.form, kept.channels, {}, kept.capacities, 0}, rotation};
  for (auto const& layer : layers) transfer.layers.push_back({layer.keys, layer.values});
  check_destination_shape(bounds, transfer.layers.size(), source, kept.layers.size(), kept.capacities, kept.form);
  auto const segments = static_cast<std::int64_t>(kept.segments.size());
  require(segments == bounds.num_heads * bounds.num_sequences, "destination segments",
          bounds.num_heads * bounds.num_sequences, segments, where);
  Memory memory;
  for (std::size_t layer = 0; layer < transfer.layers.size(); ++layer) {
    if (kept.capacities[layer].num_kv_heads == 0) continue;
    std::int64_t const units = kept.first_units[layer + 1] - kept.first_units[layer];
    bool const some =
        check_layer_source(bounds, layer, transfer.layers[layer], source, rotation, kept.channels.of(layer),
                           kept.capacities[layer].num_kv_heads, kept.capacities[layer].rows > 0, memory);
    check_pointer(kept.layers[layer], some, "destination rows", where, layer);
    memory.destinations.push_back(interval(kept.layers[layer], units));
  }
  check_memory(memory, tables_known);
  return transfer;
}

}  // namespace detail

/// @brief Compresses a cache on the CPU into a packed one: the kept tokens of every head, encoded in the head's formats
/// on the way. Rows that an engine has encoded already come in by `import_rows`.
/// @param compaction  made for these lengths
/// @param layers      [num_layers] `LayerKv`, host pointers; float, float16 or bfloat16
/// @param source      how each layer's keys and values lie
/// @param kept        made by `packed_ragged`, `packed_padded` or `packed_grouped` for the compaction, or by
///                    `packed_rolling` for its policies, with buffers
/// @param rotation    `KeyRotation`, or nothing to keep positions. Keys turn in single precision before they are
/// encoded
/// @throws ArgumentError before anything is written, as `compress` into rows that are not encoded
/// @note   Deterministic; what a row becomes depends on the row alone. A block with a NaN or an infinity is NaN where
///         its format has scales
/// @par Cost  Each kept row is read once and written once; all cores with OpenMP
template <class Table, LayerRange Layers, class Source, class Form, class Registry, class Rotation = KeepPositions>
void compress(Compaction<Table> const& compaction, Layers const& layers, Source const& source,
              PackedDestination<Form, Registry> const& kept, Rotation const& rotation = {}) {
  constexpr auto where = "compress";
  auto const pointers = layer_span(layers);
  using T = std::remove_const_t<std::remove_pointer_t<decltype(pointers.front().keys)>>;
  static_assert(detail::holds_floats<T>, "headaware: rows to encode hold float, float16 or bfloat16");
  auto const transfer = detail::check_packing<T>(detail::bounds_of(compaction), pointers, source, kept, rotation, true);
  detail::check_policies(compaction, where);
  detail::KeptTokens const tokens(compaction);
  detail::check_tables_of_tokens(compaction, transfer.source, tokens, "compress, keys", "compress, values");
  detail::check_positions(rotation, compaction.lengths(), where);
  detail::check_capacity(compaction, transfer.kept);
  detail::check_packed_rows(compaction, kept, "destination", where);

  auto const tiles = detail::head_tiles(compaction);
  detail::parallel_for(
      static_cast<std::int64_t>(tiles.size()), 1, true, [] { return detail::PackBuffers{}; },
      [&](detail::PackBuffers& buffers, std::int64_t i) {
        detail::Tile const& tile = tiles[static_cast<std::size_t>(i)];
        Segment const segment = compaction.segment(tile.first_segment);
        auto const layer = static_cast<std::size_t>(segment.layer);
        RowChannels const channels = kept.channels.of(layer);
        buffers.tokens.resize(static_cast<std::size_t>(tile.end - tile.begin));
        detail::stage_tokens(compaction.table(), segment, tile.begin, buffers.tokens);
        auto const rows = kept.form.rows(segment, kept.capacities[layer]);
        PackedSegment<Registry> const& packed = kept.segments[static_cast<std::size_t>(segment.index)];
        detail::RowEncoder const encoder(detail::layer_source(source, layer), transfer.layers[layer], channels,
                                         segment.sequence, segment.kv_head, buffers);
        for (std::int64_t row = tile.begin; row < tile.end; ++row) {
          std::int64_t const token = buffers.tokens[static_cast<std::size_t>(row - tile.begin)];
          encoder.encode(packed, token, kept.layers[layer] + rows.offset(row, packed.units) + packed.shift,
                         [&](float* key) { detail::turn_key(rotation, segment.sequence, token, row, key); });
        }
      });
}

HEADAWARE_NAMESPACE_END
