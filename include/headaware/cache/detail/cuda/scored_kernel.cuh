#pragma once

// New tokens of heads with scored slots, with their scores: a block a head of a sequence. Its first warp finds which
// tokens stay; then all threads write the rows of scored slots, from the ring or from the new tokens, and after them
// the new tokens' own, which may overwrite the ring's.

#include <headaware/cache/detail/cuda/append_kernel.cuh>
#include <headaware/cache/detail/scored_slots.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/layer_kinds.cuh>
#include <headaware/detail/cuda/vector_access.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int32_t scored_threads = 128;

/// A warp that looks at a head's slots together.
struct WarpLanes {
  static constexpr std::int32_t count = warp_threads;
  std::int32_t index;

  [[nodiscard]] __device__ ScoredScan join(ScoredScan scan) const {
    for (int step = warp_threads / 2; step > 0; step /= 2) {
      scan =
          ScoredScan::both(scan, {__shfl_xor_sync(~0U, static_cast<long long>(scan.least), step),
                                  __shfl_xor_sync(~0U, scan.least_slot, step), __shfl_xor_sync(~0U, scan.staying, step),
                                  __shfl_xor_sync(~0U, scan.free_slot, step)});
    }
    return scan;
  }
  [[nodiscard]] __device__ std::int32_t first_where(bool so) const {
    unsigned const lanes = __ballot_sync(~0U, so);
    return lanes == 0 ? count : __ffs(static_cast<int>(lanes)) - 1;
  }
  __device__ void sync() const { __syncwarp(); }
};

/// What appends with scores have more.
struct ScoredInputs {
  RollingScoresView records;
  TokenScores scores;
};

/// One row to write: that of a new token, or a copy of another row of the cache.
struct RowMove {
  std::int64_t to;     ///< row of the layer
  std::int64_t from;   ///< likewise
  std::int32_t token;  ///< of the new ones; -1: a copy
};

/// Slots whose rows are to be written.
struct ScoredList {
  std::int32_t entered;  ///< tokens, of which later ones may have replaced earlier ones
  std::int32_t count;
  std::int32_t slots[scored_threads];
};

/// Rows of a head that are written together: of listed slots, or of new tokens.
struct HeadRows {
  ScoredAppend<WarpLanes> const& append;
  ScoredList const& list;
  Segment const& at;
  RollingRows held;    ///< of all that sinks and ring hold after the append
  std::int64_t first;  ///< of these, the first new one
  bool of_slots;

  [[nodiscard]] __device__ std::int32_t count() const {
    return of_slots ? list.count : static_cast<std::int32_t>(held.rows() - first);
  }
  [[nodiscard]] __device__ RowMove operator()(std::int32_t i) const {
    if (!of_slots) {
      return {held.offset(first + i, 1), 0, static_cast<std::int32_t>(held.position(first + i) - append.length)};
    }
    RollingHead const& head = append.head;
    std::int64_t const token = append.of.slots[list.slots[i]].token;
    std::int64_t const to = head.row(at.sequence, head.ring_end() + list.slots[i]);
    if (token >= append.length) return {to, 0, static_cast<std::int32_t>(token - append.length)};
    return {to, head.row(at.sequence, head.slot_of(token)), -1};
  }
};

/// @brief Appends to the block's head. By all threads
/// @param write  (segment, rows) writes `HeadRows`, by all threads
template <class Parameters, class Write>
__device__ void append_to_head(Parameters const& p, ScoredList& list, Write const& write) {
  if (std::int64_t{blockIdx.x} >= appended_segments(p)) return;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  LayerHeads const heads = p.cache.layer_heads();
  Segment const at =
      segment_at(heads.first(p.first_layer) * p.counters.num_sequences + blockIdx.x, p.counters.num_sequences, heads);
  std::int64_t const length = p.counters.lengths[at.sequence];
  std::int64_t const count = p.counters.count(at.sequence);
  if (!p.counters.takes(length, count)) {
    if (thread == 0 && p.counters.status != nullptr) *p.counters.status = 1;
    return;
  }
  if (count == 0) return;
  ScoredAppend<WarpLanes> append{{thread % warp_threads},
                                 p.cache.slots.head(at),
                                 {},
                                 p.cache.slots.slack,
                                 length,
                                 count,
                                 p.counters.high_water[at.sequence],
                                 nullptr};
  RollingHead const& head = append.head;
  std::int32_t entered = 0;
  if (head.scored != 0) {
    append.of = p.inputs.records.of(head, heads.first(at.layer) + at.kv_head, at.sequence);
    append.scores = p.inputs.scores.of(at.layer - p.first_layer, at.sequence, at.kv_head);
    if (thread < warp_threads) {
      ScoredEntries const entries = append.run();
      if (thread == 0) {
        list.entered = entries.count;
        list.count = 1;
        list.slots[0] = entries.slot;
      }
    }
    __syncthreads();
    entered = list.entered;
  }
  RollingRows const held = p.cache.rows(at.layer, at.sequence, at.kv_head, length + count, 0);
  std::int64_t const first = held.tokens.kept_before(length);
  // Several slots are listed, as many at a time as there are threads; then come the new tokens' own rows.
  auto const used = entered > 1 ? static_cast<std::int32_t>(head.scored_used(length + count)) : 0;
  std::int32_t const rounds = entered > 1 ? (used + scored_threads - 1) / scored_threads : entered;
  for (std::int32_t round = 0; round <= rounds; ++round) {
    if (round < rounds && entered > 1) {
      std::int32_t const slot = round * scored_threads + thread;
      if (thread == 0) list.count = 0;
      __syncthreads();
      if (slot < used && append.has_new(slot)) list.slots[atomicAdd(&list.count, 1)] = slot;
      __syncthreads();
    }
    write(at, HeadRows{append, list, at, held, first, round < rounds});
    __syncthreads();
  }
}

template <class Keys, class Values>
struct ScoredAppendParameters : AppendParameters<RollingAppend, Keys, Values> {
  ScoredInputs inputs;
};

/// Writes one tensor's rows.
template <class Rows>
__device__ void write_rows(AppendPlane<Rows> const& plane, std::int32_t layer, Segment const& at, void const* news,
                           void* kept, HeadRows const& rows) {
  std::int32_t const count = rows.count();
  auto const& of = of_layer(plane.rows, layer);
  std::int64_t const row_bytes = std::int64_t{of.channels} * plane.element_bytes;
  with_vector(plane.vector_bytes, [&]<class Vector>() {
    std::int32_t const per_vector = static_cast<std::int32_t>(sizeof(Vector)) / plane.element_bytes;
    std::int32_t const per_row = of.channels / per_vector;
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count * per_row; i += scored_threads) {
      RowMove const move = rows(i / per_row);
      std::int32_t const vector = i % per_row;
      char const* from = static_cast<char const*>(kept) + move.from * row_bytes + vector * std::int64_t{sizeof(Vector)};
      if (move.token >= 0) {
        from = static_cast<char const*>(news) +
               of.layout.offset(at.sequence, at.kv_head, move.token, vector * per_vector) * plane.element_bytes;
      }
      reinterpret_cast<Vector*>(static_cast<char*>(kept) + move.to * row_bytes)[vector] =
          *reinterpret_cast<Vector const*>(from);
    }
  });
}

/// Grid: x heads of sequences of the appended layers.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(scored_threads)
    scored_append_kernel(Parameters const __grid_constant__ p, AppendTables const __grid_constant__ tables) {
  __shared__ ScoredList list;
  sign_counters(p.counters);
  append_to_head(p, list, [&](Segment const& at, HeadRows const& rows) {
    std::int32_t const layer = at.layer - p.first_layer;
    write_rows(p.keys, layer, at, tables.planes[0].source[layer], tables.planes[0].kept[layer], rows);
    if (of_layer(p.values.rows, layer).channels == 0) return;
    write_rows(p.values, layer, at, tables.planes[1].source[layer], tables.planes[1].kept[layer], rows);
  });
  advance_counters(p.counters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
