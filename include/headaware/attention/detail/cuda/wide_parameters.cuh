#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/detail/stretches.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The most channels of a row of keys, and of values.
template <class Cache>
inline constexpr std::int32_t max_wide_keys = is_latent<Cache> ? 576 : 512;
inline constexpr std::int32_t max_wide_values = 512;

/// Whether `wide_kernel` takes rows of as many channels, which no other kernel on tensor cores does.
template <class Cache>
bool wide_channels(AttentionShape const& shape) {
  return shape.head_dim % 16 == 0 && shape.head_dim <= max_wide_keys<Cache> && shape.output_dim() % 16 == 0 &&
         shape.output_dim() <= max_wide_values;
}

/// The kernel for decoding over wide rows. Its constants mean what those of `MmaParameters` do.
template <class Q, class QLayout, class Cache, class O, class OLayout>
struct WideParameters : MmaArguments<Q, QLayout, Cache, O, OLayout> {
  using Element = typename CacheTypes<Cache>::Element;
  static constexpr bool coded = false;
  static constexpr bool chunk = false;
  static constexpr bool wide = true;
  static constexpr bool latent = is_latent<Cache>;
  static constexpr std::int32_t warps = 8;
  /// Channels of values that a warp sums, 16 each.
  static constexpr int channel_tiles = max_wide_values / 16 / warps;
  static constexpr int query_tiles = 2;
  static constexpr std::int32_t queries = 8 * query_tiles;
  static constexpr int query_parts = parts_of<Element, Q>;
  static constexpr int weight_parts = parts_of<Element, O>;
  static constexpr int row_lanes = max_wide_keys<Cache> / 8;
  static constexpr std::int32_t pitch = 2 * max_wide_keys<Cache> + 16;
  static constexpr std::int32_t query_bytes = queries * pitch;
  static constexpr std::int32_t sum_pitch = max_wide_values + 4;

  // Rows of a tile: as many as a lane has keys, or half as many, where shared memory has no room for them.
  static constexpr std::int32_t most_rows = warp_threads;
  static constexpr std::int32_t least_rows = most_rows / 2;
  static constexpr std::int64_t unit_rows = most_rows;
  /// Of the ring: one is worked on, the others are under way.
  static constexpr std::int32_t least_stages = 1;
  static constexpr std::int32_t most_stages = max_mma_stages - 1;
  /// Channels of keys are divided among so many warps, 16 rows of a tile each.
  [[nodiscard]] static HEADAWARE_HOST_DEVICE constexpr std::int32_t score_groups(std::int32_t rows) {
    return warps * mma_rows / rows;
  }
  static constexpr int most_score_steps = max_wide_keys<Cache> / 16 / (warps * mma_rows / most_rows);

  /// Parts of a result are as long as so many rows of it, or of 16 queries twice as many.
  [[nodiscard]] static __device__ std::int64_t shortest_stretch(KvSplit const& kv) {
    return max(Stretches::shortest, kv.tile_rows);
  }

  // Shared memory: queries, [weight_parts, queries, weight_pitch] weights, what is to be known of them, partial scores,
  // the ring.
  static constexpr std::int32_t weight_pitch = 2 * most_rows + 16;
  static constexpr std::int32_t weight_bytes = queries * weight_pitch;
  static constexpr std::int32_t weight_offset = query_parts * query_bytes;
  static constexpr std::int32_t note_offset = weight_offset + weight_parts * weight_bytes;
  static constexpr std::int32_t score_offset = note_offset + queries * 8;
  /// Two queries' scores side by side, so many pairs from one pair of queries to the next: rows of them lie in all
  /// banks.
  [[nodiscard]] static HEADAWARE_HOST_DEVICE constexpr std::int32_t score_pitch(std::int32_t rows) { return rows + 4; }
  [[nodiscard]] static HEADAWARE_HOST_DEVICE constexpr std::int32_t ring_offset(std::int32_t rows) {
    return score_offset + score_groups(rows) * (queries / 2) * score_pitch(rows) * 8;
  }
  [[nodiscard]] static HEADAWARE_HOST_DEVICE constexpr std::int32_t stage_bytes(std::int32_t rows) {
    return (latent ? 1 : 2) * rows * pitch;
  }
  [[nodiscard]] static constexpr std::int32_t shared_bytes(std::int32_t rows, std::int32_t stages) {
    return ring_offset(rows) + stages * stage_bytes(rows);
  }
  std::int32_t tile_rows = most_rows;
};

/// What a tile's weights do to a query's sums.
struct WideNote {
  float factor;          ///< of what there is: the origin has moved
  std::uint32_t hidden;  ///< bits of the rows that the query does not see
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
