#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/stats/detail/cuda/observe_intervals.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

// After the last key: reduction from the states of rows and intervals to the raw sums.

/// Finishes one row: its statistics, its normalisation and the probabilities of its intervals, by one thread.
/// @param scalars  [row_scalars, rows]
template <class Tile>
__device__ void finish_row(Tile const& tile, std::int32_t row, double* scalars) {
  auto const& p = tile.p;
  std::int32_t const rows = p.shared.rows;
  auto const* const parts = tile.template at<RowPart>(p.shared.row_parts) + row;
  EntropySoftmax<double> all;
  double recent = 0;
  bool finite = true;
  for (int w = 0; w < Tile::key_warps; ++w) {
    RowPart const& part = parts[w * rows];
    finite = finite && isfinite(part.softmax.weighted) && isfinite(part.softmax.sum);
    all.merge({{part.softmax.max, part.softmax.sum}, part.softmax.weighted});
    recent += part.recent;
  }
  float const sink = tile.own.sinks != nullptr ? tile.own.sinks[tile.head] * log2_e : -INFINITY;
  bool const has_sink = sink != -INFINITY;
  bool const valid = finite && all.sum > 0 && (!has_sink || isfinite(sink));
  double keys_scale = 1;  // of sums relative to the largest logit of the keys alone
  if (has_sink && valid) {
    float const key_max = all.max;
    all.merge({{sink, 1}, 0});
    keys_scale = exp2(static_cast<double>(key_max) - static_cast<double>(all.max));
  }
  double const entropy = valid ? all.entropy() : 0;
  std::int32_t const query = tile.query_of(row);
  std::int32_t const outcomes = query + 1 - tile.oldest_of(query) + (has_sink ? 1 : 0);
  double const own[row_scalars] = {
      valid ? 1.0 : 0.0,
      valid ? 0.0 : 1.0,
      valid && query > 0 ? 1.0 : 0.0,
      entropy,
      valid ? keys_scale * all.max_probability() : 0,
      valid ? keys_scale * recent / all.sum : 0,
      valid && query > 0 ? log(static_cast<double>(outcomes)) - entropy : 0,
      valid && tile.has_retention() ? 1.0 : 0.0,
  };
#pragma unroll
  for (int v = 0; v < row_scalars; ++v) scalars[v * rows + row] = own[v];
  auto const inverse = static_cast<float>(valid ? 1 / all.sum : 0);
  tile.template at<float>(p.shared.row_max)[row] = all.max;
  tile.template at<float>(p.shared.row_inverse)[row] = inverse;
  if (!tile.has_retention()) return;
  std::int32_t const intervals = p.cuts.intervals();
  for (std::int32_t interval = 0; interval < intervals; ++interval) {
    float share = 0;
    for (int w = 0; w < Tile::key_warps; ++w) {
      auto const mass =
          tile.template at<OnlineSoftmax<float>>(p.shared.masses)[(w * intervals + interval) * rows + row];
      share += mass.sum * exp2_fast(mass.max - all.max);
    }
    interval_share(tile, interval, row) = share * inverse;
  }
  if constexpr (Tile::shares_rows) {
    auto* const before = tile.template at<float>(p.shared.kept_before) + row;
    auto* const after = tile.template at<float>(p.shared.kept_after) + row;
    // Every pair keeps the learned sink.
    before[0] = has_sink && valid ? exp2_fast(sink - all.max) * inverse : 0;
    after[intervals * rows] = 0;
    for (std::int32_t interval = 0; interval < intervals; ++interval) {
      before[(interval + 1) * rows] = before[interval * rows] + interval_share(tile, interval, row);
      std::int32_t const back = intervals - 1 - interval;
      after[back * rows] = after[(back + 1) * rows] + interval_share(tile, back, row);
      tile.template at<float>(p.shared.sum_factors)[interval * rows + row] =
          exp2_fast(tile.template at<float>(p.shared.sum_max)[interval * rows + row] - all.max) * inverse;
    }
  }
}

/// Adds the rows' scalars to the raw sums, a thread per scalar. @param scalars  [row_scalars, rows]
template <class Tile>
__device__ void add_scalars(Tile const& tile, double const* scalars) {
  if (tile.thread >= row_scalars) return;
  constexpr std::int32_t fields[row_scalars] = {SumsLayout::rows,       SumsLayout::invalid_rows,  SumsLayout::chunks,
                                                SumsLayout::entropy,    SumsLayout::max_attention, SumsLayout::recent,
                                                SumsLayout::uniformity, SumsLayout::retention_rows};
  std::int32_t field = 0;
#pragma unroll
  for (int f = 0; f < row_scalars; ++f)
    if (tile.thread == f) field = fields[f];
  double sum = 0;
  for (std::int32_t row = 0; row < tile.rows; ++row) sum += scalars[tile.thread * tile.p.shared.rows + row];
  tile.raw()[field] += sum;
  if (Tile::with_values && tile.thread == row_scalars - 1) {
    tile.raw()[SumsLayout::retention_value_rows] += sum;
    if (tile.layer.output_factors != nullptr) tile.raw()[SumsLayout::retention_metric_rows] += sum;
  }
}

/// Sums the probability of one key per row over all rows, from kept scores. @param key_of  (query) to its key
template <class Tile, class KeyOf>
__device__ double sum_probabilities(Tile const& tile, float const* scores, std::int32_t pitch, KeyOf const& key_of) {
  double sum = 0;
  for (std::int32_t row = 0; row < tile.rows; ++row) {
    std::int32_t const query = tile.query_of(row);
    std::int32_t const key = key_of(query);
    float const inverse = tile.template at<float>(tile.p.shared.row_inverse)[row];
    if (inverse == 0 || key > query || key < tile.oldest_of(query)) continue;
    sum += static_cast<double>(exp2_fast(scores[row * pitch] - tile.template at<float>(tile.p.shared.row_max)[row]) *
                               inverse);
  }
  return sum;
}

/// Sums the masses that each window drops beside one sink size, by a warp: a lane per row, twice for 64 rows.
template <class Tile>
__device__ void sum_masses(Tile const& tile, std::int32_t sink) {
  constexpr int own = (Tile::max_rows + warp_threads - 1) / warp_threads;
  auto const& p = tile.p;
  std::int32_t next[own];
  float mass[own] = {};
  bool counts[own];
#pragma unroll
  for (int i = 0; i < own; ++i) {
    std::int32_t const row = tile.lane() + i * warp_threads;
    counts[i] = row < tile.rows && tile.template at<float>(p.shared.row_inverse)[row] != 0;
    if (counts[i]) next[i] = sink_interval(tile, sink, row);
  }
  for (std::int32_t window = p.cuts.num_windows - 1; window >= 0; --window) {
    float sum = 0;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < own; ++i) {
      if (!counts[i]) continue;
      std::int32_t const row = tile.lane() + i * warp_threads;
      std::int32_t const last = window_interval(tile, window, row);
      for (; next[i] <= last; ++next[i]) mass[i] += interval_share(tile, next[i], row);
      sum += mass[i];
      squares += mass[i] * mass[i];
    }
    sum = sum_lanes(sum);
    squares = sum_lanes(squares);
    if (tile.lane() == 0) {
      std::int32_t const cell = p.cuts.cell(sink, window);
      tile.raw()[p.layout.mass() + cell] += static_cast<double>(sum);
      tile.raw()[p.layout.mass_squared() + cell] += static_cast<double>(squares);
    }
  }
}

/// Adds all but the errors of outputs to the raw sums; the rows' states are in shared memory. Begins and ends with a
/// barrier.
/// @param finish_errors  called in between, by all threads
template <class Tile, class FinishErrors>
__device__ void finish_rows(Tile const& tile, FinishErrors const& finish_errors) {
  auto const& p = tile.p;
  __syncthreads();
  // The key tile is dead; reuse it as reduction scratch.
  auto* const scalars = tile.template at<double>(p.shared.keys);
  if (tile.thread < tile.rows) finish_row(tile, tile.thread, scalars);
  __syncthreads();
  double* const near = scalars + row_scalars * p.shared.rows;
  double* const sinks = near + p.near;
  add_scalars(tile, scalars);
  for (std::int32_t d = tile.thread; d < p.near; d += observe_threads) {
    near[d] = sum_probabilities(tile, tile.template at<float>(p.shared.near) + d, p.near,
                                [&](std::int32_t query) { return query - d; });
    if (d < p.layout.num_distances) tile.raw()[p.layout.distances() + d] += near[d];
  }
  for (std::int32_t k = tile.thread; k < p.sink_size; k += observe_threads) {
    sinks[k] = sum_probabilities(tile, tile.template at<float>(p.shared.sinks) + k, p.sink_size,
                                 [&](std::int32_t) { return k; });
  }
  if (tile.has_retention()) {
    for (std::int32_t sink = tile.warp; sink < p.cuts.num_sinks; sink += observe_warps) sum_masses(tile, sink);
  }
  finish_errors();
  __syncthreads();
  if (tile.thread == 0) {
    double local = 0;
    for (std::int32_t d = 0; d <= p.local_window; ++d) local += near[d];
    tile.raw()[SumsLayout::local] += local;
    double sink = 0;
    for (std::int32_t k = 0; k < p.sink_size; ++k) sink += sinks[k];
    tile.raw()[SumsLayout::sink] += sink;
  }
  __syncthreads();
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
