#pragma once

/// @file
/// Caches of encoded rows whose heads have formats of their own: ragged, padded and grouped, in one buffer per layer.

#include <headaware/cache/destination.hpp>
#include <headaware/cache/sizes.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief How a segment's rows are encoded, and where they lie beside those of heads with rows of other widths: row i
/// begins at unit `rows.offset(i, units) + shift` of the layer's buffer, `rows` being what its form or view says.
template <class Registry = DefaultFormats>
struct PackedSegment {
  BasicHeadFormats<Registry> formats{};
  std::int32_t units = 0;
  std::int64_t shift = 0;
};

namespace detail {

/// Whether all layers' rows lie in one buffer, as pages of a pool do. The pool then counts as the first layer's.
template <class Form>
inline constexpr bool has_one_pool = requires {
  requires Form::one_pool;
};

}  // namespace detail

/// @brief A packed cache that compaction writes: a form, one buffer of rows per layer, and how every segment is
/// encoded. Made by `packed_ragged`, `packed_padded` and `packed_grouped`; lives on the host.
template <class F, class Registry = DefaultFormats>
struct PackedDestination {
  using Form = F;
  using Formats = BasicHeadFormats<Registry>;

  Form form;
  LayerChannels channels;                         ///< of the rows before they are encoded
  std::vector<LayerCapacity> capacities;          ///< [num_layers], in rows
  std::vector<PackedSegment<Registry>> segments;  ///< [segments]
  std::vector<std::int64_t> first_segments;       ///< [num_layers + 1]
  std::vector<std::int64_t> first_units;          ///< [num_layers + 1], layers back to back
  std::vector<RowUnit*> layers;                   ///< [num_layers] buffers, once there are any

  /// Units of all layers together, 16 bytes each: known before there is any buffer.
  [[nodiscard]] std::int64_t total_units() const { return first_units.empty() ? 0 : first_units.back(); }
  [[nodiscard]] std::int64_t total_bytes() const { return total_units() * std::int64_t{sizeof(RowUnit)}; }
  /// Units of the buffer that a layer's rows lie in: its own, or the pool of all layers' pages.
  [[nodiscard]] std::int64_t buffer_units(std::size_t layer) const {
    return detail::has_one_pool<Form> ? total_units() : first_units[layer + 1] - first_units[layer];
  }
  /// A layer's segments, [num_sequences, KV heads of the layer], as attention reads them; valid while this lives.
  [[nodiscard]] std::span<PackedSegment<Registry> const> layer(std::int32_t layer) const {
    require_index(layer, static_cast<std::int64_t>(capacities.size()), "layer", "PackedDestination");
    auto const l = static_cast<std::size_t>(layer);
    return std::span(segments).subspan(static_cast<std::size_t>(first_segments[l]),
                                       static_cast<std::size_t>(first_segments[l + 1] - first_segments[l]));
  }
  /// @brief The same with one buffer for all layers, back to back. @param rows  [total_units()]
  [[nodiscard]] PackedDestination with_buffer(RowUnit* rows) const {
    PackedDestination result = *this;
    result.layers.clear();
    for (std::size_t l = 0; l < capacities.size(); ++l) {
      bool const at_begin = rows == nullptr || detail::has_one_pool<Form>;
      result.layers.push_back(at_begin ? rows : rows + first_units[l]);
    }
    return result;
  }
};

namespace detail {

/// Rows that a form sets aside for a segment: the first, and how many.
struct RowBlock {
  std::int64_t first = 0;
  std::int64_t count = 0;
};
inline RowBlock row_block(RaggedForm const&, Segment const& segment, LayerCapacity const&) {
  return {segment.first_row, segment.kept};
}
inline RowBlock row_block(PaddedForm const&, Segment const& segment, LayerCapacity const& capacity) {
  return {(std::int64_t{segment.sequence} * capacity.num_kv_heads + segment.kv_head) * capacity.head_rows,
          capacity.head_rows};
}
inline RowBlock row_block(GroupedForm const& form, Segment const& segment, LayerCapacity const& capacity) {
  return {form.rows(segment, capacity).first, segment.full_group ? capacity.full_head_rows : capacity.head_rows};
}

/// Lays rows of different widths out in the order that a form gives them.
/// @param blocks_of_layer  (layer) to the rows of its segments, [num_sequences, KV heads of the layer]
template <class Form, class Registry, class Blocks>
PackedDestination<Form, Registry> packed_destination(LayerHeads const& heads, Destination<RowUnit, Form> const& plain,
                                                     BasicFormatTable<Registry> const& formats, char const* where,
                                                     Blocks const& blocks_of_layer) {
  require(formats.num_layers() == heads.num_layers, "format table's layers", heads.num_layers, formats.num_layers(),
          where);
  PackedDestination<Form, Registry> result{plain.form, plain.channels, plain.capacities, {}, {0}, {0}, {}};
  for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
    std::int32_t const count = heads.count(layer);
    require(formats.heads().count(layer) == count, "format table's KV heads", count, formats.heads().count(layer),
            {where, ", layer ", layer});
    struct Block {
      RowBlock rows;
      std::size_t segment;
    };
    std::vector<Block> blocks;
    RowChannels const channels = plain.channels.of(static_cast<std::size_t>(layer));
    for (RowBlock const& rows : blocks_of_layer(layer)) {
      auto const& head = formats.at(layer, static_cast<std::int32_t>(static_cast<std::int64_t>(blocks.size()) % count));
      blocks.push_back({rows, result.segments.size()});
      result.segments.push_back(
          {head, static_cast<std::int32_t>(head.row_units(channels.head_dim, channels.value_dim)), 0});
    }
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](Block const& a, Block const& b) { return a.rows.first < b.rows.first; });
    std::int64_t units = 0;
    for (Block const& block : blocks) {
      PackedSegment<Registry>& segment = result.segments[block.segment];
      segment.shift = units - elements(where, {block.rows.first, segment.units});
      units += elements(where, {block.rows.count, segment.units});
    }
    result.first_segments.push_back(static_cast<std::int64_t>(result.segments.size()));
    result.first_units.push_back(result.first_units.back() + units);
  }
  return result;
}

/// The same for forms of compaction.
template <class Form, class Registry>
PackedDestination<Form, Registry> packed_destination(CacheSizes const& sizes, Destination<RowUnit, Form> const& plain,
                                                     BasicFormatTable<Registry> const& formats, char const* where) {
  return packed_destination(sizes.heads(), plain, formats, where, [&](std::int32_t layer) {
    std::vector<RowBlock> blocks;
    for (std::int64_t s = sizes.first_segment(layer); s < sizes.first_segment(layer + 1); ++s) {
      Segment const segment = sizes.segment(s);
      bool const has_place = !Form::needs_group || sizes.has_group(layer, segment.kv_head);
      LayerCapacity const& capacity = plain.capacities[static_cast<std::size_t>(layer)];
      blocks.push_back(has_place ? row_block(plain.form, segment, capacity) : RowBlock{});
    }
    return blocks;
  });
}

}  // namespace detail

/// @brief Plans a ragged cache of encoded rows: the heads of a layer back to back, each row as wide as its head's
/// formats make it.
/// @param formats    of the same layers and KV heads
/// @param channels   of the rows before they are encoded: head_dim where all layers are alike, or a `ModelShape`
/// @param value_dim  channels of a value, where all layers are alike; 0: as many as a key has
/// @return the cache without buffers: `total_bytes()` says how many it needs, `with_buffer` gives it one
/// @throws ArgumentError on other layers or heads, or channels that are not positive
template <class Registry>
[[nodiscard]] PackedDestination<RaggedForm, Registry> packed_ragged(CacheSizes const& sizes,
                                                                    BasicFormatTable<Registry> const& formats,
                                                                    LayerChannels const& channels,
                                                                    std::int64_t value_dim = 0) {
  return detail::packed_destination(sizes, detail::ragged_form<RowUnit>(sizes, channels, value_dim), formats,
                                    "packed_ragged");
}

/// @brief The same padded: `max_kept(layer)` rows per head.
template <class Registry>
[[nodiscard]] PackedDestination<PaddedForm, Registry> packed_padded(CacheSizes const& sizes,
                                                                    BasicFormatTable<Registry> const& formats,
                                                                    LayerChannels const& channels,
                                                                    Alignment alignment = Alignment::left,
                                                                    std::int64_t value_dim = 0) {
  return detail::packed_destination(sizes, detail::padded_form<RowUnit>(sizes, channels, value_dim, alignment), formats,
                                    "packed_padded");
}

/// @brief The same grouped: the `Full` heads before the others.
template <class Registry>
[[nodiscard]] PackedDestination<GroupedForm, Registry> packed_grouped(CacheSizes const& sizes,
                                                                      BasicFormatTable<Registry> const& formats,
                                                                      LayerChannels const& channels,
                                                                      std::int64_t value_dim = 0) {
  return detail::packed_destination(sizes, detail::grouped_form<RowUnit>(sizes, channels, value_dim), formats,
                                    "packed_grouped");
}

HEADAWARE_NAMESPACE_END
