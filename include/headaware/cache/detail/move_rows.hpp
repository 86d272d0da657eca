#pragma once

// The rows of a compaction on the CPU: who moves which, and how.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/kept_tokens.hpp>
#include <headaware/cache/detail/stream_bytes.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows [begin, end) of one segment, or of neighbouring heads of one sequence: moved by one thread at a time.
struct Tile {
  std::int64_t first_segment = 0;
  std::int64_t heads = 1;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// @brief Cuts a layer's segments into tiles, so that one long head does not keep one thread busy alone.
/// @param rows   rows of a head in a tile, at most
/// @param heads  heads that share a tile; divides the number of KV heads
template <class = void>
void add_tiles(CacheSizes const& sizes, std::int32_t layer, std::int64_t rows, std::int64_t heads,
               std::vector<Tile>& tiles) {
  for (std::int64_t first = sizes.first_segment(layer); first < sizes.first_segment(layer + 1); first += heads) {
    std::int64_t most = 0;
    for (std::int64_t s = first; s < first + heads; ++s) most = std::max(most, sizes.kept(s));
    for (std::int64_t begin = 0; begin < most; begin += rows) {
      tiles.push_back({first, heads, begin, std::min(most, begin + rows)});
    }
  }
}

/// Tiles of all heads, for rows that cost more to encode than to find.
template <class = void>
std::vector<Tile> head_tiles(CacheSizes const& sizes) {
  constexpr std::int64_t rows = 64;
  std::vector<Tile> tiles;
  for (std::int32_t layer = 0; layer < sizes.num_layers(); ++layer) add_tiles(sizes, layer, rows, 1, tiles);
  return tiles;
}

/// Whether a token's heads are closer together than a head's tokens.
template <class Layout>
bool heads_interleave(Layout const& layout, CacheSizes const& sizes, std::int32_t num_kv_heads) {
  if (num_kv_heads < 2 || sizes.max_length() < 2 || sizes.kept_total() == 0) return false;
  return layout.offset(0, 1, 0, 0) < layout.offset(0, 0, 1, 0);
}

/// A tensor seen from one segment: the offset of a token's channel.
template <class Layout>
struct SegmentTensor {
  Layout layout;
  std::int64_t sequence;
  std::int64_t kv_head;
  std::int64_t operator()(std::int64_t token, std::int64_t channel) const {
    return layout.offset(sequence, kv_head, token, channel);
  }
};

/// Places of one segment's rows in the destination.
template <class Rows>
struct SegmentRows {
  Rows rows;
  std::int64_t channels;
  std::int64_t operator()(std::int64_t row, std::int64_t channel) const { return rows.offset(row, channels) + channel; }
};

/// Order of channels in source and destination, decided once per call.
struct RowShape {
  std::int64_t channels = 0;
  bool contiguous = false;  ///< both sides hold a token's channels side by side
  bool transposed = false;  ///< the source holds a channel's tokens side by side
};

/// Copies long stretches past the CPU's caches if `enabled`, as for large caches.
struct StreamingCopy {
  bool enabled = false;
  void operator()(void* target, void const* source, std::size_t bytes) const {
    constexpr std::size_t long_stretch = 2048;
    if (enabled && bytes >= long_stretch) {
      stream_bytes(target, source, bytes);
    } else {
      std::memcpy(target, source, bytes);
    }
  }
};

/// Copies in place, where a stretch may overlap its target.
struct MovingCopy {
  void operator()(void* target, void const* source, std::size_t bytes) const { std::memmove(target, source, bytes); }
};

/// Copies rows begin, begin + 1, … of a segment from the given tokens. In place (`kept` the same
/// tensor as `source`) ascending order makes it safe: a row's token is never before the row.
template <class Copy, class T, class From, class To>
void copy_rows(Copy const& copy, std::int64_t begin, std::span<std::int64_t const> tokens, T const* source,
               From const& from, T* kept, To const& to, RowShape const& shape) {
  auto const count = static_cast<std::int64_t>(tokens.size());
  auto const token = [&](std::int64_t i) { return tokens[static_cast<std::size_t>(i)]; };
  if (shape.contiguous) {
    for (std::int64_t i = 0; i < count;) {
      std::int64_t const first = from(token(i), 0);
      std::int64_t const target = to(begin + i, 0);
      std::int64_t elements = shape.channels;
      std::int64_t next = i + 1;
      while (next < count && from(token(next), 0) == first + elements && to(begin + next, 0) == target + elements) {
        elements += shape.channels;
        ++next;
      }
      copy(kept + target, source + first, static_cast<std::size_t>(elements) * sizeof(T));
      i = next;
    }
    return;
  }
  // Transposed, channel by channel, so that reads follow memory; a block's destination rows stay in the CPU's caches.
  std::int64_t const block = shape.transposed ? 64 : 1;
  for (std::int64_t low = 0; low < count; low += block) {
    std::int64_t const high = std::min(count, low + block);
    for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
      for (std::int64_t i = low; i < high; ++i) kept[to(begin + i, channel)] = source[from(token(i), channel)];
    }
  }
}

/// The same for keys, each turned to its row's position.
template <class T, class From, class To>
void rotate_rows(KeyRotation const& rotation, std::int64_t sequence, std::int64_t begin,
                 std::span<std::int64_t const> tokens, T const* source, From const& from, T* kept, To const& to,
                 std::int64_t channels) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::int64_t const token = tokens[i];
    std::int64_t const row = begin + static_cast<std::int64_t>(i);
    std::int64_t const distance = rotation.distance(sequence, token, row);
    for (std::int32_t pair_index = 0; pair_index < rotation.rotary_dim() / 2; ++pair_index) {
      RotaryPair const pair = rotary_pair(rotation, pair_index);
      T const a = source[from(token, pair.a)];
      T const b = source[from(token, pair.b)];
      std::int64_t const by = rotation.distance_of_pair(distance, sequence, token, row, pair_index);
      RotatedPair<T> const rotated = rotate_pair(rotation, by, pair_index, a, b);
      kept[to(row, pair.a)] = rotated.a;
      kept[to(row, pair.b)] = rotated.b;
    }
    for (std::int64_t channel = rotation.rotary_dim(); channel < channels; ++channel) {
      kept[to(row, channel)] = source[from(token, channel)];
    }
  }
}

/// Keys or values of one transfer, as tiles need them.
template <class T, class Layout, class Form>
struct Plane {
  Layout layout;
  RowShape shape;
  StreamingCopy copy;
  Destination<T, Form> const& kept;

  [[nodiscard]] auto from(Segment const& segment) const {
    return SegmentTensor<Layout>{layout, segment.sequence, segment.kv_head};
  }
  [[nodiscard]] auto to(Segment const& segment) const {
    auto const rows = kept.form.rows(segment, kept.capacities[static_cast<std::size_t>(segment.layer)]);
    return SegmentRows<std::remove_const_t<decltype(rows)>>{rows, shape.channels};
  }
};

/// Moves one tile of one plane. @param tokens  [heads, rows]
template <class Rotation, class T, class Layout, class Form>
void run_tile(CacheSizes const& sizes, Plane<T, Layout, Form> const& plane, Rotation const& rotation, Tile const& tile,
              std::int64_t const* tokens, T const* source, T* kept) {
  std::int64_t const rows = tile.end - tile.begin;
  if (tile.heads > 1 && plane.shape.contiguous && std::is_same_v<Rotation, KeepPositions>) {
    // Token by token, all heads of each, as the source has them side by side.
    struct Move {
      T const* source;
      T* kept;
    };
    auto const bytes = static_cast<std::size_t>(plane.shape.channels) * sizeof(T);
    std::vector<Move> moves(static_cast<std::size_t>(rows * tile.heads));
    for (std::int64_t head = 0; head < tile.heads; ++head) {
      Segment const segment = sizes.segment(tile.first_segment + head);
      auto const from = plane.from(segment);
      auto const to = plane.to(segment);
      std::int64_t const held = std::min(rows, segment.kept - tile.begin);
      for (std::int64_t i = 0; i < held; ++i) {
        moves[static_cast<std::size_t>(i * tile.heads + head)] = {source + from(tokens[head * rows + i], 0),
                                                                  kept + to(tile.begin + i, 0)};
      }
    }
    for (Move const& move : moves) {
      if (move.kept != nullptr) std::memcpy(move.kept, move.source, bytes);
    }
    return;
  }
  for (std::int64_t head = 0; head < tile.heads; ++head) {
    Segment const segment = sizes.segment(tile.first_segment + head);
    std::int64_t const count = std::min(rows, segment.kept - tile.begin);
    if (count <= 0) continue;
    std::span<std::int64_t const> const head_tokens(tokens + head * rows, static_cast<std::size_t>(count));
    if constexpr (std::is_same_v<Rotation, KeyRotation>) {
      rotate_rows(rotation, segment.sequence, tile.begin, head_tokens, source, plane.from(segment), kept,
                  plane.to(segment), plane.shape.channels);
    } else {
      copy_rows(plane.copy, tile.begin, head_tokens, source, plane.from(segment), kept, plane.to(segment), plane.shape);
    }
  }
}

/// Keys and values of a layer, as tiles need them.
template <class T, class Source, class Form>
auto layer_planes(Destination<T, Form> const& kept, Source const& source, RowChannels const& channels,
                  StreamingCopy const& copy) {
  auto const plane = [&](auto const& layout, std::int64_t count) {
    RowShape const shape{count, rows_contiguous(layout, count), tokens_adjacent(layout)};
    return Plane<T, std::remove_cvref_t<decltype(layout)>, Form>{layout, shape, copy, kept};
  };
  return std::pair(plane(keys_of(source), channels.head_dim), plane(values_of(source), channels.value_dim));
}

/// Moves one transfer's keys and values, tile by tile.
template <class Table, class T, class Source, class Form, class Rotation>
void run_transfer(Compaction<Table> const& compaction, Transfer<T, Source, Form, Rotation> const& transfer) {
  Destination<T, Form> const& kept = transfer.kept;
  constexpr std::int64_t cache_bytes = std::int64_t{4} << 20;  // a cache this small is better left in the CPU's caches
  // Long enough to amortise a tile's set-up, short enough to share out.
  constexpr std::int64_t tile_bytes = 131072;
  std::int64_t bytes = 0;
  std::vector<Tile> tiles;
  for (std::int32_t layer = 0; layer < compaction.num_layers(); ++layer) {
    auto const l = static_cast<std::size_t>(layer);
    if (compaction.num_kv_heads(layer) == 0) continue;
    RowChannels const channels = kept.channels.of(l);
    auto const size = static_cast<std::int64_t>(sizeof(T));
    bytes += compaction.kept_total(layer) * (channels.head_dim + channels.value_dim) * size;
    bool const together =
        heads_interleave(keys_of(layer_source(transfer.source, l)), compaction, compaction.num_kv_heads(layer));
    std::int64_t const rows =
        std::max<std::int64_t>(16, tile_bytes / (std::max(channels.head_dim, channels.value_dim) * size));
    add_tiles(compaction, layer, rows, together ? compaction.num_kv_heads(layer) : 1, tiles);
  }
  StreamingCopy const copy{bytes > cache_bytes};
  auto const count = static_cast<std::int64_t>(tiles.size());
  struct TileState {
    std::vector<std::int64_t> tokens{};
    StreamFence fence{};
  };
  // Keys first, then values: a thread that alternates between two tensors reads both more slowly.
  parallel_for(
      2 * count, 1, true, [] { return TileState{}; },
      [&](TileState& state, std::int64_t i) {
        std::vector<std::int64_t>& tokens = state.tokens;
        Tile const& tile = tiles[static_cast<std::size_t>(i % count)];
        auto const layer = static_cast<std::size_t>(compaction.segment(tile.first_segment).layer);
        RowChannels const channels = kept.channels.of(layer);
        if (i >= count && channels.value_dim == 0) return;
        std::int64_t const tile_rows = tile.end - tile.begin;
        tokens.resize(static_cast<std::size_t>(tile.heads * tile_rows));
        for (std::int64_t head = 0; head < tile.heads; ++head) {
          Segment const segment = compaction.segment(tile.first_segment + head);
          std::int64_t const stop = std::min(tile.end, segment.kept);
          if (stop <= tile.begin) continue;
          stage_tokens(compaction.table(), segment, tile.begin,
                       std::span(tokens).subspan(static_cast<std::size_t>(head * tile_rows),
                                                 static_cast<std::size_t>(stop - tile.begin)));
        }
        auto const [keys, values] = layer_planes(kept, layer_source(transfer.source, layer), channels, copy);
        if (i < count) {
          run_tile(compaction, keys, transfer.rotation, tile, tokens.data(), transfer.layers[layer].keys,
                   kept.layers[layer].keys);
        } else {
          run_tile(compaction, values, KeepPositions{}, tile, tokens.data(), transfer.layers[layer].values,
                   kept.layers[layer].values);
        }
      });
}

/// Moves one segment's keys and values to the front of the tensors that they are in.
/// @param tokens  scratch
template <class Table, class T, class Keys, class Values, class Rotation>
void move_to_front(Compaction<Table> const& compaction, Segment const& segment, LayerKv<T> const& layer,
                   Keys const& keys, Values const& values, Rotation const& rotation,
                   std::vector<std::int64_t>& tokens) {
  std::int64_t const moved =
      visit_policy(compaction.table(), segment.layer, segment.sequence, segment.kv_head,
                   [&](auto const& policy) { return first_moved_row(policy, segment.kept, segment.length); });
  std::int64_t first = moved;
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    // With positions of their own, keys may turn where they are.
    if (rotation.token_positions() != nullptr) first = 0;
  }
  tokens.resize(static_cast<std::size_t>(segment.kept - first));
  stage_tokens(compaction.table(), segment, first, tokens);
  std::span<std::int64_t const> const staged(tokens);
  auto const copy = [&](auto const& layout, T* data) {
    SegmentTensor<std::remove_cvref_t<decltype(layout)>> const tensor{layout, segment.sequence, segment.kv_head};
    RowShape const shape{layout.num_channels(), rows_contiguous(layout, layout.num_channels()), false};
    copy_rows<MovingCopy, T>({}, moved, staged.subspan(static_cast<std::size_t>(moved - first)), data, tensor, data,
                             tensor, shape);
  };
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    SegmentTensor<Keys> const tensor{keys, segment.sequence, segment.kv_head};
    rotate_rows<T>(rotation, segment.sequence, first, staged, layer.keys, tensor, layer.keys, tensor,
                   keys.num_channels());
  } else {
    copy(keys, layer.keys);
  }
  if (values.num_channels() > 0) copy(values, layer.values);  // a latent has none
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
