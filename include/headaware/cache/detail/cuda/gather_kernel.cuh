#pragma once

#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/cuda/sizes_kernel.cuh>
#include <headaware/cache/detail/cuda/tile_moves.cuh>
#include <headaware/cache/segment.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/layer_kinds.cuh>
#include <headaware/detail/cuda/segment_search.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/detail/global_pointer.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

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

template <class Layout, class Form>
__device__ void move_rows(DevicePlane<Layout, Form, CopyRows> const& plane, GatherShared& shared) {
  if (plane.move.transposed) {
    with_vector<8>(plane.element_bytes, [&]<class Element>() { transpose_rows<Element>(plane, shared); });
  } else if (plane.move.whole && find_run(plane, shared)) {
    copy_run_of_rows(plane, shared);
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
  std::int64_t const* offsets;  ///< [segments + 1] kept rows before each segment
  std::int64_t rows_per_tile;
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

/// Finds the segment of the block's next row, and how many of its rows the tile has, by one warp, so that nothing is
/// loaded twice; then passes on to the row after them, of the same tile or of the block's next. Of a segment that is
/// not as planned, no row moves.
template <class Table>
__device__ void find_rows(GatherTiles<Table> const& tiles, TileRows& place) {
  if (threadIdx.x >= warp_threads) return;
  DeviceCompaction<Table> const& compaction = tiles.compaction;
  std::int64_t const* const offsets = global_pointer(tiles.offsets);
  std::int64_t const row = place.next;
  std::int64_t const s = find_segment(offsets, compaction.num_segments(), row);
  __syncwarp();
  if (threadIdx.x != 0) return;
  LayerHeads const heads = layer_heads(compaction.table);
  Segment segment = segment_at(s, compaction.num_sequences, heads);
  std::int64_t const length = compaction.d_lengths[segment.sequence];
  bool const known = length >= 0 && length <= compaction.max_length;
  if (known) count_kept(compaction.table, length, segment);
  std::int64_t const before = offsets[s];
  std::int64_t const after = offsets[s + 1];
  segment.first_row = before - offsets[heads.first(segment.layer) * compaction.num_sequences];
  std::int64_t const tile_end = row - row % tiles.rows_per_tile + tiles.rows_per_tile;
  std::int64_t const end = min(after, tile_end);
  place.begin = row - before;
  place.rows = known && segment.kept == after - before ? static_cast<std::int32_t>(end - row) : 0;
  place.segment = segment;
  place.next = end < tile_end ? end : end + (gridDim.x - 1) * tiles.rows_per_tile;
}

/// Grid: x tiles of all rows, y planes. Each block moves the rows of its tile, segment by segment, from the tokens that
/// the policies keep to the rows of the destination.
template <class Table, class... Planes>
HEADAWARE_KERNEL void __launch_bounds__(block_threads, min_blocks)
    gather_kernel(GatherParameters<Table, Planes...> const __grid_constant__ parameters,
                  LayerTables<sizeof...(Planes)> const __grid_constant__ tables) {
  __shared__ SharedStorage<GatherParameters<Table, Planes...>> parameter_storage;
  __shared__ SharedStorage<GatherShared> storage;
  auto const& p = share_parameters(parameters, parameter_storage);
  GatherShared& shared = storage.get();
  TileRows& place = shared.tile;
  __shared__ std::int64_t total;
  if (threadIdx.x == 0) {
    total = p.tiles.offsets[p.tiles.compaction.num_segments()];
    place.next = blockIdx.x * p.tiles.rows_per_tile;
  }
  __syncthreads();
  bool more = place.next < total;
  while (more) {
    __syncthreads();
    find_rows(p.tiles, place);
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
      std::int64_t const first_row = std::is_same_v<Form, RaggedForm> ? segment.first_row : 0;
      if (first_row + segment.kept > plane.form.head_capacity(segment, place.capacity)) return;
      auto const is_valid = [&](std::int64_t r, std::int64_t token) { return token >= r && token < segment.length; };
      visit_policy(p.tiles.compaction.table, segment.layer, segment.sequence, segment.kv_head,
                   StageTokens<decltype(is_valid)>{place.begin, segment.length, place.rows, shared.tokens, is_valid});
      auto const rows = plane.form.rows(segment, place.capacity);
      for (auto r = static_cast<std::int32_t>(threadIdx.x); r < place.rows; r += block_threads) {
        shared.row_offsets[r] = rows.offset(place.begin + r, plane.channels);
      }
      __syncthreads();
      move_rows(plane, shared);
    });
    more = place.next < total;
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
