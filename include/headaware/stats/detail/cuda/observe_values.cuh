#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/stats/detail/cuda/observe_intervals.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A channel of an interval's sum in shared memory. Channels are swapped in groups of 8, by row, so that fragments meet
/// different banks.
template <class Tile>
__device__ float* interval_sum(Tile const& tile, std::int32_t interval, std::int32_t row, std::int32_t channel) {
  return tile.template at<float>(tile.p.shared.sums) +
         (interval * tile.p.shared.rows + row) * tile.p.shared.sum_channels + (channel ^ (row % 4 * 8));
}
/// This thread's first channel of tile `n` of its warp's channels.
template <class Tile>
__device__ std::int32_t own_channel(Tile const& tile, int n) {
  return (tile.warp + n / 2 * observe_warps) * 16 + n % 2 * 8 + tile.lane() % 4 * 2;
}

/// Writes this warp's weights of a key tile, [16, weight_pitch], for all warps to read.
template <class Tile>
__device__ void store_weights(Tile const& tile, typename Tile::Scores const& weights) {
#pragma unroll
  for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<float2*>(tile.weights() + tile.row_of(h) * weight_pitch + tile.warp_key() + n * 8 +
                                 tile.lane() % 4 * 2) = {weights[n][2 * h], weights[n][2 * h + 1]};
    }
  }
}

/// @brief The sums of weight · value of the interval that passes by: 16 rows, this warp's channels.
///
/// Relative to the interval's own largest score, as an interval of little weight is all that some windows keep.
template <class Tile>
struct IntervalSums {
  std::int32_t interval;  ///< whose sums are in registers
  std::int32_t low;       ///< the interval of the last key tile's first key
  float sums[Tile::shares_rows ? Tile::channel_tiles : 1][4];
  float maxima[2];
  float scale[2];  ///< from the tile's weights to those of the sums

  __device__ void begin() {
    interval = low = 0;
    maxima[0] = maxima[1] = hidden_logit;
    clear();
  }
  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < Tile::channel_tiles; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
  }

  /// Adds weights · values of the key tile at `first`, interval by interval.
  /// @param tile_max  the rows' largest scores of the tile, which its weights are relative to
  __device__ void add(Tile const& tile, std::int32_t first, float const (&tile_max)[2]) {
    std::int32_t const last_row = tile.rows - 1;
    std::int32_t const last_key = min(first + Tile::keys - 1, tile.last_query());
    std::int32_t const from = low = interval_of(tile, first, last_row, low);
    std::int32_t const to = interval_of(tile, last_key, 0, from);
    for (std::int32_t next = from; next <= to; ++next) {
      if (next != interval) {
        store(tile);
        interval = next;
      }
      std::int32_t const begin = max(first, interval_begin(tile, next, 0)) - first;
      std::int32_t const end = min(last_key + 1, interval_end(tile, next, last_row)) - first;
      if (begin >= end) continue;
      KeyRanges ranges = interval_ranges(tile, next, first + begin / 16 * 16);
      if (from == to) {
        rescale(tile_max, tile_max);
        add_keys<false>(tile, begin, end, ranges);
      } else {
        float interval_max[2];
        find_max(tile, begin, end, ranges, tile_max, interval_max);
        rescale(tile_max, interval_max);
        add_keys<true>(tile, begin, end, ranges);
      }
    }
  }

  /// Finds the largest scores of an interval's keys in the tile. @param ranges  from `begin`, rounded down to 16, on
  __device__ void find_max(Tile const& tile, std::int32_t begin, std::int32_t end, KeyRanges ranges,
                           float const (&tile_max)[2], float (&interval_max)[2]) const {
    float largest[2] = {0, 0};
    for (std::int32_t key = begin / 16 * 16; key < end; key += 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float2 const weight = pair_of_weights<true>(tile.weights() + key, i % 2, i / 2 * 8, ranges);
        largest[i % 2] = fmaxf(largest[i % 2], fmaxf(weight.x, weight.y));
      }
      ranges.move(16);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = quad_max(largest[h]);
      interval_max[h] = largest[h] > 0 ? tile_max[h] + log2f(largest[h]) : hidden_logit;
    }
  }

  /// Rescales the sums to scores up to `interval_max`; `scale` turns the tile's weights to theirs.
  __device__ void rescale(float const (&tile_max)[2], float const (&interval_max)[2]) {
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const largest = fmaxf(maxima[h], interval_max[h]);
      keep[h] = exp2_fast(maxima[h] - largest);
      scale[h] = interval_max[h] == hidden_logit ? 0 : exp2_fast(tile_max[h] - largest);
      maxima[h] = largest;
    }
    if (!__any_sync(~0U, keep[0] != 1 || keep[1] != 1)) return;
#pragma unroll
    for (int n = 0; n < Tile::channel_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= keep[i / 2];
    }
  }

  template <bool Masked>
  __device__ void add_keys(Tile const& tile, std::int32_t begin, std::int32_t end, KeyRanges ranges) {
    auto const& shared = tile.p.shared;
    for (std::int32_t key = begin / 16 * 16; key < end; key += 16) {
      Tile::Products::template accumulate<Tile::channel_tiles, Masked>(
          sums, tile.weights() + key, scale,
          tile.template at<typename Tile::E>(shared.values) + key * shared.value_pitch, shared.value_pitch, ranges,
          tile.warp, observe_warps, shared.value_dim);
      ranges.move(16);
    }
  }

  /// Adds the sums in registers to their interval and clears them.
  __device__ void store(Tile const& tile) {
    auto const& p = tile.p;
    float* const interval_max =
        tile.template at<float>(p.shared.sum_max) + (tile.warp * p.cuts.intervals() + interval) * p.shared.rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::int32_t const row = tile.row_of(h);
      bool const exists = row < tile.rows;
      float const before = exists ? interval_max[row] : hidden_logit;
      float const largest = fmaxf(before, maxima[h]);
      float const keep = exp2_fast(before - largest);
      float const gain = exp2_fast(maxima[h] - largest);
      __syncwarp();
      if (exists) {
        if (tile.lane() % 4 == 0) interval_max[row] = largest;
#pragma unroll
        for (int n = 0; n < Tile::channel_tiles; ++n) {
          std::int32_t const channel = own_channel(tile, n);
          if (channel >= p.shared.value_dim) break;
          auto* const to = reinterpret_cast<float2*>(interval_sum(tile, interval, row, channel));
          *to = {to->x * keep + sums[n][2 * h] * gain, to->y * keep + sums[n][2 * h + 1] * gain};
        }
      }
      maxima[h] = hidden_logit;
    }
    clear();
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
