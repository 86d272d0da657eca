#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/observe_products.cuh>
#include <headaware/stats/detail/cuda/observe_sinks.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

// Errors of (sink, window) pairs of wide tiles, where a sweep over the keys has come to the end of a window.
//
// A row's cut is the oldest key that the window keeps, and Δ the change of its output o if the pair's tokens alone are
// kept. With m and u the mass and Σ p v of what is dropped, k and x those of what is kept:
//   Δ = (m·o - u) / (1 - m)   on the way there, as long as enough is kept
//   Δ = x / k - o             on the way back, for the rest
// so that the smaller of the two is not a difference of large sums. Either is ± (mass·o - sums) / (1 - m).

/// Of what has to be kept for errors from what is dropped.
inline constexpr float least_kept = 0.125F;

/// @brief The sums of a sweep over keys: of a warp's own 16 rows, relative to the largest score among them.
template <class Tile>
struct SweepSums {
  ValueSums<Tile> values;
  float max[2];
  float mass[2];  ///< of this thread's keys

  __device__ void begin() {
    values.begin();
    max[0] = max[1] = hidden_logit;
    mass[0] = mass[1] = 0;
  }
  /// Adds keys [begin, end) of the key tile, of each of this thread's two rows.
  __device__ void add(Tile const& tile, typename Tile::Scores const& scores, std::int32_t const (&begin)[2],
                      std::int32_t const (&end)[2]) {
    using E = typename Tile::E;
    auto const& shared = tile.p.shared;
    static_assert(Tile::keys == 32);
    std::uint32_t own[2];  // a bit per key
    float keep[2];
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t const within = begin[h] < end[h] ? (~0U << begin[h]) & (~0U >> (32 - end[h])) : 0;
      own[h] = within >> (tile.lane() % 4 * 2);
      // Relative to these keys alone: others of the tile may weigh far more.
      float largest = max[h];
#pragma unroll
      for (int i = 0; i < 2 * Tile::score_tiles; ++i) {
        float const score = scores[i / 2][h * 2 + i % 2];
        largest = fmaxf(largest, ((own[h] >> (i / 2 * 8 + i % 2)) & 1U) != 0 ? score : hidden_logit);
      }
      largest = quad_max(largest);
      keep[h] = exp2_fast(max[h] - largest);
      base[h] = largest == hidden_logit ? 0 : largest;
      max[h] = largest;
      mass[h] *= keep[h];
    }
    values.rescale(keep);
    std::uint32_t address = value_address(tile.template at<E>(shared.values), shared.value_pitch);
#pragma unroll
    for (int n = 0; n < Tile::score_tiles; n += 2) {
      if (__any_sync(~0U, (((own[0] | own[1]) >> (n * 8)) & 0x303U) != 0)) {
        float weights[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          int const h = i % 4 / 2;
          bool const counts = ((own[h] >> ((n + i / 4) * 8 + i % 2)) & 1U) != 0;
          weights[i / 4][i % 4] = counts ? exp2_fast(scores[n + i / 4][i % 4] - base[h]) : 0;
          mass[h] += weights[i / 4][i % 4];
        }
        values.add(WeightOperand<E>(weights[0], weights[1], {1, 1}), address);
      }
      address += static_cast<std::uint32_t>(16 * shared.value_pitch) * static_cast<std::uint32_t>(sizeof(E));
    }
  }
};

/// 1 / the sum of weights of a row of this thread; 0: it does not count.
template <class Tile>
__device__ float row_inverse(Tile const& tile, int h) {
  return tile.query[h] >= 0 ? tile.template at<float>(tile.p.shared.row_inverse)[tile.row_of(h)] : 0;
}
/// From weights relative to `largest` to probabilities.
template <class Tile>
__device__ float row_factor(Tile const& tile, int h, float largest) {
  float const inverse = row_inverse(tile, h);
  if (inverse == 0 || largest == hidden_logit) return 0;
  return unless_tiny(exp2_fast(largest - tile.template at<float>(tile.p.shared.row_max)[tile.row_of(h)]) * inverse);
}

/// The window from which on the errors of this thread's two rows come from what is kept; -1: none so far.
template <class Tile>
__device__ char2& turn_of(Tile const& tile, std::int32_t sink) {
  return tile.template at<char2>(tile.p.shared.turns)[sink * observe_threads + tile.thread];
}
/// Of a row, in the cell at hand: the mass that goes with the sums, and 1 / (1 - m); 0: it does not count.
template <class Tile>
__device__ float2& cell_factors(Tile const& tile, std::int32_t sink, std::int32_t row) {
  return tile.template at<float2>(tile.p.shared.cell_factors)[sink * ((tile.p.shared.rows + 15) / 16 * 16) + row];
}
/// The sums of cells of this warp; after them that of |o|².
template <class Tile>
__device__ double* cell_sums(Tile const& tile) {
  return tile.template at<double>(tile.p.shared.cell_sums) +
         tile.warp * (tile.p.cuts.num_sinks * tile.p.cuts.num_windows + 1);
}

/// Decides which rows count in the cells of a window, and finds their factors. @return whether any does
/// @param mass  of the keys passed, other than sinks, and on the way back of a learned sink
template <bool Back, class Tile>
__device__ bool find_factors(Tile const& tile, std::int32_t window, std::int32_t const (&cut)[2], bool const (&here)[2],
                             float (&mass)[2]) {
  std::int32_t const num_sinks = tile.p.cuts.num_sinks;
  bool any = false;
  __syncwarp();
  for (std::int32_t i = 0; i < num_sinks; ++i) {
    std::int32_t const sink = Back ? i : num_sinks - 1 - i;
    if (Back) add_sink_mass(tile, sink, cut, mass);
    char2 const turns = turn_of(tile, sink);
    std::int32_t turn[2] = {turns.x, turns.y};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float2 factors{0, 0};
      if (Back) {
        // A row that keeps nothing of weight outputs zero: its unit is 0.
        if (here[h] && turn[h] >= window) factors = {mass[h], mass[h] > 0 ? fminf(1 / mass[h], 3e38F) : 1};
      } else if (here[h] && turn[h] < 0) {
        float const kept = 1 - mass[h];
        if (kept > least_kept) {
          factors = {mass[h], 1 / kept};
        } else {
          turn[h] = window;
        }
      }
      any = any || factors.y != 0;
      if (tile.lane() % 4 == 0) cell_factors(tile, sink, tile.row_of(h)) = factors;
    }
    if (!Back) {
      turn_of(tile, sink) = {static_cast<signed char>(turn[0]), static_cast<signed char>(turn[1])};
      add_sink_mass(tile, sink, cut, mass);
    }
  }
  __syncwarp();
  return __any_sync(~0U, any);
}

/// Adds the errors of a window's cells, of rows whose cut is in (from, to]: all sums are of the keys up to it.
template <bool Back, class Tile>
__device__ void add_errors(Tile const& tile, std::int32_t window, std::int32_t from, std::int32_t to,
                           SweepSums<Tile> const& sums, ValueSums<Tile> const& output, float learned) {
  auto const& p = tile.p;
  std::int32_t cut[2];
  bool here[2];
  float mass[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    cut[h] = tile.query[h] + 1 - p.cuts.windows[window];
    here[h] = row_inverse(tile, h) != 0 && cut[h] > from && cut[h] <= to;
  }
  if (!__any_sync(~0U, here[0] || here[1])) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float const factor = row_factor(tile, h, sums.max[h]);
    float const sum = quad_sum(sums.mass[h]);
    mass[h] = factor != 0 ? sum * factor : 0;
    if (Back) mass[h] += row_factor(tile, h, learned);
  }
  if (!find_factors<Back>(tile, window, cut, here, mass)) return;
  std::int32_t const num_sinks = p.cuts.num_sinks;
  double* const cells = cell_sums(tile) + window;
  unrolled<Tile::channel_tiles / Tile::part_tiles>([&]<int Part>() {
    constexpr int tiles = Tile::part_tiles;
    constexpr int first = Part * tiles;
    UnitSums<tiles> part;
#pragma unroll
    for (int h = 0; h < 2; ++h)
      part.begin_unit(h, row_factor(tile, h, sums.max[h]), Back ? row_factor(tile, h, learned) : 0);
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part.sums[n][i] = part.unit[i / 2] != 0 ? sums.values.sums[first + n][i] : 0;
    }
#pragma unroll 1
    for (std::int32_t i = 0; i < num_sinks; ++i) {
      std::int32_t const sink = Back ? i : num_sinks - 1 - i;
      if (Back) add_sink_values<first>(tile, sink, cut, part);
      float2 const factors[2] = {cell_factors(tile, sink, tile.row_of(0)), cell_factors(tile, sink, tile.row_of(1))};
      if (__any_sync(~0U, factors[0].y != 0 || factors[1].y != 0)) {
        float square = 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          bool const none = part.unit[h] == 0;
          float const own = none ? 1 : __fdividef(factors[h].x, part.unit[h]);
          float difference_squared = 0;
#pragma unroll
          for (int e = 0; e < 2 * tiles; ++e) {
            int const at = 2 * h + e % 2;
            float const difference = own * output.sums[first + e / 2][at] - part.sums[e / 2][at];
            difference_squared += difference * difference;
          }
          float const scale = none ? (Back && factors[h].y != 0 ? 1 : 0) : part.unit[h] * factors[h].y;
          square += scale * scale * difference_squared;
        }
        square = warp_total(square);
        if (tile.lane() == 0) cells[sink * p.cuts.num_windows] += static_cast<double>(square);
      }
      if (!Back && sink > 0) add_sink_values<first>(tile, sink, cut, part);
    }
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
