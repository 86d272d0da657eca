#pragma once

/// @file
/// A packed cache written again in other formats, on the CPU.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_packed.hpp>
#include <headaware/cache/detail/check_transcode.hpp>
#include <headaware/cache/detail/encode_rows.hpp>
#include <headaware/cache/detail/move_rows.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Writes a key or a value in another format; in the same one its words are copied.
/// @param x  [channels], what lies between
template <class Registry>
void transcode_part(AnyFormat<Registry> const& from, std::uint32_t const* words, AnyFormat<Registry> const& to,
                    std::int64_t channels, float* x, std::uint32_t* out) {
  if (from == to) {
    std::copy_n(words, from.row_words(channels), out);
    return;
  }
  from.visit([&](auto const& format) { decode_row(format, words, channels, x); });
  to.visit([&](auto const& format) { encode_row(format, x, channels, out); });
}

/// Writes a row in other formats: key, value, and zeros to a whole unit.
template <class Registry>
void transcode_row(PackedSegment<Registry> const& from, RowUnit const* row, PackedSegment<Registry> const& to,
                   RowChannels const& channels, float* x, RowUnit* out) {
  std::uint32_t const* const words = row->words;
  std::uint32_t* written = out->words;
  std::uint32_t* const end = written + std::int64_t{4} * to.units;
  transcode_part(from.formats.key, words, to.formats.key, channels.head_dim, x, written);
  written += to.formats.key_words(channels.head_dim);
  if (channels.value_dim > 0) {
    transcode_part(from.formats.value, words + from.formats.key_words(channels.head_dim), to.formats.value,
                   channels.value_dim, x, written);
    written += to.formats.value.row_words(channels.value_dim);
  }
  std::fill(written, end, 0U);
}

}  // namespace detail

/// @brief Writes a packed cache again in other formats, and another form if wanted, on the CPU.
///
/// Lossy, and more so than encoding the source in the new formats: what the old formats rounded stays rounded. A key or
/// a value becomes what decoding it and encoding that gives; where its format stays the same, fields included, its
/// words are copied bit for bit, whatever the format (encoding decoded numbers again would give the same codes of 16
/// bits, fp8 and int8, but of a rotated format only nearly, as turning back and forth rounds).
/// @param compaction  whose kept rows both caches hold: of a rolling cache, one of the present lengths
/// @param from  made by `packed_ragged`, `packed_padded` or `packed_grouped` for the compaction, by `packed_rolling`
///              for its policies (no tokens may have been rolled back beyond the window), or by `packed_head_pages`,
///              with buffers
/// @param to    likewise, of the same channels, with buffers apart from those of `from`
/// @throws ArgumentError before anything is written: on caches of other layers, heads, channels or lengths, on buffers
///         that lack or overlap, on pages that do not hold what is kept, and on pages to write that sequences share
/// @note   Deterministic; a block that is NaN stays NaN where the new format has scales
/// @par Cost  Each row is read once and written once; all cores with OpenMP
template <class Table, class From, class To, class Registry>
void transcode(Compaction<Table> const& compaction, PackedDestination<From, Registry> const& from,
               PackedDestination<To, Registry> const& to) {
  constexpr auto where = "transcode";
  detail::check_packed_cache(compaction, from, "source", where);
  detail::check_packed_cache(compaction, to, "destination", where);
  detail::check_transcoded_channels(compaction, from, to, where);
  detail::check_transcoded_buffers(from, to, where);
  auto const tiles = detail::head_tiles(compaction);
  detail::parallel_for(
      static_cast<std::int64_t>(tiles.size()), 1, true, [] { return std::vector<float>{}; },
      [&](std::vector<float>& x, std::int64_t i) {
        detail::Tile const& tile = tiles[static_cast<std::size_t>(i)];
        Segment const segment = compaction.segment(tile.first_segment);
        auto const layer = static_cast<std::size_t>(segment.layer);
        RowChannels const channels = from.channels.of(layer);
        x.resize(static_cast<std::size_t>(std::max(channels.head_dim, channels.value_dim)));
        PackedSegment<Registry> const& old = from.segments[static_cast<std::size_t>(segment.index)];
        PackedSegment<Registry> const& now = to.segments[static_cast<std::size_t>(segment.index)];
        auto const old_rows = from.form.rows(segment, from.capacities[layer]);
        auto const rows = to.form.rows(segment, to.capacities[layer]);
        for (std::int64_t row = tile.begin; row < tile.end; ++row) {
          detail::transcode_row(old, from.layers[layer] + old_rows.offset(row, old.units) + old.shift, now, channels,
                                x.data(), to.layers[layer] + rows.offset(row, now.units) + now.shift);
        }
      });
}

HEADAWARE_NAMESPACE_END
