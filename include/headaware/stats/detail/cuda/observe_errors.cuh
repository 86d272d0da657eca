#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/stats/detail/cuda/observe_intervals.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/observe_values.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

// Errors of outputs, from the intervals' sums: 8 lanes have a row, 4 channels in every 32 each, so a warp has 4 rows.

/// This lane's channels of a row.
template <class Tile>
struct OwnChannels {
  static constexpr int count = Tile::channel_tiles * 4;
  float at[count];

  /// Adds Σ p v of an interval.
  __device__ void add(Tile const& tile, std::int32_t interval, std::int32_t row) {
    float const factor = tile.template at<float>(tile.p.shared.sum_factors)[interval * tile.p.shared.rows + row];
    float const* const sums = interval_sum(tile, interval, row, tile.lane() % 8 * 4);
#pragma unroll
    for (int n = 0; n < Tile::channel_tiles; ++n) {
      if (n * 32 >= tile.p.shared.sum_channels) break;
      float4 const sum = *reinterpret_cast<float4 const*>(sums + n * 32);
      at[4 * n] += factor * sum.x;
      at[4 * n + 1] += factor * sum.y;
      at[4 * n + 2] += factor * sum.z;
      at[4 * n + 3] += factor * sum.w;
    }
  }
  /// |a · x - b · y|² over this lane's channels.
  [[nodiscard]] __device__ static float squared_difference(float a, OwnChannels const& x, float b,
                                                           OwnChannels const& y) {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < count; ++c) {
      float const difference = a * x.at[c] - b * y.at[c];
      sum += difference * difference;
    }
    return sum;
  }
};

/// Adds Σ |Δ|² of every cell and Σ |o|² to the raw sums: o is a row's output, Δ its change if the cell's tokens alone
/// are kept. Ends with a barrier; overwrites the value tile.
/// @param errors, output  places of the sums
template <class Tile>
__device__ void finish_errors(Tile const& tile, std::int64_t errors, std::int32_t output) {
  using Channels = OwnChannels<Tile>;
  auto const& p = tile.p;
  std::int32_t const lane = tile.lane();
  std::int32_t const cells = p.cuts.num_sinks * p.cuts.num_windows;
  double* const scratch = tile.template at<double>(p.shared.values);  // [warps, cells + 1]
  double* const own = scratch + tile.warp * (cells + 1);
  // Lanes of rows that do not exist do as the last row does, and count for nothing.
  std::int32_t const row = min(tile.warp * 4 + lane / 8, tile.rows - 1);
  bool const counts = tile.warp * 4 + lane / 8 < tile.rows && tile.template at<float>(p.shared.row_inverse)[row] != 0;
  std::int32_t const intervals = p.cuts.intervals();
  auto const* const shares = tile.template at<float>(p.shared.shares) + row;
  auto const* const before = tile.template at<float>(p.shared.kept_before) + row;
  auto const* const after = tile.template at<float>(p.shared.kept_after) + row;
  std::int32_t const rows = p.shared.rows;
  Channels whole{};
  for (std::int32_t interval = 0; interval < intervals; ++interval) whole.add(tile, interval, row);
  float const squared = sum_lanes(counts ? Channels::squared_difference(1, whole, 0, Channels{}) : 0);
  if (lane == 0) own[cells] = static_cast<double>(squared);

  for (std::int32_t sink = 0; sink < p.cuts.num_sinks; ++sink) {
    std::int32_t const begin = sink_interval(tile, sink, row);
    double* const sink_cells = own + sink * p.cuts.num_windows;
    // From the largest window on, as long as less than half is dropped: Δ = (m·o - u) / (1 - m).
    Channels part{};
    float mass = 0;
    std::int32_t next = begin;
    std::int32_t half = -1;  // the largest window that drops half and more
    for (std::int32_t window = p.cuts.num_windows - 1; window >= 0; --window) {
      std::int32_t const last = window_interval(tile, window, row);
      for (; next <= last; ++next) {
        part.add(tile, next, row);
        mass += shares[next * rows];
      }
      bool const dropped = half < 0 && mass < 0.5F;
      if (!dropped && half < 0) half = window;
      float sum = 0;
      if (__any_sync(~0U, dropped)) {
        float const kept = last < begin ? 1 : before[begin * rows] + after[(last + 1) * rows];
        float const factor = dropped ? 1 / kept : 0;
        float const error = Channels::squared_difference(mass * factor, whole, factor, part);
        sum = sum_lanes(counts && dropped ? error : 0);
      }
      if (lane == 0) sink_cells[window] = static_cast<double>(sum);
    }
    // The rest from what is kept, for precision: Δ = u / Z - o.
    if (!__any_sync(~0U, half >= 0 && counts)) continue;
    part = Channels{};
    for (std::int32_t interval = 0; interval < begin; ++interval) part.add(tile, interval, row);
    std::int32_t first = intervals;
    for (std::int32_t window = 0; window < p.cuts.num_windows; ++window) {
      bool const dropped = window <= half;
      if (!__any_sync(~0U, dropped && counts)) break;
      std::int32_t const last = window_interval(tile, window, row);
      while (first > max(last + 1, begin)) part.add(tile, --first, row);
      // A row that keeps nothing of weight outputs zero.
      float const kept = before[begin * rows] + after[(last + 1) * rows];
      float const error = Channels::squared_difference(kept > 0 ? fminf(1 / kept, 3e38F) : 0, part, 1, whole);
      float const sum = sum_lanes(counts && dropped ? error : 0);
      if (lane == 0) sink_cells[window] += static_cast<double>(sum);
    }
  }
  __syncthreads();
  for (std::int32_t i = tile.thread; i <= cells; i += observe_threads) {
    double sum = 0;
    for (int w = 0; w < observe_warps; ++w) sum += scratch[w * (cells + 1) + i];
    if (i == cells) {
      tile.raw()[output] += sum;
    } else {
      tile.raw()[errors + p.cuts.cell(i / p.cuts.num_windows, i % p.cuts.num_windows)] += sum;
    }
  }
  __syncthreads();
}

/// Replaces the sums x of all intervals by R x, several intervals at a time, so that R is read less often. Ends with a
/// barrier.
template <class Tile>
__device__ void apply_output_factor(Tile const& tile) {
  constexpr int at_once = Tile::channel_tiles == 8 ? 2 : 4;
  auto const& p = tile.p;
  float const* const matrix = tile.layer.output_factors + std::int64_t{tile.head} * p.value_dim * p.value_dim;
  std::int32_t const rows[2] = {min(tile.row_of(0), tile.rows - 1), min(tile.row_of(1), tile.rows - 1)};
  std::int32_t const last_interval = p.cuts.intervals() - 1;
  for (std::int32_t first = 0; first <= last_interval; first += at_once) {
    float product[at_once][Tile::channel_tiles][4] = {};
    for (std::int32_t c = 0; c < p.value_dim; ++c) {
      float x[at_once][2];
#pragma unroll
      for (int s = 0; s < at_once; ++s) {
#pragma unroll
        for (int h = 0; h < 2; ++h) x[s][h] = *interval_sum(tile, min(first + s, last_interval), rows[h], c);
      }
#pragma unroll
      for (int n = 0; n < Tile::channel_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::int32_t const channel = own_channel(tile, n) + i;
          float const factor = channel < p.value_dim ? matrix[channel * p.value_dim + c] : 0;
#pragma unroll
          for (int s = 0; s < at_once; ++s) {
            product[s][n][i] += factor * x[s][0];
            product[s][n][2 + i] += factor * x[s][1];
          }
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < at_once; ++s) {
#pragma unroll
      for (int n = 0; n < Tile::channel_tiles; ++n) {
        std::int32_t const channel = own_channel(tile, n);
        if (first + s > last_interval || channel >= p.shared.value_dim) break;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (tile.row_of(h) < tile.rows)
            *reinterpret_cast<float2*>(interval_sum(tile, first + s, tile.row_of(h), channel)) = {
                product[s][n][2 * h], product[s][n][2 * h + 1]};
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
