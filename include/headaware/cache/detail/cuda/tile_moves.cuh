#pragma once

// How a block moves the rows of a tile from one tensor to another: as bytes, transposed, or as keys that turn.

#include <headaware/cache/rotation.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/policy/concept.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Moves rows as bytes, in the widest access that source, destination and their addresses allow.
struct CopyRows {
  std::int32_t vector_bytes;
  bool transposed;  ///< the source has a channel's tokens side by side
  bool whole;       ///< it has a token's channels side by side, and accesses have 16 bytes: there may be runs
};

/// Moves keys of element `E`, rotated to the positions of their rows.
template <class E>
struct RotateRows {
  KeyRotation rotation;
  bool wide;  ///< 16-byte accesses; else element by element
};

inline constexpr std::int32_t max_tile_rows = 256;
inline constexpr std::int32_t transpose_side = 32;

/// The rows of a tile, all of one segment.
struct TileRows {
  Segment segment;
  LayerCapacity capacity;
  std::int64_t begin;
  std::int32_t rows;
  std::int64_t next;  ///< the row after them that the block moves, among those of all segments
  void const* source;
  void* kept;
};

struct GatherShared {
  TileRows tile;
  std::int64_t row_offsets[max_tile_rows];  ///< target of each row, in elements
  std::int32_t tokens[max_tile_rows];       ///< the token each row comes from; -1: a keep-list names none
  union {
    alignas(16) std::uint64_t transpose[transpose_side * (transpose_side + 1)];
    std::int64_t sources[max_tile_rows];  ///< of rows that are copied whole: their first element in the source
  };
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

/// Copies a tile `Vector` by `Vector`. Two loads are under way before the first store: with four the kernel, made for
/// sm_100, runs out of registers.
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
  constexpr std::int32_t unroll = 2;
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

/// Whether the rows of a tile lie side by side in the source and in the destination, as those of a window mostly do.
/// Sets `shared.sources`. Synchronises the block.
template <class Plane>
__device__ bool find_run(Plane const& plane, GatherShared& shared) {
  static_assert(max_tile_rows <= block_threads);
  auto const r = static_cast<std::int32_t>(threadIdx.x);
  bool const mine = r < shared.tile.rows;
  std::int32_t const token = mine ? shared.tokens[r] : 0;
  if (mine && token >= 0) {
    shared.sources[r] = plane.layout.offset(shared.tile.segment.sequence, shared.tile.segment.kv_head, token, 0);
  }
  __syncthreads();
  std::int64_t const before = std::int64_t{r} * plane.channels;
  bool const in_run =
      !mine || (token >= 0 && shared.tokens[0] >= 0 && shared.sources[r] == shared.sources[0] + before &&
                shared.row_offsets[r] == shared.row_offsets[0] + before);
  return __syncthreads_and(in_run ? 1 : 0) != 0;
}

/// Copies a run of bytes, 16 at a time. Four loads of a thread are under way before the first store: with eight the
/// kernel runs out of registers.
__device__ inline void copy_run(uint4 const* from, uint4* to, std::int32_t total) {
  constexpr std::int32_t unroll = 4;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < total; i += unroll * block_threads) {
    uint4 values[unroll];
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      if (i + u * block_threads < total) values[u] = from[i + u * block_threads];
    }
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      if (i + u * block_threads < total) to[i + u * block_threads] = values[u];
    }
  }
}

/// Copies a tile that is a run of rows on both sides, as one of bytes.
template <class Plane>
__device__ void copy_run_of_rows(Plane const& plane, GatherShared const& shared) {
  std::int32_t const element_bytes = plane.element_bytes;
  auto const* const source = static_cast<char const*>(global_pointer(shared.tile.source));
  auto* const kept = static_cast<char*>(global_pointer(shared.tile.kept));
  copy_run(reinterpret_cast<uint4 const*>(source + shared.sources[0] * element_bytes),
           reinterpret_cast<uint4*>(kept + shared.row_offsets[0] * element_bytes),
           shared.tile.rows * plane.channels * element_bytes / static_cast<std::int32_t>(sizeof(uint4)));
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

}  // namespace detail
HEADAWARE_NAMESPACE_END
