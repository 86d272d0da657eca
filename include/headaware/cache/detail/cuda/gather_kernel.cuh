#pragma once

#include <headaware/cache/detail/cuda/sizes_kernel.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/layer_kinds.cuh>
#include <headaware/detail/cuda/segment_search.cuh>
#include <headaware/detail/cuda/vector_access.cuh>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Moves rows as bytes, in the widest access that source, destination and their addresses allow.
struct CopyRows {
  std::int32_t vector_bytes;
  bool transposed;  ///< the source has a channel's tokens side by side
};

/// Moves keys of element `E`, rotated to the positions of their rows.
template <class E>
struct RotateRows {
  KeyRotation rotation;
  bool wide;  ///< 16-byte accesses; else element by element
};

/// One tensor of a transfer: keys, values, or their scales.
template <class Layout, class Form, class Move>
struct DevicePlane {
  Layout layout;
  Form form;
  Move move;
  std::int32_t channels;
  std::int32_t element_bytes;
};

/// Capacities and pointers by layer.
template <std::size_t NumPlanes>
struct LayerTables {
  LayerCapacity capacities[max_layers];
  PlanePointers planes[NumPlanes];
};

template <class... Planes>
struct PlaneList;
template <>
struct PlaneList<> {
  static __device__ void share(PlaneList const&, PlaneList&, std::uint32_t) {}
  template <class F>
  __device__ void visit(std::uint32_t, F&&) const {}
};
template <class First, class... Rest>
struct PlaneList<First, Rest...> {
  First first;
  PlaneList<Rest...> rest;
  /// Copies one plane to shared memory.
  static __device__ void share(PlaneList const& from, PlaneList& to, std::uint32_t index) {
    if (index == 0) {
      share_items(from.first, to.first);
    } else {
      PlaneList<Rest...>::share(from.rest, to.rest, index - 1);
    }
  }
  template <class F>
  __device__ void visit(std::uint32_t index, F&& f) const {
    if (index == 0) {
      f(first);
    } else {
      rest.visit(index - 1, f);
    }
  }
};

inline constexpr std::int32_t max_tile_rows = 256;
inline constexpr std::int32_t transpose_side = 32;

/// The rows of a tile, all of one segment.
struct TileRows {
  Segment segment;
  LayerCapacity capacity;
  std::int64_t begin;
  std::int32_t rows;
  void const* source;
  void* kept;
};

struct GatherShared {
  TileRows tile;
  std::int64_t row_offsets[max_tile_rows];  ///< target of each row, in elements
  std::int32_t tokens[max_tile_rows];       ///< the token each row comes from; -1: a keep-list names none
  alignas(16) std::uint64_t transpose[transpose_side * (transpose_side + 1)];
};

/// Fills in the tokens of rows begin + r, r < rows; `is_valid(row, token)` says whether a
/// token may be read there, -1 stands for one that may not (of a keep-list that names it wrongly).
template <class IsValid>
struct StageTokens {
  std::int64_t begin;
  std::int64_t length;
  std::int32_t rows;
  std::int32_t* tokens;
  IsValid is_valid;

  template <class P>
  __device__ void operator()(P const& policy) const {
    // A warp suffices for closed forms, and loads the policy once; a search takes all threads.
    constexpr bool closed = has_source_token<P> || has_kept_before<P>;
    constexpr std::int32_t threads = closed ? warp_threads : block_threads;
    for (auto r = static_cast<std::int32_t>(threadIdx.x); r < rows && threadIdx.x < threads; r += threads) {
      std::int64_t const token = source_token(policy, begin + r, length);
      tokens[r] = is_valid(begin + r, token) ? static_cast<std::int32_t>(token) : -1;
    }
  }
};

/// Copies a tile `Vector` by `Vector`. Four loads are under way before the first store.
template <class Vector, class Plane>
__device__ void copy_rows(Plane const& plane, GatherShared const& shared) {
  Segment const& segment = shared.tile.segment;
  auto const* const source = static_cast<char const*>(shared.tile.source);
  auto* const kept = static_cast<char*>(shared.tile.kept);
  // Parameters that the loop needs, in registers.
  auto const layout = plane.layout;
  std::int32_t const element_bytes = plane.element_bytes;
  std::int32_t const sequence = segment.sequence;
  std::int32_t const kv_head = segment.kv_head;
  constexpr std::int32_t unroll = 4;
  std::int32_t const per_vector = static_cast<std::int32_t>(sizeof(Vector)) / element_bytes;
  std::int32_t const per_row = plane.channels / per_vector;
  std::int32_t const total = shared.tile.rows * per_row;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  RowCursor at(per_row, block_threads);
  for (std::int32_t i = thread; i < total; i += unroll * block_threads) {
    Vector values[unroll];
    std::int64_t targets[unroll];
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      targets[u] = -1;
      if (i + u * block_threads < total) {
        std::int32_t const token = shared.tokens[at.row];
        if (token >= 0) {
          std::int32_t const channel = at.column * per_vector;
          std::int64_t const offset = layout.offset(sequence, kv_head, token, channel);
          values[u] = *reinterpret_cast<Vector const*>(source + offset * element_bytes);
          targets[u] = shared.row_offsets[at.row] + channel;
        }
        at.advance();
      }
    }
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      if (targets[u] >= 0) {
        *reinterpret_cast<Vector*>(kept + targets[u] * element_bytes) = values[u];
      }
    }
  }
}

/// Copies a tile whose source has a channel's tokens side by side: a warp reads 32 tokens of a
/// channel and writes 32 channels of a token, through shared memory.
template <class Element, class Plane>
__device__ void transpose_rows(Plane const& plane, GatherShared& shared) {
  Segment const& segment = shared.tile.segment;
  auto const* const source = static_cast<Element const*>(shared.tile.source);
  auto* const kept = static_cast<Element*>(shared.tile.kept);
  constexpr std::int32_t warps = block_threads / warp_threads;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
  auto* const square = reinterpret_cast<Element*>(shared.transpose);
  constexpr std::int32_t pitch = transpose_side + 1;
  for (std::int32_t first_row = 0; first_row < shared.tile.rows; first_row += transpose_side) {
    for (std::int32_t first_channel = 0; first_channel < plane.channels; first_channel += transpose_side) {
      std::int32_t const row = first_row + lane;
      for (std::int32_t c = warp; c < transpose_side && first_channel + c < plane.channels; c += warps) {
        if (row < shared.tile.rows && shared.tokens[row] >= 0) {
          square[c * pitch + lane] =
              source[plane.layout.offset(segment.sequence, segment.kv_head, shared.tokens[row], first_channel + c)];
        }
      }
      __syncthreads();
      std::int32_t const channel = first_channel + lane;
      for (std::int32_t r = warp; r < transpose_side && first_row + r < shared.tile.rows; r += warps) {
        if (channel < plane.channels && shared.tokens[first_row + r] >= 0) {
          kept[shared.row_offsets[first_row + r] + channel] = square[lane * pitch + r];
        }
      }
      __syncthreads();
    }
  }
}

/// Rotates a tile of keys, `Width` pairs (or passed channels) at a time.
template <int Width, class E, class Plane>
__device__ void rotate_rows(Plane const& plane, GatherShared const& shared) {
  using Vector = Pack<E, Width>;
  Segment const& segment = shared.tile.segment;
  auto const* const source = static_cast<E const*>(shared.tile.source);
  auto* const kept = static_cast<E*>(shared.tile.kept);
  KeyRotation const& rotation = plane.move.rotation;
  std::int32_t const pairs = rotation.rotary_dim() / 2;
  std::int32_t const turned = pairs / Width;
  std::int32_t const passed = (plane.channels - rotation.rotary_dim()) / Width;
  std::int32_t const per_row = turned + passed;
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < shared.tile.rows * per_row; i += block_threads) {
    std::int32_t const row = i / per_row;
    std::int32_t const item = i % per_row;
    std::int32_t const token = shared.tokens[row];
    if (token < 0) continue;
    std::int64_t const distance = rotation.distance(segment.sequence, token, shared.tile.begin + row);
    auto const load = [&](std::int32_t channel) {
      return *reinterpret_cast<Vector const*>(source +
                                              plane.layout.offset(segment.sequence, segment.kv_head, token, channel));
    };
    auto const store = [&](std::int32_t channel, Vector const& vector) {
      *reinterpret_cast<Vector*>(kept + shared.row_offsets[row] + channel) = vector;
    };
    if (item >= turned) {
      std::int32_t const channel = rotation.rotary_dim() + (item - turned) * Width;
      store(channel, load(channel));
      continue;
    }
    bool const neox = rotation.pairing() == RotaryPairing::neox;
    std::int32_t const channel_a = neox ? item * Width : 2 * item * Width;
    std::int32_t const channel_b = channel_a + (neox ? pairs : Width);
    Vector a = load(channel_a);
    Vector b = load(channel_b);
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      // Interleaved pairs lie within the two vectors, one after the other.
      E& x = neox ? a.elements[j] : (2 * j < Width ? a.elements[2 * j] : b.elements[2 * j - Width]);
      E& y = neox ? b.elements[j] : (2 * j + 1 < Width ? a.elements[2 * j + 1] : b.elements[2 * j + 1 - Width]);
      std::int32_t const pair = item * Width + j;
      std::int64_t const by =
          rotation.distance_of_pair(distance, segment.sequence, token, shared.tile.begin + row, pair);
      RotatedPair<E> const turned_pair = rotate_pair(rotation, by, pair, x, y);
      x = turned_pair.a;
      y = turned_pair.b;
    }
    store(channel_a, a);
    store(channel_b, b);
  }
}

template <class Layout, class Form>
__device__ void move_rows(DevicePlane<Layout, Form, CopyRows> const& plane, GatherShared& shared) {
  if (plane.move.transposed) {
    with_vector<8>(plane.element_bytes, [&]<class Element>() { transpose_rows<Element>(plane, shared); });
  } else {
    with_vector(plane.move.vector_bytes, [&]<class Vector>() { copy_rows<Vector>(plane, shared); });
  }
}

template <class Layout, class Form, class E>
__device__ void move_rows(DevicePlane<Layout, Form, RotateRows<E>> const& plane, GatherShared& shared) {
  if (plane.move.wide) {
    rotate_rows<16 / sizeof(E), E>(plane, shared);
  } else {
    rotate_rows<1, E>(plane, shared);
  }
}

/// What all planes of a compaction share.
template <class Table>
struct GatherTiles {
  DeviceCompaction<Table> compaction;
  CompactionArrays arrays;
  std::int32_t rows_per_tile;
};

template <class Table, class... Planes>
struct GatherParameters {
  GatherTiles<Table> tiles;
  PlaneList<Planes...> planes;

  /// Of kinds of layers, only those that there are. (Else all is copied in one go.)
  static __device__ void share(GatherParameters const& from,
                               GatherParameters& to) requires(is_layer_kinds<Planes> || ...) {
    share_words(from.tiles, to.tiles);
    PlaneList<Planes...>::share(from.planes, to.planes, blockIdx.y);
  }
};

/// Finds the tile's segment and its rows, by one warp, so that nothing is loaded twice.
template <class Table>
__device__ void find_tile(DeviceCompaction<Table> const& compaction, CompactionArrays const& arrays,
                          std::int64_t segments, std::int32_t rows_per_tile, std::int32_t tile, TileRows& place) {
  if (threadIdx.x >= warp_threads) return;
  std::int64_t const s = find_segment(arrays.tile_offsets, segments, tile);
  if (threadIdx.x != 0) return;
  Segment segment = make_segment(compaction.table, s, compaction.num_sequences, compaction.d_lengths);
  std::int64_t const layer_begin = layer_heads(compaction.table).first(segment.layer) * compaction.num_sequences;
  segment.first_row = arrays.row_offsets[s] - arrays.row_offsets[layer_begin];
  place.begin = std::int64_t{tile - arrays.tile_offsets[s]} * rows_per_tile;
  place.rows = static_cast<std::int32_t>(min(std::int64_t{rows_per_tile}, segment.kept - place.begin));
  place.segment = segment;
}

/// Grid: x tiles, y planes. Each block moves a tile of rows of one segment from the tokens that the policy keeps to the
/// rows of the destination.
template <class Table, class... Planes>
HEADAWARE_KERNEL void __launch_bounds__(block_threads, min_blocks)
    gather_kernel(GatherParameters<Table, Planes...> const __grid_constant__ parameters,
                  LayerTables<sizeof...(Planes)> const __grid_constant__ tables) {
  __shared__ SharedStorage<GatherParameters<Table, Planes...>> parameter_storage;
  __shared__ SharedStorage<GatherShared> storage;
  auto const& p = share_parameters(parameters, parameter_storage);
  GatherShared& shared = storage.get();
  __shared__ std::int32_t tiles;
  TileRows& place = shared.tile;
  std::int64_t const segments = p.tiles.compaction.num_segments();
  if (threadIdx.x == 0) tiles = p.tiles.arrays.tile_offsets[segments];
  __syncthreads();
  for (auto tile = static_cast<std::int32_t>(blockIdx.x); tile < tiles; tile += static_cast<std::int32_t>(gridDim.x)) {
    find_tile(p.tiles.compaction, p.tiles.arrays, segments, p.tiles.rows_per_tile, tile, place);
    if (threadIdx.x == 0) {
      place.capacity = tables.capacities[place.segment.layer];
      place.source = tables.planes[blockIdx.y].source[place.segment.layer];
      place.kept = tables.planes[blockIdx.y].kept[place.segment.layer];
    }
    __syncthreads();
    p.planes.visit(blockIdx.y, [&](auto const& planes) {
      auto const& plane = of_layer(planes, place.segment.layer);
      if (plane.channels == 0) return;  // a latent has no values of its own
      using Form = std::remove_cvref_t<decltype(plane.form)>;
      if constexpr (Form::needs_group) {
        if (threadIdx.x == 0) place_in_group(p.tiles.compaction.table, place.segment);
        __syncthreads();
      }
      Segment const& segment = place.segment;
      auto const is_valid = [&](std::int64_t row, std::int64_t token) {
        return token >= row && token < segment.length;
      };
      visit_policy(p.tiles.compaction.table, segment.layer, segment.sequence, segment.kv_head,
                   StageTokens<decltype(is_valid)>{place.begin, segment.length, place.rows, shared.tokens, is_valid});
      auto const rows = plane.form.rows(segment, place.capacity);
      for (auto r = static_cast<std::int32_t>(threadIdx.x); r < place.rows; r += block_threads) {
        shared.row_offsets[r] = rows.offset(place.begin + r, plane.channels);
      }
      __syncthreads();
      move_rows(plane, shared);
    });
    __syncthreads();
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
