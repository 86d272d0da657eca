#pragma once

// Errors of keys and of values that go through formats: attention of sampled query rows, exact and over rounded rows,
// in single precision.
//
// A block has 128 threads and up to 16 sampled rows of one query head. It loads 32 keys and values at a time, once, as
// floats; then, for each format, threads encode and decode a block of channels each, by the code of the CPU, and warps
// score and weigh their own rows: lanes have a key each in scores, two channels each in sums. A row has the sums of
// `RoundingPass`. A block's sums go to its partials; the last block of a head adds those up in order.
//
// Barriers, per tile of keys: the last tile's are dead | they have arrived | and per format: rounded rows have arrived
// | are dead.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/last_block.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/stats/detail/cuda/observe_kernel.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/rounding_parameters.cuh>
#include <headaware/stats/detail/cuda/rounding_tile.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Adds all keys of the tile's rows.
template <class Tile>
__device__ void attend_rounded(Tile const& tile) {
  auto const& p = tile.p;
  std::int32_t const formats = tile.num_formats();
  float* const weights = tile.at(p.shared.weights);
  float* const own_weights = tile.at(p.shared.own_weights);
  float const* const values = tile.at(p.shared.values);
  std::int32_t const last = tile.query_of(tile.rows - 1);
  for (std::int32_t key = tile.oldest_of(tile.query_of(0)) / rounding_keys * rounding_keys; key <= last;
       key += rounding_keys) {
    __syncthreads();
    tile.load_keys(key);
    __syncthreads();
    float exact[Tile::warp_rows] = {};
    tile.weigh(tile.at(p.shared.keys), 0, key, weights, exact);
    tile.add_values(values, p.shared.value_pitch, weights, 0, exact);
    for (std::int32_t f = 0; f < formats; ++f) {
      tile.round_rows(f);
      __syncthreads();
      float factors[Tile::warp_rows] = {};
      float const* const keys = tile.at(p.shared.rounded_keys);
      tile.weigh(keys, 1 + f, key, own_weights, factors);
      if (p.latent) {
        tile.add_values(keys, p.shared.pitch, own_weights, 1 + formats + f, factors);
      } else {
        tile.add_values(values, p.shared.value_pitch, own_weights, 1 + formats + f, factors);
        tile.add_values(tile.at(p.shared.value_errors), p.shared.value_pitch, weights, 1 + f, exact);
      }
      __syncthreads();
    }
  }
}

/// Replaces a row's sums by errors, and writes their squares, before the metric and after it.
template <class Tile>
__device__ void square_errors(Tile const& tile, std::int32_t row) {
  auto const& p = tile.p;
  std::int32_t const formats = tile.num_formats();
  float const sink = tile.own.sinks != nullptr ? tile.own.sinks[tile.head] * log2_e : -INFINITY;
  bool finite = sink == -INFINITY || isfinite(sink);
  auto const inverse_of = [&](std::int32_t state) {
    OnlineSoftmax<float> const all = tile.state_of(state, row);
    return 1 / (all.sum + exp2f(sink - all.max));
  };
  float const inverse = inverse_of(0);
  float* const squares = tile.at(p.shared.squares) + row * 4 * formats;
  float const* const output = tile.sums_of(0, row);
  auto const finish = [&](std::int32_t index, float square) {
    square = warp_sum(square);
    finite = finite && isfinite(square);
    if (tile.lane == 0) squares[index] = square;
  };
  for (std::int32_t f = 0; f < formats; ++f) {
    float const own = inverse_of(1 + f);
    float* const key = tile.sums_of(1 + formats + f, row);
    float* const value = tile.sums_of(1 + f, row);
    float key_square = 0;
    float value_square = 0;
    for (std::int32_t c = tile.lane; c < p.value_dim; c += warp_threads) {
      key[c] = own * key[c] - inverse * output[c];
      value[c] *= inverse;
      key_square += key[c] * key[c];
      value_square += value[c] * value[c];
    }
    finish(f, key_square);
    finish(formats + f, value_square);
  }
  __syncwarp();
  if (tile.layer.output_factors != nullptr) {
    float const* const matrix = tile.layer.output_factors + std::int64_t{tile.head} * p.value_dim * p.value_dim;
    for (std::int32_t f = 0; f < formats; ++f) {
      float const* const key = tile.sums_of(1 + formats + f, row);
      float const* const value = tile.sums_of(1 + f, row);
      float key_square = 0;
      float value_square = 0;
      for (std::int32_t c = tile.lane; c < p.value_dim; c += warp_threads) {
        float moved_key = 0;
        float moved_value = 0;
        for (std::int32_t d = 0; d < p.value_dim; ++d) {
          float const factor = matrix[c * p.value_dim + d];
          moved_key += factor * key[d];
          moved_value += factor * value[d];
        }
        key_square += moved_key * moved_key;
        value_square += moved_value * moved_value;
      }
      finish(2 * formats + f, key_square);
      finish(3 * formats + f, value_square);
    }
  }
  if (tile.lane == 0 && !finite) tile.template at<std::int32_t>(p.shared.valid)[row] = 0;
}

/// Adds the rows' squares to the block's sums. Begins and ends with a barrier.
template <class Tile>
__device__ void add_squares(Tile const& tile) {
  auto const& p = tile.p;
  std::int32_t const entries = 4 * tile.num_formats();
  bool const metric = tile.layer.output_factors != nullptr;
  double* const raw = tile.template at<double>(p.shared.raw);
  auto const* const valid = tile.template at<std::int32_t>(p.shared.valid);
  __syncthreads();
  for (std::int32_t i = tile.thread; i < 2 + entries; i += observe_threads) {
    bool const is_metric = i == 1 || i >= 2 + entries / 2;
    if (is_metric && !metric) continue;
    double sum = 0;
    for (std::int32_t row = 0; row < tile.rows; ++row) {
      if (valid[row] == 0) continue;
      sum += i < 2 ? 1.0 : static_cast<double>(tile.at(p.shared.squares)[row * entries + i - 2]);
    }
    raw[i] += sum;
  }
  __syncthreads();
}

/// Grid: x heads of all blocks of a head, y layers.
template <class E, class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(observe_threads, 1)
    rounding_kernel(Parameters const __grid_constant__ parameters, ObserveTensors const __grid_constant__ tensors) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(16) unsigned char observe_memory[];
  auto const& own = share_own(tensors.own[blockIdx.y], observe_memory + sizeof(Parameters));
  auto const& p = share_parameters(parameters, *reinterpret_cast<SharedStorage<Parameters>*>(observe_memory));
  auto const head = static_cast<std::int32_t>(blockIdx.x) % p.num_query_heads;
  std::int32_t const block = static_cast<std::int32_t>(blockIdx.x) / p.num_query_heads;
  std::int32_t const size = 2 + 4 * p.layout.formats;
  RoundingTile<E, Parameters> tile(p, observe_memory, tensors.layers[blockIdx.y], own, head);
  double* const raw = tile.template at<double>(p.shared.raw);
  for (std::int32_t i = tile.thread; i < size; i += observe_threads) raw[i] = 0;
  tile.clear_rounded();
  std::int64_t const work = p.chunks * p.tiles;
  // The tiles with most keys first.
  for (std::int64_t i = block; i < work; i += p.blocks) {
    if (!tile.begin(i % p.chunks, p.tiles - 1 - i / p.chunks)) continue;
    tile.begin_rows();
    attend_rounded(tile);
    for (int r = 0; r < tile.warp_rows; ++r) {
      if (tile.row_of(r) < tile.rows) square_errors(tile, tile.row_of(r));
    }
    add_squares(tile);
  }
  __syncthreads();
  std::int64_t const index = std::int64_t{blockIdx.y} * p.num_query_heads + head;
  double* const partials = p.partials + index * p.blocks * size;
  for (std::int32_t i = tile.thread; i < size; i += observe_threads) partials[std::int64_t{block} * size + i] = raw[i];
  if (!is_last_block(p.tickets + index, p.blocks)) return;
  double* const sums = p.sums + (own.first_head + head) * p.layout.size() + p.layout.rounding_rows();
  for (std::int32_t i = tile.thread; i < size; i += observe_threads) {
    double sum = 0;
    for (std::int32_t b = 0; b < p.blocks; ++b) sum += __ldcg(partials + std::int64_t{b} * size + i);
    sums[i] += sum;
  }
#else
  __trap();  // the host has refused such devices; their code only has to compile
#endif
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
