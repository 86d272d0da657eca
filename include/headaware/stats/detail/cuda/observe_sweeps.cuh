#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/stats/detail/cuda/observe_cells.cuh>
#include <headaware/stats/detail/cuda/observe_intervals.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/observe_products.cuh>
#include <headaware/stats/detail/cuda/observe_sinks.cuh>
#include <headaware/stats/detail/cuda/observe_softmax.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

// Errors of outputs of wide tiles: once rows are finished, two sweeps over their keys, to the newest cut and back.

/// Adds a key tile at `at` to the sums, and stops at each cut in it for the errors of its window.
/// @param from    cuts up to it have been passed @param passed  windows before it too, in the order of the sweep
template <bool Back, class Tile>
__device__ void sweep_tile(Tile const& tile, std::int32_t at, std::int32_t from, typename Tile::Scores const& scores,
                           std::int32_t& passed, SweepSums<Tile>& sums, ValueSums<Tile> const& output, float learned) {
  auto const& p = tile.p;
  std::int32_t const count = p.cuts.num_windows;
  std::int32_t const to = at + Tile::keys;
  std::int32_t const oldest_end = tile.query_of(tile.first_row) + 1;
  std::int32_t const newest_end = tile.warp_last_query() + 1;
  auto const size_of = [&](std::int32_t i) { return p.cuts.windows[Back ? i : count - 1 - i]; };
  while (passed < count && (Back ? oldest_end - size_of(passed) > to : newest_end - size_of(passed) <= from)) ++passed;
  std::int32_t begin[2] = {0, 0};
  std::int32_t end[2] = {Tile::keys, Tile::keys};
  // Once more after the last cut, for the rest of the tile.
  for (std::int32_t i = passed;; ++i) {
    bool const rest = i == count || (Back ? newest_end - size_of(i) <= from : oldest_end - size_of(i) > to);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::int32_t const cut = rest ? (Back ? at : to) : tile.query[h] + 1 - size_of(i);
      (Back ? begin[h] : end[h]) = min(max(cut - at, 0), Tile::keys);
    }
    sums.add(tile, scores, begin, end);
    if (rest) break;
    add_errors<Back>(tile, Back ? i : count - 1 - i, from, to, sums, output, learned);
#pragma unroll
    for (int h = 0; h < 2; ++h) (Back ? end[h] : begin[h]) = Back ? begin[h] : end[h];
  }
}

/// Sweeps over the keys of tiles `first` … `last`, both multiples of a tile's keys. Begins with a barrier.
/// @param origin  earlier keys do not count
template <bool Back, class Tile>
__device__ void sweep_keys(Tile const& tile, std::int32_t first, std::int32_t last, std::int32_t origin,
                           ValueSums<Tile> const& output, float learned) {
  SweepSums<Tile> sums;
  sums.begin();
  std::int32_t passed = 0;
  __syncthreads();
  std::int32_t at = Back ? last : first;
  tile.fetch_keys(at);
  for (;;) {
    bool const more = Back ? at > first : at < last;
    std::int32_t const next = Back ? at - Tile::keys : at + Tile::keys;
    wait_copies<0>();
    // Enough is kept by none of the smaller windows, if not beside the most sinks.
    char2 const turns = Back ? char2{} : turn_of(tile, tile.p.cuts.num_sinks - 1);
    bool const done = (row_inverse(tile, 0) == 0 || turns.x >= 0) && (row_inverse(tile, 1) == 0 || turns.y >= 0);
    if (__syncthreads_and(!Back && done)) break;
    tile.fetch_values(at);
    typename Tile::Scores scores = {};
    bool const ahead =
        Back ? at <= tile.warp_last_query() : at == first || at <= tile.warp_last_query() - tile.p.cuts.windows[0];
    bool const active = tile.warp_rows > 0 && ahead;
    if (active) {
      score_keys<false>(tile, at, scores);
      if (at < origin) {
#pragma unroll
        for (int n = 0; n < Tile::score_tiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (tile.own_key(at) + n * 8 + i % 2 < origin) scores[n][i] = hidden_logit;
          }
        }
      }
    }
    __syncthreads();
    if (more) tile.fetch_keys(next);
    if (more) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    if (active) sweep_tile<Back>(tile, at, !Back && at == first ? 0 : at, scores, passed, sums, output, learned);
    if (!more) break;
    at = next;
  }
}

/// Adds Σ |Δ|² of every cell and Σ |o|² to the raw sums. Begins and ends with a barrier.
/// @param output  Σ of weight · value over all keys @param largest  score of each row, that they are relative to
template <class Tile>
__device__ void finish_wide_errors(Tile const& tile, ValueSums<Tile>& output, float const (&largest)[2]) {
  auto const& p = tile.p;
  constexpr int keys = Tile::keys;
  std::int32_t const cells = p.cuts.num_sinks * p.cuts.num_windows;
  float squared = 0;
#pragma unroll
  for (int n = 0; n < Tile::channel_tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float const factor = row_factor(tile, i / 2, largest[i / 2]);
      output.sums[n][i] = factor != 0 ? factor * output.sums[n][i] : 0;
      squared += output.sums[n][i] * output.sums[n][i];
    }
  }
  squared = warp_total(squared);
  double* const own_cells = cell_sums(tile);
  for (std::int32_t i = tile.lane(); i < cells; i += warp_threads) own_cells[i] = 0;
  if (tile.lane() == 0) own_cells[cells] = static_cast<double>(squared);
  if (cells > 0) {
    for (std::int32_t sink = 0; sink < p.cuts.num_sinks; ++sink) turn_of(tile, sink) = {-1, -1};
    begin_sinks(tile, {row_inverse(tile, 0), row_inverse(tile, 1)});
    std::int32_t const origin = last_sink(tile);
    std::int32_t const end = tile.last_query() + 1 - p.cuts.windows[0];
    std::int32_t const first = max(origin, tile.oldest_of(tile.first_query)) / keys * keys;
    if (end > 0) sweep_keys<false>(tile, first, max(first, (end - 1) / keys * keys), origin, output, 0);

    std::int32_t start = no_key;
    if (tile.warp_rows > 0) {
      for (std::int32_t sink = 0; sink < p.cuts.num_sinks; ++sink) {
        char2 const turns = turn_of(tile, sink);
        std::int32_t const turn[2] = {turns.x, turns.y};
        for (int h = 0; h < 2; ++h)
          if (turn[h] >= 0) start = min(start, tile.query[h] + 1 - p.cuts.windows[turn[h]]);
      }
    }
#pragma unroll
    for (int lanes = warp_threads / 2; lanes > 0; lanes /= 2) start = min(start, __shfl_xor_sync(~0U, start, lanes));
    auto* const starts = tile.template at<std::int32_t>(p.shared.starts);
    if (tile.lane() == 0) starts[tile.warp] = start;
    __syncthreads();
    for (int w = 0; w < observe_warps; ++w) start = min(start, starts[w]);
    if (start != no_key) {
      float const sink = tile.own.sinks != nullptr ? tile.own.sinks[tile.head] * log2_e : -INFINITY;
      sweep_keys<true>(tile, (start - 1) / keys * keys, tile.last_query() / keys * keys, 0, output,
                       sink == -INFINITY ? hidden_logit : sink);
    }
  }
  __syncthreads();
  auto const* const all = tile.template at<double>(p.shared.cell_sums);
  for (std::int32_t i = tile.thread; i <= cells; i += observe_threads) {
    double sum = 0;
    for (int w = 0; w < observe_warps; ++w) sum += all[w * (cells + 1) + i];
    std::int64_t const place =
        i == cells ? std::int64_t{SumsLayout::output_squared}
                   : p.layout.error_squared() + p.cuts.cell(i / p.cuts.num_windows, i % p.cuts.num_windows);
    tile.raw()[place] += sum;
  }
  __syncthreads();
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
