#pragma once

// Checks of packed caches on the host, before rows are read or written.

#include <headaware/cache/adjacent_rows.hpp>
#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Whether a form's segments are side by side each; of other forms the device asks where a row is.
template <class Form>
inline constexpr bool has_adjacent_rows =
    std::is_same_v<decltype(std::declval<Form const&>().rows(std::declval<Segment const&>(), LayerCapacity{})),
                   AdjacentRows>;

/// @param d_plan  the device's copy of a plan, read 16 bytes at a time
inline void check_plan_pointer(void const* d_plan, char const* where) {
  require_pointer(d_plan, "plan", where);
  require(reinterpret_cast<std::uintptr_t>(d_plan) % 16 == 0, "plan", "an address aligned to 16 bytes", "another",
          where);
}

/// Unit of a segment's row 0 in its layer's buffer; of forms of other rows the segment's shift alone.
template <class Form, class Registry>
std::int64_t first_unit_of(PackedDestination<Form, Registry> const& cache, Segment const& segment) {
  PackedSegment<Registry> const& packed = cache.segments[static_cast<std::size_t>(segment.index)];
  if constexpr (has_adjacent_rows<Form>) {
    auto const rows = cache.form.rows(segment, cache.capacities[static_cast<std::size_t>(segment.layer)]);
    return packed.shift + rows.offset(0, packed.units);
  } else {
    return packed.shift;
  }
}

/// Checks that a compaction's rows lie within a packed cache, and that a ragged one is of the same lengths: rows of
/// other widths move all that come after them.
/// @pre  the cache's layers, segments and KV heads are the compaction's
/// @param what  the cache, in messages
template <class Table, class Form, class Registry>
void check_packed_rows(Compaction<Table> const& compaction, PackedDestination<Form, Registry> const& cache,
                       char const* what, char const* where) {
  for (std::int32_t layer = 0; layer < compaction.num_layers(); ++layer) {
    auto const l = static_cast<std::size_t>(layer);
    std::int64_t const units = cache.buffer_units(l);
    std::int64_t next = 0;
    for (std::int64_t s = compaction.first_segment(layer); s < compaction.first_segment(layer + 1); ++s) {
      Segment const segment = compaction.segment(s);
      if (segment.kept == 0) continue;
      PackedSegment<Registry> const& packed = cache.segments[static_cast<std::size_t>(s)];
      auto const rows = cache.form.rows(segment, cache.capacities[l]);
      std::int64_t const first = rows.offset(0, packed.units) + packed.shift;
      std::int64_t const last = rows.offset(segment.kept - 1, packed.units) + packed.shift;
      bool lies = std::min(first, last) >= 0 && std::max(first, last) + packed.units <= units;
      if (std::is_same_v<Form, RaggedForm>) lies = lies && first == next;
      next = first + segment.kept * packed.units;
      require(lies, what, "one made for the compaction's lengths", "one made for others", PlaceOf{where, segment});
    }
  }
}

/// Checks that a packed cache has a compaction's layers and segments.
template <class Table, class Form, class Registry>
void check_packed_segments(Compaction<Table> const& compaction, PackedDestination<Form, Registry> const& cache,
                           char const* what, char const* where) {
  auto const layers = static_cast<std::size_t>(compaction.num_layers());
  require(cache.capacities.size() == layers, what, {layers, " layers"}, {cache.capacities.size(), " layers"}, where);
  auto const segments = static_cast<std::int64_t>(cache.segments.size());
  require(segments == compaction.num_segments(), what, {compaction.num_segments(), " segments"},
          {segments, " segments"}, where);
  if constexpr (requires { cache.form.lengths; }) {
    std::int32_t const sequences = cache.form.pages.num_sequences;
    require(sequences == compaction.num_sequences(), what, {compaction.num_sequences(), " sequences"},
            {sequences, " sequences"}, where);
    for (std::int32_t b = 0; b < sequences; ++b) {
      auto const length = compaction.lengths()[static_cast<std::size_t>(b)];
      require(cache.form.lengths[b] == length, what, {"pages of ", length, " tokens"}, cache.form.lengths[b],
              {where, ", sequence ", b});
    }
  }
}

/// Checks that a packed cache without buffers, whose heads may be on a device, is one of a compaction.
template <class Table, class Form, class Registry>
void check_planned_cache(Compaction<Table> const& compaction, PackedDestination<Form, Registry> const& cache,
                         char const* what, char const* where) {
  check_packed_segments(compaction, cache, what, where);
  if constexpr (has_adjacent_rows<Form>) check_packed_rows(compaction, cache, what, where);
}

/// Checks that a packed cache is one of a compaction, with buffers.
template <class Table, class Form, class Registry>
void check_packed_cache(Compaction<Table> const& compaction, PackedDestination<Form, Registry> const& cache,
                        char const* what, char const* where) {
  check_packed_segments(compaction, cache, what, where);
  auto const layers = static_cast<std::size_t>(compaction.num_layers());
  require(cache.layers.size() == layers, what, {"buffers of ", layers, " layers"}, {cache.layers.size(), " buffers"},
          where);
  if constexpr (requires { cache.form.num_sequences; }) {
    require(cache.form.num_sequences == compaction.num_sequences(), what, {compaction.num_sequences(), " sequences"},
            {cache.form.num_sequences, " sequences"}, where);
  }
  for (std::int32_t layer = 0; layer < compaction.num_layers(); ++layer) {
    auto const l = static_cast<std::size_t>(layer);
    std::int32_t const heads = cache.capacities[l].num_kv_heads;
    require(heads == compaction.num_kv_heads(layer), what, {compaction.num_kv_heads(layer), " KV heads"},
            {heads, " KV heads"}, {where, ", layer ", layer});
    check_pointer(cache.layers[l], compaction.kept_total(layer) > 0, what, where, l);
  }
  for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
    Segment const segment = compaction.segment(s);
    if constexpr (requires { cache.form.matches(segment); }) {
      bool const matches = visit_policy(compaction.table(), segment.layer, segment.sequence, segment.kv_head,
                                        [&](auto const& policy) { return cache.form.matches(segment, policy); });
      require(matches, what, "one made for the compaction's policies", "one made for others", PlaceOf{where, segment});
    }
    std::int64_t const room =
        cache.form.head_capacity(segment, cache.capacities[static_cast<std::size_t>(segment.layer)]);
    require(segment.kept <= room, what, {"room for ", segment.kept, " tokens"}, room, PlaceOf{where, segment});
  }
  check_packed_rows(compaction, cache, what, where);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
