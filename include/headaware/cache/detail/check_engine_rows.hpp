#pragma once

// Checks of an engine's tensors and of the packed cache whose rows come from them or go there.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/engine_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/intervals.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// How rows of a format lie. @throws ArgumentError if no engine has the format
template <class Registry>
EnginePart engine_part(AnyFormat<Registry> const& format, std::int64_t channels, char const* what, Text const& where) {
  if (channels == 0) return {};
  std::int64_t const bytes = format.engine_row_bytes(channels);
  require(bytes > 0, what, "a format whose bytes an engine has (fp16, bf16, fp8, q8_0, q4_0)", format.name(), where);
  std::int64_t const words = format.row_words(channels);
  require(words <= 0x1fffffff, what, "rows of less than 2^31 bytes", bytes, where);
  return {static_cast<std::int32_t>(bytes), static_cast<std::int32_t>(words)};
}

/// A key and a value of a segment. @throws ArgumentError if no engine has their formats
template <class Registry>
EngineRow engine_row(PackedSegment<Registry> const& packed, RowChannels const& channels, Text const& where) {
  return {engine_part(packed.formats.key, channels.head_dim, "format of keys", where),
          engine_part(packed.formats.value, channels.value_dim, "format of values", where)};
}

/// Checks the layout of an engine's keys or values in a layer. @return bytes that accesses may have: 1, 2 or 4
/// @param part, format  of the rows
template <class Layout, class Registry>
std::int32_t check_engine_layout(Layout const& layout, std::byte const* data, CacheBounds const& bounds,
                                 std::int32_t num_kv_heads, EnginePart const& part, AnyFormat<Registry> const& format,
                                 Text const& where) {
  check_source_layout(layout, bounds, num_kv_heads, 0, where, "engine's");
  if constexpr (requires { layout.num_channels(); }) {
    require(layout.num_channels() == part.bytes, "bytes of an engine's row",
            {part.bytes, ", as ", format.name(), " has"}, layout.num_channels(), where);
  }
  require(rows_contiguous(layout, part.bytes), "bytes of an engine's row", "ones side by side", "others", where);
  check_apart_from_itself(layout, where);
  std::int64_t const run = std::gcd(channel_run(layout), std::int64_t{part.bytes});
  auto const address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) % 4);
  std::int64_t const width = std::gcd(std::gcd(run, address), std::int64_t{4});
  std::int32_t const alignment = format.engine_alignment();
  require(width % alignment == 0, "rows of an engine", {"pointer and strides of a multiple of ", alignment, " bytes"},
          {"multiples of ", width}, where);
  return static_cast<std::int32_t>(width);
}

/// Checks everything but tables and what rows a cache has: tensors of the compaction's layers, in the formats of the
/// cache's heads, apart from its buffers.
/// @param bounds  `max_length`: tokens that the tensors must have room for
/// @param what    the cache, in messages
/// @return bytes that accesses to the tensors may have: 1, 2 or 4
template <class Byte, class Tensors, class Form, class Registry>
std::int32_t check_engine_tensors(CacheBounds const& bounds, std::span<LayerKv<Byte> const> layers,
                                  Tensors const& tensors, PackedDestination<Form, Registry> const& cache,
                                  char const* what, char const* where) {
  static_assert(std::is_same_v<std::remove_const_t<Byte>, std::byte>,
                "headaware: an engine's encoded rows are bytes: LayerKv<std::byte>, or LayerKv<std::byte const>");
  auto const num_layers = static_cast<std::size_t>(bounds.num_layers);
  require(layers.size() == num_layers, "layers of the engine", num_layers, layers.size(), where);
  require(cache.capacities.size() == num_layers, what, {num_layers, " layers"}, {cache.capacities.size(), " layers"},
          where);
  require(cache.layers.size() == num_layers, what, {"buffers of ", num_layers, " layers"},
          {cache.layers.size(), " buffers"}, where);
  check_layers_of_source(tensors, num_layers, where);
  Memory memory;
  std::int32_t width = 4;
  for (std::size_t l = 0; l < num_layers; ++l) {
    std::int32_t const heads = cache.capacities[l].num_kv_heads;
    auto const segments = cache.layer(static_cast<std::int32_t>(l));
    if (heads == 0 || segments.empty()) continue;
    RowChannels const channels = cache.channels.of(l);
    auto const place = [&] { return Text{where, ", layer ", l}.str(); };
    BasicHeadFormats<Registry> const& formats = segments.front().formats;
    EngineRow const row = engine_row(segments.front(), channels, place);
    for (PackedSegment<Registry> const& packed : segments) {
      // Scales may differ.
      bool const same = packed.formats.key.id() == formats.key.id() &&
                        (channels.value_dim == 0 || packed.formats.value.id() == formats.value.id());
      require(
          same, "formats of a layer's heads", {"one, ", formats.name(), ", as an engine's tensor has"},
          [&] { return packed.formats.name(); }, place);
    }
    bool const some = bounds.max_rows > 0 && cache.first_units[l + 1] > cache.first_units[l];
    check_pointer(cache.layers[l], some, what, where, l);
    memory.destinations.push_back(interval(cache.layers[l], cache.first_units[l + 1] - cache.first_units[l]));
    auto const check = [&](auto const& layout, std::byte const* data, EnginePart const& part,
                           AnyFormat<Registry> const& format, char const* name) {
      auto const of_tensor = [&] { return Text{where, name, ", layer ", l}.str(); };
      require(data != nullptr || !some, "pointer to rows of an engine", "a pointer", "nullptr", of_tensor);
      width = std::min(width, check_engine_layout(layout, data, bounds, heads, part, format, of_tensor));
      add_source(memory, layout, data);
    };
    auto const& layout = layer_source(tensors, l);
    check(keys_of(layout), layers[l].keys, row.key, formats.key, ", keys");
    if (channels.value_dim > 0) check(values_of(layout), layers[l].values, row.value, formats.value, ", values");
  }
  require(!sort_and_overlap(memory.destinations), "buffers", "packed layers apart from each other", "overlapping ones",
          where);
  bool const apart = !sort_and_overlap(memory.sources, memory.destinations) &&
                     !sort_and_overlap(memory.paged_sources, memory.destinations);
  require(apart, "buffers", "packed rows apart from the engine's", "overlapping buffers", where);
  return width;
}

/// The same for rows in order: a tensor needs room for as many tokens as the longest segment has rows.
template <class = void>
CacheBounds bounds_of_rows(CacheSizes const& sizes) {
  CacheBounds bounds = bounds_of(sizes);
  bounds.max_length = sizes.max_kept();
  return bounds;
}

/// Checks the tables of tensors that rows go to in order.
template <class Tensors>
void check_tables_of_rows(CacheSizes const& sizes, Tensors const& tensors, char const* keys, char const* values) {
  auto const check = [&](auto const& layout, std::int32_t first_layer, std::int32_t end_layer) {
    check_source_tables(
        layout, sizes.num_sequences(),
        [&](std::int64_t sequence) {
          std::int64_t most = 0;
          for (std::int32_t layer = first_layer; layer < end_layer; ++layer) {
            std::int32_t const heads = sizes.num_kv_heads(layer);
            for (std::int32_t head = 0; head < heads; ++head) {
              most = std::max(most, sizes.kept(sizes.first_segment(layer) + sequence * heads + head));
            }
          }
          return std::array{TokenRange{0, most}};
        },
        keys, values);
  };
  if constexpr (is_layered<Tensors>) {
    for (std::int32_t layer = 0; layer < sizes.num_layers(); ++layer) {
      if (sizes.num_kv_heads(layer) > 0)
        check(layer_source(tensors, static_cast<std::size_t>(layer)), layer, layer + 1);
    }
  } else {
    check(tensors, 0, sizes.num_layers());
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
