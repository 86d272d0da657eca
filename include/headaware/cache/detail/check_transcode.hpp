#pragma once

// Checks of two packed caches of the same rows, before the one is written from the other.

#include <headaware/cache/adjacent_rows.hpp>
#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_packed.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/intervals.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @throws ArgumentError unless both caches hold rows of the same channels in the compaction's layers
template <class Table, class From, class To, class Registry>
void check_transcoded_channels(Compaction<Table> const& compaction, PackedDestination<From, Registry> const& from,
                               PackedDestination<To, Registry> const& to, char const* where) {
  for (std::int32_t layer = 0; layer < compaction.num_layers(); ++layer) {
    auto const l = static_cast<std::size_t>(layer);
    if (compaction.num_kv_heads(layer) == 0) continue;
    RowChannels const channels = from.channels.of(l);
    require(channels == to.channels.of(l), "destination's channels", {channels.head_dim, " and ", channels.value_dim},
            {to.channels.of(l).head_dim, " and ", to.channels.of(l).value_dim}, {where, ", layer ", layer});
  }
}

/// Checks caches without buffers, whose heads may be on a device. @throws ArgumentError as `transcode`
template <class Table, class From, class To, class Registry>
void check_transcoded(Compaction<Table> const& compaction, PackedDestination<From, Registry> const& from,
                      PackedDestination<To, Registry> const& to, char const* where) {
  check_planned_cache(compaction, from, "source", where);
  check_planned_cache(compaction, to, "destination", where);
  check_transcoded_channels(compaction, from, to, where);
}

/// @throws ArgumentError unless buffers of the destination are apart from each other and from the source's, and its
///         pages those of one sequence each
template <class From, class To, class Registry>
void check_transcoded_buffers(PackedDestination<From, Registry> const& from, PackedDestination<To, Registry> const& to,
                              char const* where) {
  if constexpr (requires { to.form.shares_pages; }) {
    require(!to.form.shares_pages, "destination's pages", "pages of one sequence each", "shared ones", where);
  }
  std::vector<Interval> read;
  std::vector<Interval> written;
  for (std::size_t l = 0; l < to.layers.size(); ++l) {
    read.push_back(interval(from.layers[l], from.first_units[l + 1] - from.first_units[l]));
    written.push_back(interval(to.layers[l], to.first_units[l + 1] - to.first_units[l]));
  }
  require(!sort_and_overlap(written), "buffers", "destinations apart from each other", "overlapping destinations",
          where);
  require(!sort_and_overlap(read, written), "buffers", "a destination apart from the source", "overlapping buffers",
          where);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
