#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Scores this warp's keys of the key tile at `first`. @tparam Keep  whether the scores of near and sink keys are kept
template <bool Keep, class Tile>
__device__ void score_keys(Tile const& tile, std::int32_t first, typename Tile::Scores& scores) {
  auto const& p = tile.p;
  tile.multiply_keys(scores);
  std::int32_t const own = tile.own_key(first);
  std::int32_t const last = first + Tile::keys - 1;
  std::int32_t const nearest = tile.query_of(tile.first_row);
  bool const all_seen = last <= nearest && first >= tile.oldest_of(tile.warp_last_query());
  bool const some_kept = Keep && (nearest - last < p.near || first < p.sink_size);
#pragma unroll
  for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] *= p.scale;
  }
  if (p.cap > 0) {
#pragma unroll
    for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = p.cap * tanhf(scores[n][i]);
    }
  }
  if (!all_seen || some_kept) {
    auto* const near = tile.template at<float>(p.shared.near);
    auto* const sinks = tile.template at<float>(p.shared.sinks);
    std::int32_t const oldest[2] = {tile.oldest_of(tile.query[0]), tile.oldest_of(tile.query[1])};
#pragma unroll
    for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::int32_t const key = own + n * 8 + i % 2;
        std::int32_t const distance = tile.query[i / 2] - key;
        if (distance < 0 || key < oldest[i / 2]) {
          scores[n][i] = hidden_logit;
          continue;
        }
        if (!Keep) continue;
        if (distance < p.near) near[tile.row_of(i / 2) * p.near + distance] = scores[n][i];
        if (key < p.sink_size) sinks[tile.row_of(i / 2) * p.sink_size + key] = scores[n][i];
      }
    }
  }
}
/// The same; keeps the scores of near and sink keys. @param tile_max  the largest score of each row
template <class Tile>
__device__ void score_keys(Tile const& tile, std::int32_t first, typename Tile::Scores& scores, float (&tile_max)[2]) {
  score_keys<true>(tile, first, scores);
#pragma unroll
  for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile_max[i / 2] = fmaxf(tile_max[i / 2], scores[n][i]);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) tile_max[h] = quad_max(tile_max[h]);
}

/// Factors and sums by which a key tile changes this thread's two rows.
struct SoftmaxChange {
  float keep[2];  ///< factor of the sums before
  float gain[2];  ///< factor of the tile's weights
  float sum[2];   ///< of the tile's weights, this thread's
};

/// @brief The softmax states of this thread's two rows, over its own keys alone.
///
/// Relative to the largest score of all keys that the row has seen, so that the quad's states can be added up.
template <class Tile>
struct RowSoftmaxes {
  EntropySoftmax<float> rows[2];
  float recent[2];

  __device__ void begin() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows[h] = {{hidden_logit, 0}, 0};
      recent[h] = 0;
    }
  }

  /// Turns scores into weights relative to `tile_max`, and adds them to the rows' states.
  /// A NaN or infinite score leaves NaN in `weighted`.
  __device__ SoftmaxChange add(Tile const& tile, std::int32_t first, typename Tile::Scores& scores,
                               float const (&tile_max)[2]) {
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) base[h] = tile_max[h] == hidden_logit ? 0 : tile_max[h];  // no key seen: all weigh 0
    std::int32_t const own = tile.own_key(first);
    SoftmaxChange change{};
    float weighted[2] = {0, 0};
    float tile_recent[2] = {0, 0};
    bool const all_recent = first >= tile.recent_begin;
    bool const some_recent = !all_recent && first + Tile::keys > tile.recent_begin;
#pragma unroll
    for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float const x = scores[n][i] - base[i / 2];
        float const weight = exp2_fast(x);
        change.sum[i / 2] += weight;
        weighted[i / 2] += weight * x;
        scores[n][i] = weight;
      }
    }
    if (some_recent) {
#pragma unroll
      for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (own + n * 8 + i % 2 >= tile.recent_begin) tile_recent[i / 2] += scores[n][i];
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const largest = fmaxf(rows[h].max, tile_max[h]);
      EntropySoftmax<float> part{{tile_max[h], change.sum[h]}, weighted[h]};
      change.keep[h] = rows[h].rescale(largest, Exp2Fast{});
      change.gain[h] = part.rescale(largest, Exp2Fast{});
      rows[h].sum += part.sum;
      rows[h].weighted += part.weighted;
      recent[h] = change.keep[h] * recent[h] + change.gain[h] * (all_recent ? change.sum[h] : tile_recent[h]);
    }
    return change;
  }

  /// Writes the quads' states to the warp's part of the rows.
  __device__ void store(Tile const& tile) const {
    auto* const parts = tile.template at<RowPart>(tile.p.shared.row_parts);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      RowPart const part{{{rows[h].max, sum_lanes<4>(rows[h].sum)}, sum_lanes<4>(rows[h].weighted)},
                         sum_lanes<4>(recent[h])};
      if (tile.lane() % 4 == 0 && tile.row_of(h) < tile.rows)
        parts[(Tile::shares_rows ? tile.warp : 0) * tile.p.shared.rows + tile.row_of(h)] = part;
    }
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
