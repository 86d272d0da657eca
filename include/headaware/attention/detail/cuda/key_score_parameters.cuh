#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/check_key_scores.hpp>
#include <headaware/attention/key_score_buffer.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/element.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Threads of a block: 4 warps, each with 16 rows of the held tile.
inline constexpr std::int32_t score_threads = 128;
/// Blocks that a multiprocessor must have registers for.
inline constexpr std::int32_t score_blocks = 3;
/// Rows of the tile that a block holds: queries of the first pass, keys of the second.
inline constexpr std::int32_t held_tile_rows = 64;
/// The most parts that the first pass divides a KV head's rows into.
inline constexpr std::int64_t max_score_splits = 16;

/// Shared memory of a block: the held tile, and tiles of the other rows that pass by.
struct KeyScoreMemory {
  std::int32_t pitch = 0;   ///< elements of a row
  std::int32_t stages = 0;  ///< 2: the next tile is on its way while one is worked on; 0: no room for one
  std::int32_t all_bytes = 0;

  /// @param moving  rows of a tile that passes by
  template <class E>
  static KeyScoreMemory of(std::int64_t head_dim, std::int32_t moving, std::int32_t limit) {
    constexpr std::int64_t width = 16 / static_cast<std::int64_t>(sizeof(E));
    std::int64_t const channels = (head_dim + 15) / 16 * 16;
    std::int64_t const pitch = channels + width;
    KeyScoreMemory memory;
    memory.pitch = static_cast<std::int32_t>(pitch);
    for (std::int32_t stages : {2, 1}) {
      std::int64_t const bytes = (held_tile_rows + stages * moving) * pitch * static_cast<std::int64_t>(sizeof(E));
      if (bytes > limit) continue;
      memory.stages = stages;
      memory.all_bytes = static_cast<std::int32_t>(bytes);
      break;
    }
    return memory;
  }
};

/// What both passes work with.
/// @tparam C  `KeptCache` or `LatentCache` of the core's elements
template <class Q, class QLayoutT, class C>
struct KeyScoreParameters {
  using Query = Q;
  using QLayout = QLayoutT;
  using Element = typename CacheTypes<C>::Element;
  using View = typename CacheTypes<C>::View;
  /// Elements of tiles in shared memory: those of 16 bits that queries and keys share go through tensor cores.
  using Tile = std::conditional_t<std::is_same_v<Q, Element>, Element, float>;
  static constexpr bool copies_async = std::is_same_v<Q, Element>;
  static constexpr std::int32_t moving = WarpProducts<Tile>::keys;  ///< rows of a tile that passes by

  AttentionShape shape;
  AttentionQueries<Q, QLayout> queries;
  C cache;
  std::int32_t const* first_positions;
  std::int64_t window;
  float const* sinks;
  LogitMap map;
  KeyScores scores;
  KeyScoreReduction reduction;
  OnlineSoftmax<float>* parts;  ///< [splits, segments, query rows]
  std::int64_t splits;
  std::int64_t tiles;  ///< of a KV head, of the rows that blocks hold
  KeyScoreMemory memory;
  bool wide_queries;  ///< 16 bytes may be read at once
  bool wide_keys;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
