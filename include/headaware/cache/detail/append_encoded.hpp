#pragma once

// New tokens on their way into a cache of encoded rows, on the CPU.

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/encode_rows.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Encodes the new tokens that stay.
/// @param cache     as `append_rows` takes it
/// @param channels  of all layers, before they are encoded
/// @param segments  of all layers
/// @param rows      (layer) to the buffer that its rows lie in
/// @param lengths, high_water, counts  [num_sequences] before the append; new tokens
template <class Cache, class U, class Source, class Registry, class Rows>
void append_encoded(AppendShape const& shape, Cache const& cache, std::span<LayerKv<U> const> tokens,
                    Source const& source, LayerChannels const& channels,
                    std::span<PackedSegment<Registry> const> segments, Rows const& rows,
                    std::span<std::int32_t const> lengths, std::span<std::int32_t const> high_water,
                    std::span<std::int32_t const> counts) {
  using T = std::remove_const_t<U>;
  std::int64_t const first = shape.heads.first(shape.first_layer);
  std::int64_t const end = shape.heads.first(shape.first_layer + static_cast<std::int64_t>(tokens.size()));
  constexpr std::int64_t many_rows = 64;
  parallel_for((end - first) * shape.num_sequences, 1, shape.max_count * (end - first) > many_rows,
               [] { return PackBuffers{}; },
               [&](PackBuffers& buffers, std::int64_t h) {
                 Segment const segment = segment_at(first * shape.num_sequences + h, shape.num_sequences, shape.heads);
                 auto const b = static_cast<std::size_t>(segment.sequence);
                 if (counts[b] == 0) return;
                 auto const layer = static_cast<std::size_t>(segment.layer);
                 std::size_t const i = layer - static_cast<std::size_t>(shape.first_layer);
                 std::int64_t const length = lengths[b];
                 auto const held =
                     cache.rows(segment.layer, segment.sequence, segment.kv_head, length + counts[b], high_water[b]);
                 PackedSegment<Registry> const& packed = segments[static_cast<std::size_t>(segment.index)];
                 auto const& of_layer = layer_source(source, i);
                 RowEncoder const encoder(of_layer, LayerKv<T const>{tokens[i].keys, tokens[i].values},
                                          channels.of(layer), segment.sequence, segment.kv_head, buffers);
                 for (std::int64_t row = held.tokens.kept_before(length), n = held.rows(); row < n; ++row) {
                   encoder.encode(packed, held.position(row) - length,
                                  rows(layer) + held.offset(row, packed.units) + packed.shift, [](float*) {});
                 }
               });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
