#pragma once

// The statistics kernel: one pass of flash attention's loop that adds up statistics of probabilities instead of
// outputs.
//
// Tiles. A block has 128 threads, 4 warps, and one query head. It takes tiles of up to 64 query rows (fewer where
// shared memory is small) and moves along the keys in tiles of 32. Warp w has rows 16w … 16w + 15 and all keys of a
// tile:
//   scores = queries · keysᵀ, m16n8k16; without values queries of up to 128 channels stay in registers.
// Values of 16-bit elements, of up to 128 channels, beside sink sizes of up to 64 and without a metric ("wide"):
//   sums  += weights · values, m16n8k16, in the warp's registers; weights go from scores to operands without leaving
//   them. The first sweep gives masses and outputs. Sums of every pair do not fit, so that two more sweeps make them
//   again, for the errors of a pair where they come to its cut: to the newest cut that is needed, and back from the
//   query (`observe_cells.cuh`). What sinks add is made of their values and weights, which stay in shared memory
//   (`observe_sinks.cuh`).
// Other values: tiles of up to 16 rows and 64 keys (32 for float, which has no tensor cores). All warps have the same
//   rows, and each a quarter of the keys of scores, and every 4th pair of 8-channel tiles of sums. Weights pass through
//   shared memory, in float; so do sums of intervals, which are combined after the last key (`observe_errors.cuh`).
// Fragments. Lane l has rows l / 4 and l / 4 + 8 ("halves" h = 0, 1) and columns 2 · (l % 4), + 1 of each 8-column
// tile. The 4 lanes of a row are its quad: they share its maximum, and add up their sums after an interval or row.
//
// Formula. With s = log2 e · logit, m = max s, w = 2^(s - m), Z = Σ w (online softmax, arXiv:1805.02867):
//   entropy = ln 2 · (log2 Z - Σ w (s - m) / Z); max = 1 / Z; recent = Σ_recent w / Z.
// A learned sink joins m, Z and the entropy after the last key, and counts as kept by every (sink, window) pair.
// Retention: a (sink, window) pair drops a run of whole intervals (`RetentionCuts`); per interval the kernel sums
// weights and, with values that are not wide, weights · values, relative to a maximum of its own. Sums are in registers
// while their keys pass by, in shared memory before and after.
//
// Barriers, per tile of keys:
//   A  keys have arrived; the last tile's values and weights are dead   → fetch values, score keys
//   B  keys are dead; with values, the warps' maxima are there          → fetch next keys, turn scores into weights
//   C  with values: weights and values have arrived                     → add values
// and per tile of rows those of `finish_rows`.
//
// Files: observe_tile (rows, keys, loads), observe_products (operands in registers), observe_softmax (scores, online
// softmax), observe_intervals (their masses), observe_values (their value sums), observe_rows and observe_errors (the
// reduction after the last key); of wide tiles observe_sinks, observe_cells and observe_sweeps.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/last_block.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/stats/detail/cuda/observe_errors.cuh>
#include <headaware/stats/detail/cuda/observe_intervals.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/observe_products.cuh>
#include <headaware/stats/detail/cuda/observe_rows.cuh>
#include <headaware/stats/detail/cuda/observe_softmax.cuh>
#include <headaware/stats/detail/cuda/observe_sweeps.cuh>
#include <headaware/stats/detail/cuda/observe_tile.cuh>
#include <headaware/stats/detail/cuda/observe_values.cuh>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Shares the rows' maxima among warps, which have different keys where there are values.
template <class Tile>
__device__ void write_maxima(Tile const& tile, float const (&tile_max)[2]) {
  auto* const maxima = tile.template at<float>(tile.p.shared.maxima);
  if (tile.lane() % 4 != 0) return;
  for (int h = 0; h < 2; ++h) maxima[tile.warp * 16 + tile.row_of(h)] = tile_max[h];
}
template <class Tile>
__device__ void read_maxima(Tile const& tile, float (&tile_max)[2]) {
  auto const* const maxima = tile.template at<float>(tile.p.shared.maxima);
  for (int h = 0; h < 2; ++h) {
    for (int w = 0; w < observe_warps; ++w) tile_max[h] = fmaxf(tile_max[h], maxima[w * 16 + tile.row_of(h)]);
  }
}

/// Adds weights · values of a key tile, the weights in registers.
template <class Tile>
__device__ void add_weights(Tile const& tile, typename Tile::Scores const& weights, SoftmaxChange const& change,
                            ValueSums<Tile>& sums) {
  using E = typename Tile::E;
  auto const& shared = tile.p.shared;
  sums.rescale(change.keep);
  std::uint32_t values = value_address(tile.template at<E>(shared.values), shared.value_pitch);
#pragma unroll
  for (int n = 0; n < Tile::score_tiles; n += 2) {
    sums.add(WeightOperand<E>(weights[n], weights[n + 1], change.gain), values);
    values += static_cast<std::uint32_t>(16 * shared.value_pitch) * static_cast<std::uint32_t>(sizeof(E));
  }
}

/// Adds tile `index` of the chunk to the raw sums.
template <class Tile>
__device__ __forceinline__ void observe_tile(Tile& tile, std::int32_t index) {
  tile.begin(index);
  RowSoftmaxes<Tile> softmax;
  IntervalMasses<Tile> masses;
  std::conditional_t<Tile::wide, ValueSums<Tile>, IntervalSums<Tile>> sums;
  softmax.begin();
  masses.begin();
  if constexpr (Tile::with_values) sums.begin();
  if constexpr (Tile::can_hold_queries) tile.hold_queries();
  if (tile.has_retention()) begin_intervals(tile);
  std::int32_t first = tile.first_key();
  if constexpr (!Tile::can_hold_queries) tile.fetch_queries();
  tile.fetch_keys(first);
  for (; first <= tile.last_query(); first += Tile::keys) {
    bool const more = first + Tile::keys <= tile.last_query();
    wait_copies<0>();
    __syncthreads();  // A
    if constexpr (Tile::with_values) tile.fetch_values(first);
    bool const active = tile.warp_rows > 0 && first <= tile.warp_last_query();
    typename Tile::Scores scores = {};
    float tile_max[2] = {hidden_logit, hidden_logit};
    if (active) score_keys(tile, first, scores, tile_max);
    if constexpr (Tile::shares_rows) write_maxima(tile, tile_max);
    __syncthreads();  // B
    if (more) tile.fetch_keys(first + Tile::keys);
    if constexpr (Tile::shares_rows) read_maxima(tile, tile_max);
    SoftmaxChange change;
    if (active) {
      change = softmax.add(tile, first, scores, tile_max);
      if (tile.has_retention()) masses.add(tile, first, scores, change, softmax);
      if constexpr (Tile::shares_rows) store_weights(tile, scores);
    }
    if constexpr (Tile::with_values) {
      if (more) {
        wait_copies<1>();
      } else {
        wait_copies<0>();
      }
      __syncthreads();  // C
      if constexpr (Tile::wide) {
        if (active) add_weights(tile, scores, change, sums);
      } else {
        sums.add(tile, first, tile_max);
      }
    }
  }
  if (tile.warp_rows > 0) {
    softmax.store(tile);
    if (tile.has_retention()) masses.store(tile, softmax);
    if constexpr (Tile::shares_rows) sums.store(tile);
  }
  finish_rows(tile, [&] {
    if constexpr (Tile::shares_rows) {
      finish_errors(tile, tile.p.layout.error_squared(), SumsLayout::output_squared);
      if (tile.layer.output_factors != nullptr) {
        apply_output_factor(tile);
        finish_errors(tile, tile.p.layout.metric_error_squared(), SumsLayout::output_metric_squared);
      }
    }
  });
  if constexpr (Tile::wide) finish_wide_errors(tile, sums, {softmax.rows[0].max, softmax.rows[1].max});
}

/// Adds up the partial sums of a head in order, by its last block.
template <class Parameters>
__device__ void combine_partials(Parameters const& p, double const* partials, double* raw, double* sums) {
  std::int64_t const size = p.layout.size();
  for (std::int32_t group = 0; group < p.grid.groups; ++group) {
    for (std::int64_t i = threadIdx.x; i < size; i += observe_threads) {
      double sum = 0;
      for (std::int32_t part = 0; part < p.grid.parts; ++part)
        sum += __ldcg(partials + (std::int64_t{group} * p.grid.parts + part) * size + i);
      raw[i] = sum;
    }
    __syncthreads();
    // With several parts, groups are chunks, whose means are still to be taken.
    for (std::int64_t i = threadIdx.x; i < size; i += observe_threads)
      sums[i] += p.grid.parts == 1 ? raw[i] : chunk_entry(raw, i, p.layout);
    __syncthreads();
  }
}

/// Copies what a layer has of its own to shared memory. @return the copy, whole after the next barrier
__device__ inline ObserveTensors::Own const& share_own(ObserveTensors::Own const& own, unsigned char* to) {
  static_assert(sizeof(own) % 4 == 0 && sizeof(own) / 4 <= observe_threads);
  auto* const words = reinterpret_cast<std::uint32_t*>(to);
  if (threadIdx.x < sizeof(own) / 4) words[threadIdx.x] = reinterpret_cast<std::uint32_t const*>(&own)[threadIdx.x];
  return *reinterpret_cast<ObserveTensors::Own const*>(words);
}

/// Blocks that a multiprocessor must have registers for.
template <class E>
constexpr int observe_blocks_at_once(int channel_tiles, bool wide) {
  if (wide) return 2;
  return channel_tiles == 0 && !std::is_same_v<E, float> ? 3 : 1;
}

/// Grid: x heads of all blocks of a head, y layers. The last block of a head adds up its sums.
/// Needs compute capability 8.0: matrix products of 16 rows, asynchronous copies.
template <class E, int ChannelTiles, bool Wide, class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(observe_threads, observe_blocks_at_once<E>(ChannelTiles, Wide))
    observe_kernel(Parameters const __grid_constant__ parameters, ObserveTensors const __grid_constant__ tensors) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(16) unsigned char observe_memory[];
  auto const& own = share_own(tensors.own[blockIdx.y], observe_memory + sizeof(Parameters));
  auto& layer = *reinterpret_cast<ObserveTensors::Layer*>(observe_memory + sizeof(Parameters) + sizeof(own));
  share_words(tensors.layers[blockIdx.y], layer);
  auto const& p = share_parameters(parameters, *reinterpret_cast<SharedStorage<Parameters>*>(observe_memory));
  auto const head = static_cast<std::int32_t>(blockIdx.x) % p.num_query_heads;
  std::int32_t const block = static_cast<std::int32_t>(blockIdx.x) / p.num_query_heads;
  // What follows is computed where it is needed: registers are scarce while tiles are worked on.
  auto const index = [&] { return std::int64_t{blockIdx.y} * p.num_query_heads + head; };
  auto const partials = [&] { return p.partials + index() * p.grid.blocks() * p.layout.size(); };
  auto const chunk_of = [&](std::int32_t more) {
    return p.grid.chunks * (block / p.grid.parts + more) / p.grid.groups;
  };

  ObserveTile<E, ChannelTiles, Wide, Parameters> tile(p, observe_memory, layer, own, head);
  for (std::int64_t chunk = chunk_of(0); chunk < chunk_of(1); ++chunk) {
    tile.begin_chunk(chunk);
    // Dealt out forth and back, as tiles grow.
    for (std::int32_t round = 0; round * p.grid.parts < tile.count(); ++round) {
      std::int32_t const part = block % p.grid.parts;
      std::int32_t const next = round * p.grid.parts + (round % 2 == 0 ? part : p.grid.parts - 1 - part);
      if (next < tile.count()) observe_tile(tile, next);
    }
    std::int64_t const size = p.layout.size();
    double* const partial = partials() + block * size;
    bool const begins = chunk == chunk_of(0);
    for (std::int64_t i = threadIdx.x; i < size; i += observe_threads) {
      double const entry = p.grid.parts == 1 ? chunk_entry(tile.raw(), i, p.layout) : tile.raw()[i];
      partial[i] = begins ? entry : partial[i] + entry;
    }
    __syncthreads();
  }
  if (!is_last_block(p.tickets + index(), p.grid.blocks())) return;
  combine_partials(p, partials(), tile.raw(), p.sums + (own.first_head + head) * p.layout.size());
#else
  __trap();  // the host has refused such devices; their code only has to compile
#endif
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
