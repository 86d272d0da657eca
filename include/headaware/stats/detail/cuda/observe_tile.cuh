#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/stats/detail/cuda/fetch.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/observe_products.cuh>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

struct NoHeldQueries {};

/// @brief The tile of query rows that a block works on: its rows and keys by thread, and its shared memory.
///
/// `observe_kernel.cuh` has the shapes.
///
/// @tparam ChannelTiles  8-channel tiles of value sums per warp; 0: without values
/// @tparam Wide          whether warps have 16 rows each, value sums too; else, with values, all warps share 16 rows
template <class Element, int ChannelTiles, bool Wide, class ParametersT>
struct ObserveTile {
  using E = Element;
  using Parameters = ParametersT;
  using Products = WarpProducts<E>;
  static constexpr int channel_tiles = ChannelTiles;
  static constexpr bool with_values = ChannelTiles > 0;
  static constexpr bool wide = with_values && Wide;
  static constexpr bool shares_rows = with_values && !wide;  ///< all warps have the same rows, and a part of the keys
  static constexpr bool can_hold_queries = !with_values && !std::is_same_v<E, float>;
  static constexpr int keys = observe_tile_keys(Products::keys, shares_rows);
  static constexpr int key_warps = shares_rows ? observe_warps : 1;
  static constexpr int score_tiles = keys / 8 / key_warps;  ///< per warp
  static constexpr int part_tiles = 4;  ///< channel tiles whose errors are summed at a time, where wide
  static constexpr int max_rows = shares_rows ? 16 : 64;
  using Scores = float[score_tiles][4];

  __device__ ObserveTile(Parameters const& parameters, unsigned char* shared_memory, ObserveTensors::Layer const& of,
                         ObserveTensors::Own const& own_of, std::int32_t query_head)
      : p(parameters),
        memory(shared_memory),
        layer(of),
        own(own_of),
        head(query_head),
        thread(static_cast<std::int32_t>(threadIdx.x)),
        warp(thread / warp_threads),
        first_row(shares_rows ? 0 : warp * 16) {}

  /// Moves on to a chunk, whose raw sums begin with zero.
  __device__ void begin_chunk(std::int64_t chunk) {
    chunk_begin = p.first_token + chunk * p.chunk_size;
    length = static_cast<std::int32_t>(min(p.chunk_size, p.tokens - chunk * p.chunk_size));
    for (std::int64_t i = thread; i < p.layout.size(); i += observe_threads) raw()[i] = 0;
    __syncthreads();
  }
  /// Tiles of the chunk.
  [[nodiscard]] __device__ std::int32_t count() const {
    std::int32_t const queries =
        length <= p.first_query ? 0 : (length - p.first_query + p.query_stride - 1) / p.query_stride;
    return (queries + p.shared.rows - 1) / p.shared.rows;
  }
  /// Moves on to a tile of the chunk.
  __device__ void begin(std::int32_t tile) {
    first_query = static_cast<std::int32_t>(p.first_query + std::int64_t{tile} * p.shared.rows * p.query_stride);
    rows = min(p.shared.rows, (length - first_query + p.query_stride - 1) / p.query_stride);
    warp_rows = min(16, rows - first_row);
    recent_begin = static_cast<std::int32_t>(floor(static_cast<double>(length) * (1 - p.recent_ratio)));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      bool const exists = row_of(h) < rows;
      query[h] = exists ? query_of(row_of(h)) : -1;
    }
  }

  template <class X>
  [[nodiscard]] __device__ X* at(std::int32_t offset) const {
    return reinterpret_cast<X*>(memory + offset);
  }
  [[nodiscard]] __device__ double* raw() const { return at<double>(p.shared.raw); }
  [[nodiscard]] __device__ float* weights() const { return at<float>(p.shared.weights); }
  [[nodiscard]] __device__ std::int32_t lane() const { return thread % warp_threads; }
  [[nodiscard]] __device__ bool has_retention() const { return p.layout.cells > 0; }

  /// The row of half `h` of this thread's fragments.
  [[nodiscard]] __device__ std::int32_t row_of(int h) const { return first_row + lane() / 4 + 8 * h; }
  [[nodiscard]] __device__ std::int32_t query_of(std::int32_t row) const { return first_query + row * p.query_stride; }
  [[nodiscard]] __device__ std::int32_t last_query() const { return query_of(rows - 1); }
  [[nodiscard]] __device__ std::int32_t warp_last_query() const { return query_of(first_row + warp_rows - 1); }
  /// The oldest key that a query sees.
  [[nodiscard]] __device__ std::int32_t oldest_of(std::int32_t of_query) const {
    return own.window > 0 ? max(0, of_query - own.window + 1) : 0;
  }
  /// The first of this warp's keys of a key tile, counted from its first.
  [[nodiscard]] __device__ std::int32_t warp_key() const { return shares_rows ? warp * (keys / key_warps) : 0; }
  /// The first of this thread's keys of the key tile at `first`.
  [[nodiscard]] __device__ std::int32_t own_key(std::int32_t first) const {
    return first + warp_key() + lane() % 4 * 2;
  }
  /// This warp's queries · keys.
  __device__ void multiply_keys(Scores& scores) const {
    E const* const own_keys = at<E>(p.shared.keys) + warp_key() * p.shared.pitch;
    if constexpr (can_hold_queries) {
      if (p.shared.queries_held) return held.scores(scores, own_keys, p.shared.pitch, p.shared.channels);
    }
    Products::scores(scores, at<E>(p.shared.queries) + first_row * p.shared.pitch, own_keys, p.shared.pitch,
                     p.shared.channels);
  }
  /// The first key tile that some row sees.
  [[nodiscard]] __device__ std::int32_t first_key() const { return oldest_of(first_query) / keys * keys; }

  // Loads, without waiting for them.

  __device__ void fetch_queries() const {
    fetch_rows(static_cast<E const*>(layer.queries), p.query_layout, p.query_fetch,
               {p.sequence, head, chunk_begin + first_query, p.query_stride, rows, (p.shared.rows + 15) / 16 * 16},
               p.head_dim, p.shared.channels, p.shared.pitch, at<E>(p.shared.queries));
  }
  /// Brings queries to registers, where they stay; what else shares their memory is overwritten. Ends with a barrier.
  __device__ void hold_queries() {
    static_assert(can_hold_queries);
    fetch_queries();
    if (!p.shared.queries_held) return;
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    if (warp_rows > 0)
      held.load(at<E>(p.shared.queries) + first_row * p.shared.pitch, p.shared.pitch, p.shared.channels);
    __syncthreads();
  }
  __device__ void fetch_keys(std::int32_t first) const {
    fetch_rows(static_cast<E const*>(layer.keys), p.key_layout, p.key_fetch, key_rows(first), p.head_dim,
               p.shared.channels, p.shared.pitch, at<E>(p.shared.keys));
    commit_copies();
  }
  __device__ void fetch_values(std::int32_t first) const {
    fetch_rows(static_cast<E const*>(layer.values), p.value_layout, p.value_fetch, key_rows(first), p.value_dim,
               p.shared.value_dim, p.shared.value_pitch, at<E>(p.shared.values));
    commit_copies();
  }
  /// Fetches the values of the first `count` keys to a place of their own.
  __device__ void fetch_sink_values(std::int32_t count) const {
    fetch_rows(static_cast<E const*>(layer.values), p.value_layout, p.value_fetch,
               {p.sequence, head / p.group, chunk_begin, 1, min(count, last_query() + 1), (count + 15) / 16 * 16},
               p.value_dim, p.shared.value_dim, p.shared.value_pitch, at<E>(p.shared.sink_values));
    commit_copies();
  }
  /// Of the key tile at `first`, the keys that some row sees.
  [[nodiscard]] __device__ FetchRows key_rows(std::int32_t first) const {
    return {p.sequence, head / p.group, chunk_begin + first, 1, last_query() + 1 - first, keys};
  }

  Parameters const& p;
  unsigned char* memory;
  ObserveTensors::Layer const& layer;
  ObserveTensors::Own const& own;
  std::int32_t head;
  std::int32_t thread;
  std::int32_t warp;
  std::int32_t first_row;  ///< of this warp
  std::int64_t chunk_begin = 0;
  std::int32_t length = 0;        ///< of the chunk
  std::int32_t recent_begin = 0;  ///< first key of the chunk's recent part
  std::int32_t first_query = 0;   ///< of the tile
  std::int32_t rows = 0;          ///< of the tile
  std::int32_t warp_rows = 0;     ///< of them this warp's; not positive: none
  std::int32_t query[2]{};        ///< of this thread's two rows; -1: no row
  std::conditional_t<can_hold_queries, HeldQueries<E>, NoHeldQueries> held;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
