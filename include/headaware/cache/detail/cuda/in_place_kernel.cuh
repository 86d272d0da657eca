#pragma once

#include <headaware/cache/detail/cuda/gather_kernel.cuh>
#include <headaware/cache/detail/cuda/tile_moves.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/keep_list.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// One tensor compacted where it lies.
template <class Layout, class Move>
struct InPlacePlane {
  Layout layout;
  Move move;
  std::int32_t channels;
  std::int32_t element_bytes;
};

/// The tensors themselves, by plane and layer.
template <std::size_t NumPlanes>
struct InPlaceTensors {
  void* planes[NumPlanes][max_layers];
};

template <class Table, class... Planes>
struct InPlaceParameters {
  DeviceCompaction<Table> compaction;
  PlaneList<Planes...> planes;
  std::int64_t min_evicted;  ///< heads whose kept tokens move but that evict fewer stay as they are; 0: none

  /// As `GatherParameters::share`.
  static __device__ void share(InPlaceParameters const& from,
                               InPlaceParameters& to) requires(is_layer_kinds<Planes> || ...) {
    share_words(from.compaction, to.compaction);
    PlaneList<Planes...>::share(from.planes, to.planes, blockIdx.y);
    share_words(from.min_evicted, to.min_evicted);
  }
};

/// The rows of a segment whose tokens move.
struct MovedRows {
  std::int64_t first;  ///< rows before it hold their own token
  std::int64_t shift;  ///< all others come from so many rows further on; 0: not all from as many
};

struct FindMovedRows {
  std::int64_t kept;
  std::int64_t length;
  template <class P>
  HEADAWARE_HOST_DEVICE MovedRows operator()(P const& policy) const {
    MovedRows moved{first_moved_row(policy, kept, length), 0};
    // Shifts never get smaller, of rows that ascend; those of a keep-list may be wrong.
    if constexpr (!std::is_same_v<P, KeepList>) {
      if (moved.first < kept) {
        std::int64_t const least = source_token(policy, moved.first, length) - moved.first;
        std::int64_t const most = source_token(policy, kept - 1, length) - (kept - 1);
        if (least == most && least > 0 && kept + least <= length) moved.shift = least;
      }
    }
    return moved;
  }
};

/// The block's segment, and the tokens of the rows that move next.
struct InPlaceShared {
  Segment segment;
  std::int32_t layer;
  MovedRows moved;
  void* tensor;
  std::int32_t tokens[max_tile_rows];
};

/// Fills in the tokens of the rows from `first` on; -1 where a keep-list names none that may move there.
template <class Table>
__device__ void stage_in_place(Table const& table, InPlaceShared& shared, std::int64_t first, std::int32_t rows) {
  Segment const& segment = shared.segment;
  auto const is_valid = [&](std::int64_t row, std::int64_t token) { return token >= row && token < segment.length; };
  visit_policy(table, segment.layer, segment.sequence, segment.kv_head,
               StageTokens<decltype(is_valid)>{first, segment.length, rows, shared.tokens, is_valid});
  __syncthreads();
}

/// Moves a segment front to back by one block, some rows at a time: all are read before any is written,
/// and a later row's token never lies before the rows already written. `read(row, token, item)`
/// returns what `write(row, item, value)` stores; `items` of them make one row.
template <class Value, class Table, class Read, class Write>
__device__ void move_front_to_back(Table const& table, InPlaceShared& shared, std::int32_t items, Read const& read,
                                   Write const& write) {
  constexpr std::int32_t unroll = 4;
  std::int32_t const step = max(1, min(max_tile_rows, unroll * block_threads / items));
  for (std::int64_t first = shared.moved.first; first < shared.segment.kept; first += step) {
    auto const rows = static_cast<std::int32_t>(min(std::int64_t{step}, shared.segment.kept - first));
    stage_in_place(table, shared, first, rows);
    for (std::int32_t base = 0; base < rows * items; base += unroll * block_threads) {
      Value values[unroll];
      bool moves[unroll];
#pragma unroll
      for (std::int32_t u = 0; u < unroll; ++u) {
        std::int32_t const i = base + u * block_threads + static_cast<std::int32_t>(threadIdx.x);
        std::int32_t const token = i < rows * items ? shared.tokens[i / items] : -1;
        moves[u] = token >= 0;
        if (moves[u]) values[u] = read(first + i / items, token, i % items);
      }
      __syncthreads();
#pragma unroll
      for (std::int32_t u = 0; u < unroll; ++u) {
        std::int32_t const i = base + u * block_threads + static_cast<std::int32_t>(threadIdx.x);
        if (moves[u]) write(first + i / items, i % items, values[u]);
      }
      __syncthreads();
    }
  }
}

/// Rows of a part of a segment that several blocks share, at least.
inline constexpr std::int64_t min_part_rows = 64;

/// Moves a block's part of a segment all of whose moving rows come from `shift` rows further on. Row r comes from row
/// r + shift, that one from row r + 2 · shift, and so on: a chain, which is moved from its front, and has nothing to do
/// with the other `shift - 1` chains. So blocks share the chains, and within one every element goes through the same
/// thread: nobody waits for anybody.
template <class Value, class Read, class Write>
__device__ void move_chains(InPlaceShared const& shared, std::int32_t items, Read const& read, Write const& write) {
  constexpr std::int32_t unroll = 4;
  std::int64_t const kept = shared.segment.kept;
  std::int64_t const shift = shared.moved.shift;
  std::int64_t const all = min(shift, kept - shared.moved.first);
  std::int64_t const parts = gridDim.z;
  std::int64_t const per_part = max(min_part_rows, (all + parts - 1) / parts);
  std::int64_t const begin = blockIdx.z * per_part;
  std::int64_t const chains = min(per_part, all - begin);
  RowCursor const start(items, block_threads);
  auto const thread = static_cast<std::int64_t>(threadIdx.x);
  for (std::int64_t first = shared.moved.first + begin; first < kept && chains > 0; first += shift) {
    std::int64_t const total = min(chains, kept - first) * items;
    RowCursor from = start;
    RowCursor to = start;
    for (std::int64_t i = thread; i < total; i += unroll * block_threads) {
      Value values[unroll];
#pragma unroll
      for (std::int32_t u = 0; u < unroll; ++u) {
        std::int64_t const row = first + from.row;
        if (i + u * block_threads < total) values[u] = read(row, row + shift, from.column);
        from.advance();
      }
#pragma unroll
      for (std::int32_t u = 0; u < unroll; ++u) {
        if (i + u * block_threads < total) write(first + to.row, to.column, values[u]);
        to.advance();
      }
    }
  }
}

/// Moves the block's part of a segment: of one whose rows come from anywhere the first block's is all of it.
template <class Value, class Table, class Read, class Write>
__device__ void move_part(Table const& table, InPlaceShared& shared, std::int32_t items, Read const& read,
                          Write const& write) {
  if (shared.moved.shift > 0) {
    move_chains<Value>(shared, items, read, write);
  } else if (blockIdx.z == 0) {
    move_front_to_back<Value>(table, shared, items, read, write);
  }
}

template <class Vector, class Table, class Layout>
__device__ void move_vectors(Table const& table, InPlacePlane<Layout, CopyRows> const& plane, InPlaceShared& shared) {
  auto* const tensor = static_cast<char*>(global_pointer(shared.tensor));
  auto const layout = plane.layout;
  std::int32_t const element_bytes = plane.element_bytes;
  std::int32_t const per_vector = static_cast<std::int32_t>(sizeof(Vector)) / element_bytes;
  auto const at = [&](std::int64_t token, std::int32_t item) -> Vector& {
    std::int64_t const offset =
        layout.offset(shared.segment.sequence, shared.segment.kv_head, token, item * per_vector);
    return *reinterpret_cast<Vector*>(tensor + offset * element_bytes);
  };
  move_part<Vector>(
      table, shared, plane.channels / per_vector,
      [&](std::int64_t, std::int64_t token, std::int32_t item) { return at(token, item); },
      [&](std::int64_t row, std::int32_t item, Vector const& value) { at(row, item) = value; });
}

template <class Table, class Layout>
__device__ void move_segment(Table const& table, InPlacePlane<Layout, CopyRows> const& plane, InPlaceShared& shared) {
  with_vector(plane.move.vector_bytes, [&]<class Vector>() { move_vectors<Vector>(table, plane, shared); });
}

/// The same for keys that are rotated as they move: pair by pair, then the channels that only move.
template <class Table, class Layout, class E>
__device__ void move_segment(Table const& table, InPlacePlane<Layout, RotateRows<E>> const& plane,
                             InPlaceShared& shared) {
  KeyRotation const& rotation = plane.move.rotation;
  std::int32_t const pairs = rotation.rotary_dim() / 2;
  auto* const data = static_cast<E*>(global_pointer(shared.tensor));
  auto const at = [&](std::int64_t token, std::int32_t channel) -> E& {
    return data[plane.layout.offset(shared.segment.sequence, shared.segment.kv_head, token, channel)];
  };
  auto const channels = [&](std::int32_t item) {
    return item < pairs ? rotary_pair(rotation, item) : RotaryPair{pairs + item, pairs + item};
  };
  move_part<RotatedPair<E>>(
      table, shared, plane.channels - pairs,
      [&](std::int64_t row, std::int64_t token, std::int32_t item) {
        RotaryPair const pair = channels(item);
        RotatedPair<E> const value{at(token, pair.a), at(token, pair.b)};
        std::int64_t const distance = rotation.distance(shared.segment.sequence, token, row);
        if (item >= pairs) return value;
        std::int64_t const by = rotation.distance_of_pair(distance, shared.segment.sequence, token, row, item);
        return rotate_pair(rotation, by, item, value.a, value.b);
      },
      [&](std::int64_t row, std::int32_t item, RotatedPair<E> const& value) {
        RotaryPair const pair = channels(item);
        at(row, pair.a) = value.a;
        if (item < pairs) at(row, pair.b) = value.b;
      });
}

/// Whether a head is left as it is, since rotating its keys for so few evicted tokens is not worth the rounding.
__device__ inline bool evicts_too_few(Segment const& segment, std::int64_t moved, std::int64_t min_evicted) {
  std::int64_t const evicted = segment.length - segment.kept;
  return evicted > 0 && evicted < min_evicted && moved < segment.kept;
}

/// Reports whether all lengths are as planned and all heads evict enough, by one block.
template <class Table>
__device__ void report_lengths(DeviceCompaction<Table> const& compaction, std::int64_t min_evicted) {
  int bad = 0;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < compaction.num_sequences; i += block_threads) {
    std::int32_t const length = compaction.d_lengths[i];
    if (length < 0 || length > compaction.max_length) bad = 1;
  }
  bad = __syncthreads_or(bad);
  if (bad == 0 && min_evicted > 0) {
    std::int64_t const segments = compaction.num_segments();
    for (std::int64_t s = threadIdx.x; s < segments; s += block_threads) {
      Segment const segment = make_segment(compaction.table, s, compaction.num_sequences, compaction.d_lengths);
      std::int64_t const moved = visit_policy(compaction.table, segment.layer, segment.sequence, segment.kv_head,
                                              FindMovedRows{segment.kept, segment.length})
                                     .first;
      if (evicts_too_few(segment, moved, min_evicted)) bad = 1;
    }
    bad = __syncthreads_or(bad);
  }
  if (threadIdx.x == 0) *compaction.d_status = bad;
}

/// Grid: x segments, y planes, z parts of a segment.
template <class Table, class... Planes>
HEADAWARE_KERNEL void __launch_bounds__(block_threads, min_blocks)
    in_place_kernel(InPlaceParameters<Table, Planes...> const __grid_constant__ parameters,
                    InPlaceTensors<sizeof...(Planes)> const __grid_constant__ tensors) {
  __shared__ SharedStorage<InPlaceParameters<Table, Planes...>> parameter_storage;
  __shared__ SharedStorage<InPlaceShared> storage;
  auto const& p = share_parameters(parameters, parameter_storage);
  InPlaceShared& shared = storage.get();
  auto const s = static_cast<std::int64_t>(blockIdx.x);
  if (threadIdx.x == 0) {
    Segment segment = segment_at(s, p.compaction.num_sequences, layer_heads(p.compaction.table));
    std::int64_t const length = p.compaction.d_lengths[segment.sequence];
    bool const known = length >= 0 && length <= p.compaction.max_length;
    if (known) count_kept(p.compaction.table, length, segment);
    shared.segment = known ? segment : Segment{};
    shared.layer = segment.layer;
    shared.tensor = tensors.planes[blockIdx.y][shared.segment.layer];
    shared.moved = visit_policy(p.compaction.table, shared.segment.layer, shared.segment.sequence,
                                shared.segment.kv_head, FindMovedRows{shared.segment.kept, shared.segment.length});
    std::int64_t held = shared.segment.kept;
    if (evicts_too_few(shared.segment, shared.moved.first, p.min_evicted)) {
      held = length;
      shared.segment = Segment{};
      shared.moved = MovedRows{0, 0};
    }
    p.planes.visit(blockIdx.y, [&](auto const& planes) {
      auto const& plane = of_layer(planes, shared.layer);
      // With positions of their own keys may turn where they are.
      if constexpr (requires { plane.move.rotation; }) {
        if (plane.move.rotation.token_positions() != nullptr) shared.moved = MovedRows{0, 0};
      }
    });
    if (known && blockIdx.y == 0 && blockIdx.z == 0 && p.compaction.d_kept != nullptr) {
      p.compaction.d_kept[s] = static_cast<std::int32_t>(held);
    }
  }
  if (s == 0 && blockIdx.y == 0 && blockIdx.z == 0 && p.compaction.d_status != nullptr)
    report_lengths(p.compaction, p.min_evicted);
  __syncthreads();
  p.planes.visit(blockIdx.y, [&](auto const& planes) {
    auto const& plane = of_layer(planes, shared.layer);
    if (plane.channels != 0) move_segment(p.compaction.table, plane, shared);
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
