#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Query rows of a block: 16 of each warp.
inline constexpr std::int32_t chunk_queries = 64;
/// The most query rows of a KV head, and the most channels, that stay with the kernel for decoding, and go to this one.
inline constexpr std::int64_t max_decode_queries = 16;
inline constexpr std::int64_t max_chunk_channels = 128;
/// Blocks that a multiprocessor must have room for: as many as leave enough registers not to spill.
inline constexpr std::int32_t chunk_blocks = 2;
/// Tiles of 16 rows that a block works on at a time.
inline constexpr int chunk_slots = 2;

/// Whether there is a kernel for many query rows: over rows of elements, where queries are of no more precision.
template <class Q, class Cache>
inline constexpr bool has_chunk_kernel = !is_packed<Cache> && parts_of<typename CacheTypes<Cache>::Element, Q> == 1;

inline bool is_chunk(AttentionShape const& shape) {
  return shape.query_rows() > max_decode_queries && shape.head_dim <= max_chunk_channels &&
         shape.output_dim() <= max_chunk_channels;
}

/// The kernel for chunks and drafts. Its constants mean what those of `MmaParameters` do.
template <class Q, class QLayout, class Cache, class O, class OLayout>
struct ChunkParameters : MmaArguments<Q, QLayout, Cache, O, OLayout> {
  using Element = typename CacheTypes<Cache>::Element;
  static constexpr bool coded = false;
  static constexpr bool chunk = true;
  static constexpr int channel_tiles = static_cast<int>(max_chunk_channels) / 16;
  static constexpr std::int32_t queries = chunk_queries;
  static constexpr int query_parts = parts_of<Element, Q>;
  static constexpr int weight_parts = parts_of<Element, O>;
  static constexpr int row_lanes = 2 * channel_tiles;
  static constexpr std::int32_t pitch = 32 * channel_tiles + 16;
  static constexpr std::int32_t query_bytes = queries * pitch;
  static constexpr std::int32_t value_offset = mma_rows * pitch;
  static constexpr std::int32_t sum_pitch = 16 * channel_tiles + 4;
  static constexpr std::int32_t stage_bytes = 2 * mma_rows * pitch;
  /// A warp has one tile in shared memory: two warps' are worked on while the others' are on their way.
  static constexpr std::int32_t least_stages = 1;
  static constexpr std::int32_t most_stages = 1;
  static constexpr std::int32_t shared_bytes = max_mma_warps * stage_bytes;
  static constexpr std::int32_t unit_tiles = max_mma_warps;
  static constexpr std::int64_t unit_rows = unit_tiles * mma_rows;
  /// Partial results are as large as 64 rows: few beside the rows of a stretch.
  [[nodiscard]] static __device__ std::int64_t shortest_stretch(KvSplit const&) { return 4; }
  static_assert(query_parts == 1 && query_bytes <= chunk_slots * stage_bytes);
  static_assert(mma_rows * sum_pitch * 4 <= stage_bytes);
};

/// Which rows of a warp's tile queries see: `none_held`, all of them `mma_rows`, else as many rows as there are, of
/// which queries may not see some.
inline constexpr std::int32_t none_held = 0;

template <class P>
struct ChunkShared {
  MmaShared<P::queries> mma;
  std::int32_t slots[max_mma_warps];       ///< of the warps' tiles
  std::int64_t output_places[P::queries];  ///< of the queries' output rows, in elements
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
