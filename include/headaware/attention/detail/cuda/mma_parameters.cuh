#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/coded_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/detail/stretches.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/element.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows of a tile: of a warp's matrix product.
inline constexpr std::int32_t mma_rows = 16;
/// The most warps of a block; fewer where shared memory has no room for their tiles.
inline constexpr std::int32_t max_mma_warps = 4;
/// The most tiles of a warp that are in shared memory or on their way there.
inline constexpr std::int32_t max_mma_stages = 4;
/// The most blocks of a launch, whatever the device: two on each of 256 multiprocessors.
inline constexpr std::int64_t max_mma_blocks = 512;
/// Parts that are joined at once, and, as a join of joins, all parts that there may be.
inline constexpr std::int32_t join_parts = 16;
inline constexpr std::int32_t join_joins = static_cast<std::int32_t>(max_mma_blocks) / join_parts;
static_assert(join_joins <= warp_threads && join_joins >= join_parts);
/// The most channels of a row.
inline constexpr std::int64_t max_mma_channels = 256;

/// Elements of type E whose sum holds a number of type X to its own precision.
template <class E, class X>
inline constexpr int parts_of = std::is_same_v<X, float> ? (std::is_same_v<E, float16> ? 2 : 3)
                                : std::is_same_v<X, float16>&& std::is_same_v<E, bfloat16> ? 2
                                                                                           : 1;

/// Whether matrix products take elements of this type.
template <class E>
inline constexpr bool is_mma_element = std::is_same_v<E, float16> || std::is_same_v<E, bfloat16>;

/// Bytes of the largest encoded row in shared memory. @tparam Cache  of encoded rows, else 0
template <class Cache>
struct MmaCodedRow {
  using Registry = void;
  static constexpr std::int32_t bytes(std::int32_t) { return 0; }
};
template <class Reg, class View>
struct MmaCodedRow<PackedCache<Reg, View>> {
  using Registry = Reg;
  static constexpr std::int32_t bytes(std::int32_t channels) {
    return static_cast<std::int32_t>(CodedRowSizes<Reg>::most_bytes(channels, channels));
  }
};

/// What a call hands over to a kernel on tensor cores.
template <class Q, class QLayout, class Cache, class O, class OLayout>
struct MmaArguments {
  using Element = typename CacheTypes<Cache>::Element;
  using View = typename CacheTypes<Cache>::View;
  using Query = Q;
  using Output = O;
  /// Whether all warps of a block work on the same tiles (`wide_kernel`), each on some channels.
  static constexpr bool wide = false;

  AttentionShape shape;
  AttentionQueries<Q, QLayout> queries_in;
  Cache cache;
  AttentionOutput<O, OLayout> output;
  std::int32_t const* first_positions;
  std::int64_t window;
  float const* sinks;
  LogitMap map;
  KvSplit kv;
  AttentionBounds bounds;
  AttendArrays arrays;
  std::int32_t stages;  ///< tiles of a warp in shared memory; of `wide_kernel`: of the block
  bool wide_queries;    ///< 16-byte loads; else element by element
  bool wide_output;     ///< four channels at a time
  bool query_rows;      ///< of chunks: rows' channels lie side by side, for 16-byte loads
  bool output_rows;
};

/// The kernel for decoding.
/// @tparam ChannelTiles  16 channels each, of keys and of values: 8 or 16
/// @tparam QueryTiles    8 query rows each, of a block: 1, or 2 where there are 8 tiles of channels
template <class Q, class QLayout, class Cache, class O, class OLayout, int ChannelTiles, int QueryTiles>
struct MmaParameters : MmaArguments<Q, QLayout, Cache, O, OLayout> {
  using Element = typename CacheTypes<Cache>::Element;
  static constexpr bool coded = is_packed<Cache>;
  static constexpr bool chunk = false;
  using Registry = typename MmaCodedRow<Cache>::Registry;
  /// What queries and weights are rounded to; of encoded rows, for all formats but one.
  using Rounded = std::conditional_t<coded, float16, Element>;
  static constexpr int channel_tiles = ChannelTiles;
  static constexpr int query_tiles = QueryTiles;
  static constexpr int queries = 8 * QueryTiles;
  static constexpr int query_parts = parts_of<Rounded, Q>;
  static constexpr int weight_parts = parts_of<Rounded, O>;
  /// Lanes that copy a row, 16 bytes each.
  static constexpr int row_lanes = 2 * ChannelTiles;
  /// Bytes from one row to the next in shared memory: an odd number of 16-byte pieces, so that eight rows lie in all
  /// banks. The last piece holds addresses and positions of rows.
  static constexpr std::int32_t pitch = 32 * ChannelTiles + 16;
  static constexpr std::int32_t query_bytes = queries * pitch;  ///< of each part of the queries
  /// For encoded keys: queries in two orders, or as elements of two types, and what codes' origins add to scores.
  static constexpr std::int32_t query_copies = coded ? std::max(2 * query_parts, parts_of<bfloat16, Q>) : query_parts;
  static constexpr std::int32_t plane_offset = query_parts * query_bytes;
  static constexpr std::int32_t origin_offset = query_copies * query_bytes;
  static constexpr std::int32_t query_space = origin_offset + (coded ? ChannelTiles / 2 * queries * 4 : 0);
  static constexpr std::int32_t value_offset = mma_rows * pitch;
  /// Floats between the sums of two queries, in a warp's tiles, which are dead by then.
  static constexpr std::int32_t sum_pitch = 16 * ChannelTiles + 4;
  /// Bytes after the last tile that may be looked at: rows of numbers need not have whole blocks of channels.
  static constexpr std::int32_t after_ring = 128;
  /// Of encoded rows: of the largest there are.
  static constexpr std::int32_t stage_bytes =
      coded ? std::max(mma_rows * (MmaCodedRow<Cache>::bytes(16 * ChannelTiles) + 8) + after_ring / 2,
                       queries* sum_pitch * 2)
            : 2 * mma_rows * pitch;
  /// Rows of a unit of work.
  static constexpr std::int64_t unit_rows = mma_rows;
  /// Tiles of a warp in shared memory, from and to: of encoded rows, which are small, more than `stages`.
  static constexpr std::int32_t least_stages = 2;
  static constexpr std::int32_t most_stages = coded ? 2 * max_mma_stages : max_mma_stages;
  /// Tiles of a stretch, at least: encoded rows are short, so more of them beside the partial results of queries.
  [[nodiscard]] static __device__ std::int64_t shortest_stretch(KvSplit const& kv) {
    return coded ? max(Stretches::shortest, 4 * kv.tile_rows) : Stretches::shortest;
  }
  static_assert(queries * sum_pitch * 4 <= 2 * stage_bytes && stage_bytes % 16 == 0 && query_space % 16 == 0);

  [[nodiscard]] static constexpr std::int32_t shared_bytes(std::int32_t warps, std::int32_t stages) {
    return query_space + warps * stages * stage_bytes;
  }
};

/// Some query rows over all rows of a segment, and the piece of it that a block works on.
struct MmaJob {
  std::int64_t sequence;
  std::int64_t kv_head;
  std::int64_t first_query;
  std::int32_t query_count;
  JobParts parts;
  std::int64_t part;   ///< which of them the piece is
  std::int32_t begin;  ///< units of the segment's rows
  std::int32_t end;    ///< 0: there is no piece
};

/// What queries of a job see.
struct MmaMask {
  bool masked = false;              ///< else every row
  std::int64_t first_position = 0;  ///< of the sequence's query token 0
  std::int64_t first = 0;           ///< positions of the job's first and last query
  std::int64_t last = 0;
};

/// Static shared memory of a block.
template <int Queries>
struct MmaShared {
  /// Queries whose sums several warps have, all but those of chunks.
  static constexpr int shared_queries = Queries > 16 ? 1 : Queries;
  WorkScan scan;
  Stretches stretches;
  std::int64_t at;  ///< where on the line the next piece begins, and the block's stretch ends
  std::int64_t end;
  MmaJob job;
  MmaMask mask;
  std::int64_t tokens[Queries];                      ///< of the queries
  std::int64_t heads[Queries];                       ///< of the queries
  float scales[Queries];                             ///< from products to logits, or to what the soft cap takes
  float2 whole[Queries];                             ///< (max, sum) of the block, or of parts that it joins
  float2 states[max_mma_warps][shared_queries];      ///< (origin, sum) of each warp's weights
  float factors[max_mma_warps][shared_queries];      ///< from a warp's origin to the block's
  float part_factors[shared_queries][warp_threads];  ///< of parts that it joins
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
