#pragma once

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/layer_kinds.cuh>
#include <headaware/detail/cuda/vector_access.cuh>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows of one tensor of an append, in all layers or in those of a kind.
template <class Layout>
struct AppendRows {
  Layout layout;
  std::int32_t channels;
};

/// The keys or the values of an append. @tparam Rows  `AppendRows`, or `LayerKinds` of them
template <class Rows>
struct AppendPlane {
  Rows rows;
  std::int32_t element_bytes;
  std::int32_t vector_bytes;  ///< the widest access that both sides and all addresses allow
  std::int32_t max_channels;  ///< of any layer

  static __device__ void share(AppendPlane const& from, AppendPlane& to) {
    share_items(from.rows, to.rows);
    if (threadIdx.x != 0) return;
    to.element_bytes = from.element_bytes;
    to.vector_bytes = from.vector_bytes;
    to.max_channels = from.max_channels;
  }
};

/// How an append is shared out.
struct AppendGrid {
  std::int32_t first_layer;
  std::int32_t num_layers;     ///< of this append
  std::int32_t rows_per_head;  ///< the most tokens of an append that stay in a head
  std::int32_t rows_per_block;
  std::int32_t append_blocks;  ///< the blocks after them copy pages
};

template <class Cache, class Keys, class Values>
struct AppendParameters : AppendGrid {
  Cache cache;
  AppendCounters counters;
  Keys keys;  ///< `AppendPlane`
  Values values;

  /// Of kinds of layers, only those that there are. (Else all is copied in one go.)
  static __device__ void share(AppendParameters const& from,
                               AppendParameters& to) requires(is_layer_kinds<decltype(Keys::rows)>) {
    share_words<AppendGrid>(from, to);
    share_words(from.cache, to.cache);
    share_words(from.counters, to.counters);
    Keys::share(from.keys, to.keys);
    Values::share(from.values, to.values);
  }
};

/// Pointers by layer: keys, values.
struct AppendTables {
  PlanePointers planes[2];
};

inline constexpr std::int32_t max_append_rows = 64;

/// Source and target of one token of one head. In shared memory, so that one thread per row reads the tables.
struct AppendRow {
  char const* source[2];  ///< the layer's new tokens
  char* target[2];        ///< the row; nullptr: nothing to do
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t token;  ///< of the new ones
  std::int32_t layer;  ///< of the new tokens
};

/// Copies the block's rows of one plane, `Vector` by `Vector`.
template <int Plane, class Vector, class Rows>
__device__ void append_vectors(AppendPlane<Rows> const& plane, AppendRow const* rows, std::int32_t count) {
  std::int32_t const per_vector = static_cast<std::int32_t>(sizeof(Vector)) / plane.element_bytes;
  std::int32_t const per_row = plane.max_channels / per_vector;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count * per_row; i += block_threads) {
    AppendRow const& row = rows[i / per_row];
    if (row.target[Plane] == nullptr) continue;
    std::int32_t const vector = i % per_row;
    auto const& of = of_layer(plane.rows, row.layer);
    if constexpr (is_layer_kinds<Rows>) {
      if (vector * per_vector >= of.channels) continue;
    }
    std::int64_t const from = of.layout.offset(row.sequence, row.kv_head, row.token, vector * per_vector);
    reinterpret_cast<Vector*>(row.target[Plane])[vector] =
        *reinterpret_cast<Vector const*>(row.source[Plane] + from * plane.element_bytes);
  }
}

template <int Plane, class Rows>
__device__ void append_plane(AppendPlane<Rows> const& plane, AppendRow const* rows, std::int32_t count) {
  with_vector(plane.vector_bytes, [&]<class Vector>() { append_vectors<Plane, Vector>(plane, rows, count); });
}

/// A new token of an append in one head, and the row that it takes.
/// @tparam Rows  of all that the head holds after the append
template <class Rows>
struct NewToken {
  Segment segment;
  Rows rows;
  std::int64_t row;
  std::int32_t token;  ///< of the new ones
};

/// Finds row `index` of an append: segments in order, and in each the new tokens that stay.
/// @param segments  of the appended layers
/// @param f         called with a `NewToken`, where there is one
template <class Parameters, class F>
__device__ void with_new_token(Parameters const& p, std::int64_t index, std::int64_t segments, F const& f) {
  std::int64_t const segment = index / p.rows_per_head;
  if (segment >= segments) return;
  std::int64_t const i = index % p.rows_per_head;
  LayerHeads const heads = p.cache.layer_heads();
  Segment const at =
      segment_at(heads.first(p.first_layer) * p.counters.num_sequences + segment, p.counters.num_sequences, heads);
  std::int64_t const length = p.counters.lengths[at.sequence];
  std::int64_t const count = p.counters.count(at.sequence);
  if (!p.counters.takes(length, count)) {
    if (p.counters.status != nullptr) *p.counters.status = 1;
    return;
  }
  std::int64_t const high_water = Parameters::needs_high_water ? p.counters.high_water[at.sequence] : 0;
  auto const held = p.cache.rows(at.layer, at.sequence, at.kv_head, length + count, high_water);
  std::int64_t const row = held.tokens.kept_before(length) + i;
  if (row >= held.rows()) return;
  f(NewToken<std::remove_const_t<decltype(held)>>{at, held, row,
                                                  static_cast<std::int32_t>(held.position(row) - length)});
}

/// Fills in row `index` of an append.
template <class Parameters>
__device__ AppendRow append_row(Parameters const& p, AppendTables const& tables, std::int64_t index,
                                std::int64_t segments) {
  AppendRow row{};
  with_new_token(p, index, segments, [&](auto const& found) {
    row.kv_head = found.segment.kv_head;
    row.sequence = found.segment.sequence;
    row.layer = found.segment.layer - p.first_layer;
    row.token = found.token;
    auto const fill = [&](std::int32_t plane, std::int64_t channels, std::int64_t element_bytes) {
      row.source[plane] = static_cast<char const*>(tables.planes[plane].source[row.layer]);
      row.target[plane] = static_cast<char*>(tables.planes[plane].kept[row.layer]) +
                          found.rows.offset(found.row, channels) * element_bytes;
    };
    fill(0, of_layer(p.keys.rows, row.layer).channels, p.keys.element_bytes);
    std::int64_t const value_channels = of_layer(p.values.rows, row.layer).channels;
    if (value_channels != 0) fill(1, value_channels, p.values.element_bytes);
  });
  return row;
}

/// (Layer, sequence, KV head)s that an append writes to.
template <class Parameters>
[[nodiscard]] __device__ std::int64_t appended_segments(Parameters const& p) {
  LayerHeads const heads = p.cache.layer_heads();
  return (heads.first(p.first_layer + p.num_layers) - heads.first(p.first_layer)) * p.counters.num_sequences;
}

/// Whether a block is there for a copy on write, not for new tokens. Nothing that a copy reads is written in the same
/// launch. @param copy  (cache, PageCopy) is called if it is of the layers appended to
template <class Parameters, class Copy>
__device__ bool is_for_copy(Parameters const& p, Copy const& copy) {
  if constexpr (requires { p.cache.copies; }) {
    if (blockIdx.x < static_cast<unsigned>(p.append_blocks)) return false;
    PageCopy const of_block = p.cache.copies[blockIdx.x - static_cast<unsigned>(p.append_blocks)];
    if (of_block.layer >= p.first_layer && of_block.layer < p.first_layer + p.num_layers) copy(p.cache, of_block);
    return true;
  }
  return false;
}

/// Copies a shared page's first tokens, by a block.
template <class Parameters, class Cache>
__device__ void copy_page(Parameters const& p, AppendTables const& tables, Cache const& cache, PageCopy const& copy) {
  auto const move = [&](auto const& plane, void* tensor) {
    std::int64_t const channels = of_layer(plane.rows, copy.layer - p.first_layer).channels;
    if (channels == 0) return;
    auto const place = [&](std::int32_t page) { return cache.page_offset(page, channels) * plane.element_bytes; };
    copy_bytes(static_cast<char*>(tensor), place(copy.from), place(copy.to),
               std::int64_t{copy.tokens} * channels * plane.element_bytes, plane.vector_bytes);
  };
  move(p.keys, tables.planes[0].kept[copy.layer - p.first_layer]);
  move(p.values, tables.planes[1].kept[copy.layer - p.first_layer]);
}

/// Each block writes some rows of keys and values. The last block to have read the lengths advances them.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(block_threads, min_blocks)
    append_kernel(Parameters const __grid_constant__ parameters, AppendTables const __grid_constant__ tables) {
  __shared__ SharedStorage<Parameters> parameter_storage;
  __shared__ AppendRow rows[max_append_rows];
  auto const& p = share_parameters(parameters, parameter_storage);
  sign_counters(p.counters);
  std::int64_t const segments = appended_segments(p);
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  if (is_for_copy(p, [&](auto const& cache, PageCopy const& copy) { copy_page(p, tables, cache, copy); })) return;
  if (thread < p.rows_per_block) {
    rows[thread] = append_row(p, tables, std::int64_t{blockIdx.x} * p.rows_per_block + thread, segments);
  }
  __syncthreads();
  append_plane<0>(p.keys, rows, p.rows_per_block);
  if (p.values.max_channels != 0) append_plane<1>(p.values, rows, p.rows_per_block);
  advance_counters(p.counters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
