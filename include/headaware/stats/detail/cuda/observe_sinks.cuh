#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/observe_products.cuh>
#include <headaware/stats/detail/cuda/observe_softmax.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

// The first keys of wide tiles, up to the largest sink size: their values, and each row's weights of them. They stay in
// shared memory, as the sums of every sink size are made from them anew wherever a window ends.
//
// Stretch i of them are the keys from sink size i - 1 (0 for the first) to sink size i: sink size i keeps stretches
// 0 … i. Weights are relative to the largest of their row and stretch; a thread reads only those that it wrote.

/// The keys of a stretch: [begin, end).
struct SinkStretch {
  std::int32_t begin;
  std::int32_t end;
};
template <class Tile>
__device__ SinkStretch sink_stretch(Tile const& tile, std::int32_t sink) {
  auto const& sinks = tile.p.cuts.sinks;
  return {sink > 0 ? sinks[sink - 1] : 0, sinks[sink]};
}
/// The largest sink size that rows are longer than.
template <class Tile>
__device__ std::int32_t last_sink(Tile const& tile) {
  return tile.p.cuts.sinks[tile.p.cuts.num_sinks - 1];
}
/// This thread's weights of keys 8n … 8n + 7: its two rows', two each.
template <class Tile>
__device__ float4& sink_weights(Tile const& tile, std::int32_t n) {
  return tile.template at<float4>(tile.p.shared.sink_weights)[n * observe_threads + tile.thread];
}
/// The same as an operand, of 16 keys, in their place.
template <class Tile>
__device__ WeightOperand<typename Tile::E> load_sink_weights(Tile const& tile, std::int32_t step) {
  auto const* const from =
      tile.template at<uint4>(tile.p.shared.sink_weights) + step * 2 * observe_threads + tile.thread;
  uint4 const high = from[0];
  uint4 const low = from[observe_threads];
  WeightOperand<typename Tile::E> weights;
  weights.high[0] = high.x, weights.high[1] = high.y, weights.high[2] = high.z, weights.high[3] = high.w;
  weights.low[0] = low.x, weights.low[1] = low.y, weights.low[2] = low.z, weights.low[3] = low.w;
  return weights;
}
template <class Tile>
__device__ void store_sink_weights(Tile const& tile, std::int32_t step,
                                   WeightOperand<typename Tile::E> const& weights) {
  auto* const to = tile.template at<uint4>(tile.p.shared.sink_weights) + step * 2 * observe_threads + tile.thread;
  to[0] = {weights.high[0], weights.high[1], weights.high[2], weights.high[3]};
  to[observe_threads] = {weights.low[0], weights.low[1], weights.low[2], weights.low[3]};
}
/// From a row's weights of a stretch to probabilities (x), and the sum of those (y).
template <class Tile>
__device__ float2& sink_share(Tile const& tile, std::int32_t sink, std::int32_t row) {
  return tile.template at<float2>(tile.p.shared.sink_shares)[sink * ((tile.p.shared.rows + 15) / 16 * 16) + row];
}

/// A factor of probabilities, 0 where it is too small to divide by.
__device__ inline float unless_tiny(float factor) { return factor >= 1e-36F ? factor : 0; }

/// Makes weights of the scores of stretch `sink`. @param inverse  1 / the sum of the row's weights; 0: not counted
template <class Tile>
__device__ void weigh_stretch(Tile const& tile, std::int32_t sink, float const (&inverse)[2]) {
  SinkStretch const keys = sink_stretch(tile, sink);
  float largest[2] = {hidden_logit, hidden_logit};
  std::int32_t const first = keys.begin / 8;
  std::int32_t const last = (keys.end + 7) / 8;
  auto const within = [&](std::int32_t n, int i) {
    std::int32_t const key = n * 8 + tile.lane() % 4 * 2 + i % 2;
    return key >= keys.begin && key < keys.end;
  };
  for (std::int32_t n = first; n < last; ++n) {
    float4 const all = sink_weights(tile, n);
    float const scores[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (within(n, i)) largest[i / 2] = fmaxf(largest[i / 2], scores[i]);
  }
  float sum[2] = {0, 0};
  float base[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    largest[h] = quad_max(largest[h]);
    base[h] = largest[h] == hidden_logit ? 0 : largest[h];
  }
  for (std::int32_t n = first; n < last; ++n) {
    float4 const all = sink_weights(tile, n);
    float weights[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!within(n, i)) continue;
      weights[i] = inverse[i / 2] != 0 ? exp2_fast(weights[i] - base[i / 2]) : 0;
      sum[i / 2] += weights[i];
    }
    sink_weights(tile, n) = {weights[0], weights[1], weights[2], weights[3]};
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float const total = quad_sum(sum[h]);
    float const all = tile.template at<float>(tile.p.shared.row_max)[min(tile.row_of(h), tile.rows - 1)];
    bool const any = inverse[h] != 0 && largest[h] != hidden_logit;
    float const factor = any ? unless_tiny(exp2_fast(base[h] - all) * inverse[h]) : 0;
    if (tile.lane() % 4 == 0) sink_share(tile, sink, tile.row_of(h)) = {factor, factor * total};
  }
}

/// Loads the first keys' values and weighs them. Begins with a barrier; whole after the next.
template <class Tile>
__device__ void begin_sinks(Tile const& tile, float const (&inverse)[2]) {
  std::int32_t const count = last_sink(tile);
  __syncthreads();
  if (count > 0) tile.fetch_sink_values(count);
  for (std::int32_t first = 0; first < count; first += Tile::keys) {
    if (first > 0) __syncthreads();
    tile.fetch_keys(first);
    wait_copies<0>();
    __syncthreads();
    if (tile.warp_rows <= 0) continue;
    typename Tile::Scores scores = {};
    score_keys<false>(tile, first, scores);
#pragma unroll
    for (int n = 0; n < Tile::score_tiles; ++n) {
      if (first + n * 8 < (count + 15) / 16 * 16)
        sink_weights(tile, first / 8 + n) = {scores[n][0], scores[n][1], scores[n][2], scores[n][3]};
    }
  }
  if (tile.warp_rows <= 0) return;
  for (std::int32_t sink = 0; sink < tile.p.cuts.num_sinks; ++sink) weigh_stretch(tile, sink, inverse);
  for (std::int32_t step = 0; step < (count + 15) / 16; ++step) {
    float4 const a = sink_weights(tile, 2 * step);
    float4 const b = sink_weights(tile, 2 * step + 1);
    WeightOperand<typename Tile::E> weights({a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}, {1, 1});
    weights.keep(0, count - step * 16);  // keys from the largest sink size on are not sinks
    store_sink_weights(tile, step, weights);
  }
}

/// This thread's weights of 16 keys, of those the ones in [begin, end) of its two rows.
template <class Tile>
__device__ void pick_weights(Tile const& tile, std::int32_t step, std::int32_t begin, std::int32_t const (&end)[2],
                             float (&first)[4], float (&second)[4]) {
  load_sink_weights(tile, step).unpack(first, second);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    std::int32_t const key = step * 16 + i / 4 * 8 + tile.lane() % 4 * 2 + i % 2;
    bool const counts = key >= begin && key < end[i % 4 / 2];
    if (i < 4) {
      first[i % 4] = counts ? first[i % 4] : 0;
    } else {
      second[i % 4] = counts ? second[i % 4] : 0;
    }
  }
}

/// The probabilities of stretch `sink` before the rows' cuts.
template <class Tile>
__device__ void add_sink_mass(Tile const& tile, std::int32_t sink, std::int32_t const (&cut)[2], float (&mass)[2]) {
  SinkStretch const keys = sink_stretch(tile, sink);
  if (__all_sync(~0U, cut[0] >= keys.end && cut[1] >= keys.end)) {
    mass[0] += sink_share(tile, sink, tile.row_of(0)).y;
    mass[1] += sink_share(tile, sink, tile.row_of(1)).y;
    return;
  }
  std::int32_t const end[2] = {min(keys.end, cut[0]), min(keys.end, cut[1])};
  float sum[2] = {0, 0};
#pragma unroll 1
  for (std::int32_t step = keys.begin / 16; step * 16 < keys.end; ++step) {
    float first[4];
    float second[4];
    pick_weights(tile, step, keys.begin, end, first, second);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i / 2] += first[i] + second[i];
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) mass[h] += sink_share(tile, sink, tile.row_of(h)).x * quad_sum(sum[h]);
}

/// Sums of a warp's rows in units of their own, so that weights need no factor before they are added.
template <int Tiles>
struct UnitSums {
  float sums[Tiles][4];
  float unit[2];  ///< from these sums to those of probabilities; 0: the sums are 0
  float most[2];  ///< the largest unit so far: what weighs far less need not be right

  static constexpr float least = 1e-12F;
  /// @param other  a probability that the row keeps beside these sums
  __device__ void begin_unit(int h, float factor, float other) {
    most[h] = fmaxf(factor, other);
    unit[h] = factor > 0 ? fmaxf(factor, other * least) : 0;
  }
  /// Moves on to weights that count `to` each; 0: they are all 0.
  __device__ void change_unit(float const (&to)[2]) {
    float ratio[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const next = to[h] > 0 ? fmaxf(to[h], most[h] * least) : unit[h];
      most[h] = fmaxf(most[h], next);
      ratio[h] = next > 0 ? __fdividef(unit[h], next) : 0;
      unit[h] = next;
    }
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= ratio[i / 2];
    }
  }
};

/// Adds Σ p v of stretch `sink` before the rows' cuts.
/// @tparam First  8-channel tile that `sums` begin with
template <int First, class Tile, int Tiles>
__device__ void add_sink_values(Tile const& tile, std::int32_t sink, std::int32_t const (&cut)[2],
                                UnitSums<Tiles>& sums) {
  using E = typename Tile::E;
  auto const& shared = tile.p.shared;
  SinkStretch const keys = sink_stretch(tile, sink);
  if (keys.begin == keys.end) return;
  float const share[2] = {sink_share(tile, sink, tile.row_of(0)).x, sink_share(tile, sink, tile.row_of(1)).x};
  bool const cut_short = __any_sync(~0U, cut[0] < keys.end || cut[1] < keys.end);
  if (!cut_short) sums.change_unit(share);
#pragma unroll 1
  for (std::int32_t key = keys.begin / 16 * 16; key < keys.end; key += 16) {
    WeightOperand<E> weights;
    if (cut_short) {
      // What is left of the stretch may weigh far less than the rest.
      float first[4];
      float second[4];
      std::int32_t const end[2] = {min(keys.end, cut[0]), min(keys.end, cut[1])};
      pick_weights(tile, key / 16, keys.begin, end, first, second);
      float scale[2];
      float to[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = fmaxf(fmaxf(first[2 * h], first[2 * h + 1]), fmaxf(second[2 * h], second[2 * h + 1]));
        largest = quad_max(largest);
        to[h] = unless_tiny(share[h] * largest);
        scale[h] = to[h] > 0 ? 1 / largest : 0;
      }
      sums.change_unit(to);
      weights = WeightOperand<E>(first, second, scale);
    } else {
      weights = load_sink_weights(tile, key / 16);
      if (key < keys.begin || key + 16 > keys.end) weights.keep(keys.begin - key, keys.end - key);
    }
    std::uint32_t const values =
        value_address(tile.template at<E>(shared.sink_values) + key * shared.value_pitch, shared.value_pitch);
    unrolled<Tiles / 2>([&]<int I>() {
      weights.template multiply<First * 16 + I * 32>(sums.sums[2 * I], sums.sums[2 * I + 1], values);
    });
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
