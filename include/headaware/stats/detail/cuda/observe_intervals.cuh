#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/observe_softmax.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

// Intervals of a row, `RetentionCuts`, as key ranges in shared memory.

inline constexpr std::int32_t no_key = 0x7fffffff;

template <class Tile>
__device__ std::int32_t interval_begin(Tile const& tile, std::int32_t interval, std::int32_t row) {
  return tile.template at<std::int32_t>(tile.p.shared.cuts)[interval * tile.p.shared.rows + row];
}
template <class Tile>
__device__ std::int32_t interval_end(Tile const& tile, std::int32_t interval, std::int32_t row) {
  return interval + 1 < tile.p.cuts.intervals() ? interval_begin(tile, interval + 1, row) : no_key;
}
/// The interval of a key, searched from `interval`, at most that interval, onwards.
template <class Tile>
__device__ std::int32_t interval_of(Tile const& tile, std::int32_t key, std::int32_t row, std::int32_t interval) {
  while (interval_end(tile, interval, row) <= key) ++interval;
  return interval;
}
/// The first interval that a sink size does not keep.
template <class Tile>
__device__ std::int32_t sink_interval(Tile const& tile, std::int32_t sink, std::int32_t row) {
  return tile.template at<std::uint8_t>(tile.p.shared.sink_intervals)[sink * tile.p.shared.rows + row];
}
/// The last interval that a window does not keep.
template <class Tile>
__device__ std::int32_t window_interval(Tile const& tile, std::int32_t window, std::int32_t row) {
  return tile.template at<std::uint8_t>(tile.p.shared.window_intervals)[window * tile.p.shared.rows + row];
}
/// The probability of an interval, once its row is finished.
template <class Tile>
__device__ float& interval_share(Tile const& tile, std::int32_t interval, std::int32_t row) {
  std::int32_t const at = interval * tile.p.shared.rows + row;
  if constexpr (Tile::key_warps == 1) {
    return tile.template at<OnlineSoftmax<float>>(tile.p.shared.masses)[at].sum;
  } else {
    return tile.template at<float>(tile.p.shared.shares)[at];
  }
}
/// The keys of an interval in this thread's two rows, counted from `origin`.
template <class Tile>
__device__ KeyRanges interval_ranges(Tile const& tile, std::int32_t interval, std::int32_t origin) {
  KeyRanges ranges;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    std::int32_t const row = min(tile.row_of(h), tile.rows - 1);  // rows after the last weigh nothing
    ranges.begin[h] = interval_begin(tile, interval, row) - origin;
    ranges.end[h] = interval_end(tile, interval, row) - origin;
  }
  return ranges;
}

/// Merges the cuts of a row: sink sizes and windows, each sorted already.
template <class Tile>
__device__ void cut_row(Tile const& tile, std::int32_t row) {
  auto const& p = tile.p;
  auto* const cuts = tile.template at<std::int32_t>(p.shared.cuts);
  auto* const sink_intervals = tile.template at<std::uint8_t>(p.shared.sink_intervals);
  auto* const window_intervals = tile.template at<std::uint8_t>(p.shared.window_intervals);
  std::int32_t const rows = p.shared.rows;
  std::int32_t const query = tile.query_of(row);
  std::int32_t sink = p.cuts.zero_sinks;
  std::int32_t window = p.cuts.num_windows - 1;
  cuts[row] = 0;
  if (sink > 0) sink_intervals[row] = 0;
  for (std::int32_t interval = 1; interval < p.cuts.intervals(); ++interval) {
    std::int32_t const oldest = window >= 0 ? query - p.cuts.windows[window] + 1 : no_key;
    std::int32_t const size = sink < p.cuts.num_sinks ? p.cuts.sinks[sink] : no_key;
    cuts[interval * rows + row] = min(oldest, size);
    if (oldest < size) {
      window_intervals[window * rows + row] = static_cast<std::uint8_t>(interval - 1);
      --window;
    } else {
      sink_intervals[sink * rows + row] = static_cast<std::uint8_t>(interval);
      ++sink;
    }
  }
}

/// Cuts the tile's rows and clears the sums of their intervals.
template <class Tile>
__device__ void begin_intervals(Tile const& tile) {
  auto const& p = tile.p;
  std::int32_t const entries = p.cuts.intervals() * p.shared.rows;
  for (std::int32_t i = tile.thread; i < Tile::key_warps * entries; i += observe_threads)
    tile.template at<OnlineSoftmax<float>>(p.shared.masses)[i] = {hidden_logit, 0};
  if constexpr (Tile::shares_rows) {
    for (std::int32_t i = tile.thread; i < observe_warps * entries; i += observe_threads)
      tile.template at<float>(p.shared.sum_max)[i] = hidden_logit;
    for (std::int32_t i = tile.thread; i < entries * p.shared.sum_channels / 4; i += observe_threads)
      tile.template at<float4>(p.shared.sums)[i] = {0, 0, 0, 0};
  }
  for (std::int32_t row = tile.thread; row < tile.rows; row += observe_threads) cut_row(tile, row);
}

/// The mass of the interval that passes by, of this thread's two rows and keys, relative to the rows' maxima.
template <class Tile>
struct IntervalMasses {
  std::int32_t interval;  ///< whose mass is in registers
  std::int32_t low;       ///< the interval of this warp's first key of the last key tile
  float mass[2];

  __device__ void begin() {
    interval = low = 0;
    mass[0] = mass[1] = 0;
  }

  /// Sorts the weights of this warp's keys of the key tile at `first` into intervals.
  __device__ void add(Tile const& tile, std::int32_t first, typename Tile::Scores const& weights,
                      SoftmaxChange const& change, RowSoftmaxes<Tile> const& softmax) {
    mass[0] *= change.keep[0];
    mass[1] *= change.keep[1];
    std::int32_t const warp_first = first + tile.warp_key();
    if (warp_first > tile.warp_last_query()) return;
    // At a key the row farthest ahead has the lowest interval.
    std::int32_t const from = low = interval_of(tile, warp_first, tile.first_row + tile.warp_rows - 1, low);
    std::int32_t const last = min(warp_first + Tile::score_tiles * 8 - 1, tile.warp_last_query());
    std::int32_t const to = interval_of(tile, last, tile.first_row, from);
    for (std::int32_t next = from; next <= to; ++next) {
      if (next != interval) {
        store(tile, softmax);
        interval = next;
      }
      if (from == to) {
        mass[0] += change.gain[0] * change.sum[0];
        mass[1] += change.gain[1] * change.sum[1];
        break;
      }
      KeyRanges const ranges = interval_ranges(tile, next, tile.own_key(first));
      float part[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (ranges.has(i / 2, n * 8 + i % 2)) part[i / 2] += weights[n][i];
      }
      mass[0] += change.gain[0] * part[0];
      mass[1] += change.gain[1] * part[1];
    }
  }

  /// Adds the mass in registers to its interval.
  __device__ void store(Tile const& tile, RowSoftmaxes<Tile> const& softmax) {
    std::int32_t const key_warp = Tile::shares_rows ? tile.warp : 0;
    auto* const masses = tile.template at<OnlineSoftmax<float>>(tile.p.shared.masses) +
                         (key_warp * tile.p.cuts.intervals() + interval) * tile.p.shared.rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const sum = sum_lanes<4>(mass[h]);
      float const max = softmax.rows[h].max;
      mass[h] = 0;
      if (tile.lane() % 4 == 0 && tile.row_of(h) < tile.rows) {
        OnlineSoftmax<float>& to = masses[tile.row_of(h)];
        to = {max, to.sum * exp2_fast(to.max - max) + sum};
      }
    }
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
