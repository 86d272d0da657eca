#pragma once

// New tokens of heads with scored slots, with their scores: a block a head of a sequence. Its first warp finds which
// tokens stay; then all threads write the rows of scored slots, from the ring or from the new tokens, and after them
// the new tokens' own, which may overwrite the ring's. Pages of scored slots that were shared are copied before.

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
/// Blocks of a multiprocessor: without a number ptxas aims at more of them, and spills.
inline constexpr std::int32_t min_scored_blocks = 4;

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
  std::int64_t to;     ///< where it begins in the layer's rows
  std::int64_t from;   ///< likewise
  std::int32_t token;  ///< of the new ones; -1: a copy
};

/// The head of a sequence that a block appends to, and what it writes. In shared memory: one thread reads the tables.
/// @tparam Head  as `RollingScoredHead`
template <class Head>
struct ScoredPlace {
  Segment at;
  Head of_cache;
  HeadScores of;
  float const* scores;
  std::int64_t length;
  std::int64_t count;  ///< 0: nothing to do
  std::int64_t high_water;
  std::int64_t first;    ///< of the rows held after the append, the first new one
  std::int32_t moved;    ///< slots, from the first on, that lay in pages which others share
  std::int32_t entered;  ///< tokens, of which later ones may have replaced earlier ones
  std::int32_t listed;   ///< scored slots whose rows are to be written
  std::int32_t slots[scored_threads];
  std::int32_t tokens[scored_threads];
};

enum class RowKind : std::uint8_t {
  moved,    ///< of slots whose pages were shared
  entered,  ///< of listed slots
  own,      ///< of new tokens, in sinks and ring
};

/// Rows of a head that are written together.
template <class Head>
struct HeadRows {
  ScoredPlace<Head> const& place;
  RowKind kind;

  [[nodiscard]] __device__ std::int32_t count() const {
    if (kind == RowKind::moved) return place.moved;
    return kind == RowKind::entered ? place.listed
                                    : static_cast<std::int32_t>(place.of_cache.held.rows() - place.first);
  }
  /// @param channels  elements of a row
  [[nodiscard]] __device__ RowMove operator()(std::int32_t i, std::int64_t channels) const {
    Head const& head = place.of_cache;
    if (kind == RowKind::own) {
      std::int64_t const row = place.first + i;
      return {head.held.offset(row, channels), 0, static_cast<std::int32_t>(head.held.position(row) - place.length)};
    }
    if constexpr (Head::in_pages) {
      if (kind == RowKind::moved) return {head.slot_offset(i, channels), head.moved_offset(i, channels), -1};
    }
    std::int64_t const token = place.tokens[i];
    std::int64_t const to = head.slot_offset(place.slots[i], channels);
    if (token >= place.length) return {to, 0, static_cast<std::int32_t>(token - place.length)};
    return {to, head.token_offset(token, channels), -1};
  }
};

/// Finds the block's head. By one thread
template <class Parameters, class Head>
__device__ void find_place(Parameters const& p, ScoredPlace<Head>& place) {
  place.count = 0;
  place.entered = 0;
  place.moved = 0;
  if (std::int64_t{blockIdx.x} >= appended_segments(p)) return;
  LayerHeads const heads = p.cache.layer_heads();
  place.at =
      segment_at(heads.first(p.first_layer) * p.counters.num_sequences + blockIdx.x, p.counters.num_sequences, heads);
  place.length = p.counters.lengths[place.at.sequence];
  std::int64_t const count = p.counters.count(place.at.sequence);
  if (!p.counters.takes(place.length, count)) {
    if (p.counters.status != nullptr) *p.counters.status = 1;
    return;
  }
  place.count = count;
  place.high_water = p.counters.high_water[place.at.sequence];
  place.of_cache = p.cache.scored_head(place.at, place.length, count, place.high_water);
  place.first = place.of_cache.held.tokens.kept_before(place.length);
  RollingHead const& head = place.of_cache.head;
  if (head.scored == 0) return;
  if constexpr (Head::in_pages) {
    if (count > 0) place.moved = static_cast<std::int32_t>(place.of_cache.moved_slots(place.length));
  }
  place.of = p.inputs.records.of(head, heads.first(place.at.layer) + place.at.kv_head, place.at.sequence);
  place.scores = p.inputs.scores.of(place.at.layer - p.first_layer, place.at.sequence, place.at.kv_head);
}

/// @brief Appends to the block's head. By all threads
/// @param find   (new tokens' layer) finds what else the block needs, by one thread
/// @param write  (segment, rows) writes `HeadRows`, by all threads
template <class Parameters, class Head, class Find, class Write>
__device__ void append_to_head(Parameters const& p, ScoredPlace<Head>& place, Find const& find, Write const& write) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  if (thread == 0) {
    find_place(p, place);
    if (place.count != 0) find(place.at.layer - p.first_layer);
  }
  __syncthreads();
  if (place.count == 0) return;
  bool const scored = place.of_cache.head.scored != 0;
  ScoredAppend<WarpLanes> const append{{thread % warp_threads}, place.of_cache.head, place.of,
                                       p.cache.slack(),         place.length,        place.count,
                                       place.high_water,        place.scores};
  if (scored && thread < warp_threads) {
    ScoredEntries const entries = append.run();
    if (thread == 0) {
      place.entered = entries.count;
      place.listed = 1;
      place.slots[0] = entries.slot;
      if (entries.count == 1) place.tokens[0] = append.of.slots[entries.slot].token;
    }
  }
  if constexpr (Head::in_pages) {
    if (place.moved > 0) write(place.at, HeadRows<Head>{place, RowKind::moved});
  }
  __syncthreads();
  // Several slots are listed, as many at a time as there are threads; then come the new tokens' own rows.
  std::int32_t const entered = place.entered;
  auto const used = static_cast<std::int32_t>(append.head.scored_used(append.length + append.count));
  std::int32_t const rounds = entered > 1 ? (used + scored_threads - 1) / scored_threads : entered;
  for (std::int32_t round = 0; round <= rounds; ++round) {
    if (round < rounds && entered > 1) {
      std::int32_t const slot = round * scored_threads + thread;
      if (thread == 0) place.listed = 0;
      __syncthreads();
      if (slot < used && append.has_new(slot)) {
        std::int32_t const i = atomicAdd(&place.listed, 1);
        place.slots[i] = slot;
        place.tokens[i] = append.of.slots[slot].token;
      }
      __syncthreads();
    }
    write(place.at, HeadRows<Head>{place, round < rounds ? RowKind::entered : RowKind::own});
    __syncthreads();
  }
}

template <class Cache, class Keys, class Values>
struct ScoredAppendParameters : AppendParameters<Cache, Keys, Values> {
  ScoredInputs inputs;

  static __device__ void share(ScoredAppendParameters const& from, ScoredAppendParameters& to) {
    share_words(from, to);
  }
};

/// One tensor of a layer.
struct ScoredTensor {
  char const* news;
  char* kept;
};

/// Writes one tensor's rows.
template <class Rows, class Head>
__device__ void write_rows(AppendPlane<Rows> const& plane, std::int32_t layer, Segment const& at,
                           ScoredTensor const& tensor, HeadRows<Head> const& rows) {
  auto const& of = of_layer(plane.rows, layer);
  if (of.channels == 0) return;
  std::int32_t const count = rows.count();
  with_vector(plane.vector_bytes, [&]<class Vector>() {
    std::int32_t const per_vector = static_cast<std::int32_t>(sizeof(Vector)) / plane.element_bytes;
    std::int32_t const per_row = of.channels / per_vector;
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count * per_row; i += scored_threads) {
      RowMove const move = rows(i / per_row, of.channels);
      std::int32_t const vector = i % per_row;
      char const* from = tensor.kept + move.from * plane.element_bytes + vector * std::int64_t{sizeof(Vector)};
      if (move.token >= 0) {
        from = tensor.news +
               of.layout.offset(at.sequence, at.kv_head, move.token, vector * per_vector) * plane.element_bytes;
      }
      reinterpret_cast<Vector*>(tensor.kept + move.to * plane.element_bytes)[vector] =
          *reinterpret_cast<Vector const*>(from);
    }
  });
}

/// The place of an append's blocks.
template <class Parameters>
using ScoredPlaceOf = ScoredPlace<typename decltype(Parameters::cache)::ScoredHead>;

/// Grid: x heads of sequences of the appended layers, then copies on write.
template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(scored_threads, min_scored_blocks)
    scored_append_kernel(Parameters const __grid_constant__ parameters, AppendTables const __grid_constant__ tables) {
  __shared__ SharedStorage<Parameters> parameter_storage;
  __shared__ SharedStorage<ScoredPlaceOf<Parameters>> place;
  __shared__ ScoredTensor tensors[2];
  auto const& p = share_parameters(parameters, parameter_storage);
  sign_counters(p.counters);
  if (is_for_copy(p, [&](auto const& cache, PageCopy const& copy) { copy_page(p, tables, cache, copy); })) return;
  auto const find_tensors = [&](std::int32_t layer) {
    for (std::int32_t i = 0; i < 2; ++i) {
      tensors[i] = {static_cast<char const*>(tables.planes[i].source[layer]),
                    static_cast<char*>(tables.planes[i].kept[layer])};
    }
  };
  append_to_head(p, place.get(), find_tensors, [&](Segment const& at, auto const& rows) {
    std::int32_t const layer = at.layer - p.first_layer;
    write_rows(p.keys, layer, at, tensors[0], rows);
    write_rows(p.values, layer, at, tensors[1], rows);
  });
  advance_counters(p.counters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
