#pragma once

/// @file
/// Rolling caches on the CPU: every head's sinks and window in a fixed block of slots, into which new tokens are
/// written without moving an old byte.
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453 (sinks and a rolling window)

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Layers and counting of an `append`.
struct AppendOptions {
  std::int32_t first_layer = 0;  ///< cache layer of the first of the new tokens' layers
  /// Counts the new tokens. Set to false in all but the last call of a step that appends layer by layer, or scales
  /// after their elements; or call `advance` at the end.
  bool advance = true;
};

/// @brief One sequence that continues another. Swapping two takes a free third place.
struct SequenceCopy {
  std::int32_t from = 0;
  std::int32_t to = 0;
};

namespace detail {

/// A head of a sequence during an append, with the rows that its scored slots take.
struct RollingScoredHead {
  static constexpr bool in_pages = false;  ///< which sequences may share, and part from
  RollingHead head;
  RollingRows held;  ///< all that sinks and ring hold after the append

  /// Where a scored slot's row begins.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t slot_offset(std::int64_t slot, std::int64_t channels) const {
    return held.slot_offset(head.ring_end() + slot, channels);
  }
  /// Where the row of a token begins that was in the ring before.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t token_offset(std::int64_t token, std::int64_t channels) const {
    return held.slot_offset(head.slot_of(token), channels);
  }
  /// Scored slots whose rows have moved to other pages, and where such a row was.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t moved_slots(std::int64_t) const { return 0; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t moved_offset(std::int64_t slot, std::int64_t channels) const {
    return slot_offset(slot, channels);
  }
};

/// A rolling cache as appends write it.
struct RollingAppend {
  using ScoredHead = RollingScoredHead;
  RollingSlotsView slots;

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t slack() const { return slots.slack; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t max_scored() const { return slots.max_scored; }
  /// A head of a sequence of `length` tokens that `count` are appended to.
  HEADAWARE_HOST_DEVICE ScoredHead scored_head(Segment const& segment, std::int64_t length, std::int64_t count,
                                               std::int64_t) const {
    RollingHead const& head = slots.head(segment);
    return {head, RollingRows::of(head, segment.sequence, head.held(length + count, length + count))};
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE LayerHeads layer_heads() const { return slots.layer_heads(); }
  /// Rows of all that a head's slots hold of a sequence of `length` tokens: sinks and the whole ring.
  HEADAWARE_HOST_DEVICE RollingRows rows(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head,
                                         std::int64_t length, std::int64_t) const {
    RollingHead const& head = slots.head(layer, kv_head);
    return RollingRows::of(head, sequence, head.held(length, length));
  }
};

/// Throws unless buffers were made for these slots.
template <class T>
void check_rolling(RollingSlotsView const& slots, Destination<T, RollingSlotsView> const& cache, char const* where) {
  // Later slots may have the same address.
  require(cache.form.heads == slots.heads && cache.form.id == slots.id, "cache", "one made for these slots",
          "one of other slots", where);
  require(cache.form.num_sequences == slots.num_sequences, "cache's sequences", slots.num_sequences,
          cache.form.num_sequences, where);
  require(cache.form.num_heads == slots.num_heads, "cache's KV heads", slots.num_heads, cache.form.num_heads, where);
  auto const layers = static_cast<std::size_t>(slots.num_layers);
  require(cache.layers.size() == layers && cache.capacities.size() == layers, "cache's layers", layers,
          cache.layers.size(), where);
}

/// Checks that layers which hold something have buffers, and that no two overlap.
template <class T>
void check_rolling_buffers(Destination<T, RollingSlotsView> const& cache, std::size_t first, std::size_t count,
                           char const* where) {
  auto& buffers = thread_memory().destinations;
  for (std::size_t layer = first; layer < first + count; ++layer) {
    std::int64_t const rows = cache.capacities[layer].rows;
    RowChannels const& channels = cache.channels.of(layer);
    check_pointer(cache.layers[layer].keys, rows > 0, "cache's keys", where, layer);
    buffers.push_back(interval(cache.layers[layer].keys, rows * channels.head_dim));
    if (channels.value_dim == 0) continue;
    check_pointer(cache.layers[layer].values, rows > 0, "cache's values", where, layer);
    buffers.push_back(interval(cache.layers[layer].values, rows * channels.value_dim));
  }
  require(!sort_and_overlap(buffers), "buffers", "keys and values of all layers apart from each other",
          "overlapping buffers", where);
}

/// Buffers by layer of new tokens. @pre  first_layer within the cache
template <class T>
auto rolling_buffers(Destination<T, RollingSlotsView> const& cache, std::int32_t first_layer) {
  return [&cache, first = static_cast<std::size_t>(first_layer)](std::size_t i) {
    LayerCapacity const& capacity = cache.capacities[first + i];
    RowChannels const& channels = cache.channels.of(first + i);
    return CacheBuffers<T>{cache.layers[first + i], capacity.rows * channels.head_dim,
                           capacity.rows * channels.value_dim, channels, capacity.num_kv_heads};
  };
}

template <class T, class U, class Source>
AppendShape check_rolling_append(RollingSlotsView const& slots, std::span<LayerKv<U> const> tokens,
                                 Source const& source, std::int64_t max_count,
                                 Destination<T, RollingSlotsView> const& cache, AppendOptions const& options) {
  check_rolling(slots, cache, "append");
  AppendShape const shape{.first_layer = options.first_layer,
                          .num_sequences = slots.num_sequences,
                          .heads = slots.layer_heads(),
                          .max_count = max_count,
                          .writes = slots.max_slots > 0};
  check_append(shape, tokens, source, rolling_buffers(cache, options.first_layer));
  if (shape.max_count > 0) {
    check_rolling_buffers(cache, static_cast<std::size_t>(options.first_layer), tokens.size(), "append");
  }
  return shape;
}

/// Checks an append on the CPU, its tables too, but for counts.
template <class T, class U, class Source>
AppendShape check_host_append(RollingSlotsView const& slots, std::span<LayerKv<U> const> tokens, Source const& source,
                              std::span<std::int32_t const> counts, Destination<T, RollingSlotsView> const& cache,
                              AppendOptions const& options) {
  AppendShape const shape = check_rolling_append(slots, tokens, source, most_of(counts), cache, options);
  check_append_tables(source, shape, rolling_buffers(cache, options.first_layer), tokens.size(), counts);
  return shape;
}

/// Writes new tokens, which have been checked.
template <class T, class U, class Source>
void append_checked(AppendShape const& shape, RollingSlotsView const& slots, RollingState const& state,
                    std::span<LayerKv<U> const> tokens, Source const& source, std::span<std::int32_t const> counts,
                    Destination<T, RollingSlotsView> const& cache, AppendOptions const& options) {
  append_rows(shape, RollingAppend{slots}, tokens, source, rolling_buffers(cache, options.first_layer), state.lengths(),
              state.lengths(), counts);
}

/// Throws if a sequence is copied to twice, or copied from and to.
inline void check_copies(std::int32_t num_sequences, std::span<SequenceCopy const> copies) {
  constexpr auto where = "copy_sequences";
  std::vector<char> role(static_cast<std::size_t>(num_sequences), 0);
  for (SequenceCopy const& copy : copies) {
    require_index(copy.from, num_sequences, "sequence", where);
    require_index(copy.to, num_sequences, "sequence", where);
    role[static_cast<std::size_t>(copy.from)] = 1;
  }
  for (SequenceCopy const& copy : copies) {
    char& to = role[static_cast<std::size_t>(copy.to)];
    require(to == 0, "sequence to copy to", "one that is neither copied from nor copied to twice", copy.to, where);
    to = 2;
  }
}
template <class T>
void check_copies(RollingSlotsView const& slots, std::span<SequenceCopy const> copies,
                  Destination<T, RollingSlotsView> const& cache) {
  constexpr auto where = "copy_sequences";
  check_rolling(slots, cache, where);
  if (!copies.empty()) check_rolling_buffers(cache, 0, cache.layers.size(), where);
  check_copies(slots.num_sequences, copies);
}

/// @param scored  (head, index of the head in the model, copy, move) copies what scored slots hold; `move` takes the
///                first slot and their number
template <class T, class Scored>
void copy_rolling_sequences(RollingSlotsView const& slots, RollingState& state, std::span<SequenceCopy const> copies,
                            Destination<T, RollingSlotsView> const& cache, Scored const& scored) {
  check_copies(slots, copies, cache);
  require(state.num_sequences() == slots.num_sequences, "state's sequences", slots.num_sequences, state.num_sequences(),
          "copy_sequences");
  for (SequenceCopy const& copy : copies) {
    for (std::int32_t layer = 0; layer < slots.num_layers; ++layer) {
      LayerKv<T> const& buffers = cache.layers[static_cast<std::size_t>(layer)];
      RowChannels const& channels = cache.channels.of(static_cast<std::size_t>(layer));
      for (std::int32_t kv_head = 0; kv_head < slots.layer_heads().count(layer); ++kv_head) {
        RollingHead const& head = slots.head(layer, kv_head);
        SlotRuns const runs = head.runs(head.held(state.length(copy.from), state.high_water(copy.from)));
        auto const move = [&](std::int64_t first, std::int64_t count) {
          auto const rows = [&](T* tensor, std::int64_t width) {
            if (count <= 0 || width == 0) return;
            std::memcpy(tensor + head.row(copy.to, first) * width, tensor + head.row(copy.from, first) * width,
                        static_cast<std::size_t>(count * width) * sizeof(T));
          };
          rows(buffers.keys, channels.head_dim);
          rows(buffers.values, channels.value_dim);
        };
        move(0, runs.sinks);
        move(runs.first, runs.count);
        move(runs.wrapped_first, runs.wrapped);
        scored(head, slots.layer_heads().first(layer) + kv_head, copy, move);
      }
    }
    state.copy(copy.from, copy.to);
  }
}

/// Of heads without scored slots.
struct NoneScored {
  template <class Move>
  void operator()(RollingHead const&, std::int64_t, SequenceCopy const&, Move const&) const {}
};

}  // namespace detail

/// @brief Appends new tokens of every sequence, on the CPU.
///
/// Only tokens that stay are written: of an append longer than a window and its slack, the last ones (and sinks).
/// @param slots    `RollingSlots::view()`
/// @param state    lengths of the sequences; counted up unless the options say otherwise
/// @param tokens   keys and values of neighbouring layers, host pointers
/// @param source   how each layer's new keys and values lie: any `KvLayout`, its token 0 the first new one
/// @param counts   [num_sequences] new tokens of each sequence; 0 where there are none
/// @param cache    made by `rolling`
/// @throws ArgumentError before anything is written, on shapes that disagree, missing or misaligned pointers, sequences
///         beyond the cache's limit, host tables that have no places for the new tokens, new tokens that overlap the
///         cache and buffers of the cache that overlap each other
/// @par Cost  O(bytes that stay), whatever the lengths: no old byte is read or written. All cores with OpenMP where it
///            is more than 1 MiB
template <LayerRange Tokens, class Source, class T>
void append(RollingSlotsView const& slots, RollingState& state, Tokens const& tokens, Source const& source,
            std::span<std::int32_t const> counts, Destination<T, RollingSlotsView> const& cache,
            AppendOptions const& options = {}) {
  detail::refuse_scored(slots, "append");
  state.check(slots, counts, "append");
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(slots, layers, source, counts, cache, options);
  detail::append_checked(shape, slots, state, layers, source, counts, cache, options);
  if (options.advance) state.advance(slots, counts);
}

/// @brief Makes sequences continue others (a fork, or beams that survive), on the CPU: rows and counters.
/// @param copies  no sequence may be copied to twice, or be copied from and to
/// @throws ArgumentError before anything is written, on sequences that are not, copies that meet, and a cache of
///         other slots, or with missing, misaligned or overlapping buffers
/// @par Cost  The rows that hold something
template <class T>
void copy_sequences(RollingSlotsView const& slots, RollingState& state, std::span<SequenceCopy const> copies,
                    Destination<T, RollingSlotsView> const& cache) {
  detail::refuse_scored(slots, "copy_sequences");
  detail::copy_rolling_sequences(slots, state, copies, cache, detail::NoneScored{});
}

/// @brief Writes the token that every slot of a head shows to attention.
/// @param positions  [head.slots()]: the token; -1 for slots to leave out
/// @throws ArgumentError on an array of another size
/// @par Cost  O(head.slots()), one division per slot: for masks over all slots. For the rows alone, `RollingHead::runs`
/// costs O(1)
inline void slot_positions(RollingHead const& head, std::int64_t length, std::span<std::int32_t> positions) {
  require(static_cast<std::int64_t>(positions.size()) == head.slots(), "positions", head.slots(), positions.size(),
          "slot_positions");
  for (std::int64_t slot = 0; slot < head.slots(); ++slot) {
    positions[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(head.position_of(slot, length));
  }
}

HEADAWARE_NAMESPACE_END
