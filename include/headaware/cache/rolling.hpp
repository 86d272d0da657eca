#pragma once

/// @file
/// A cache kept up while decoding, on the CPU: every head's sinks and window in a fixed block of slots, into which new
/// tokens are written without moving an old byte.
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453 (sinks and a rolling window)

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief How `append` counts.
struct AppendOptions {
  std::int32_t first_layer = 0;  ///< the cache's layer that the first of the new tokens' layers is
  /// Whether the call counts the tokens. An engine that appends layer by layer, or scales beside their elements, says
  /// false until the step's last call, or calls `advance` in the end.
  bool advance = true;
};

/// @brief One sequence that continues another. Swapping two takes a free third place.
struct SequenceCopy {
  std::int32_t from = 0;
  std::int32_t to = 0;
};

namespace detail {

/// Where tokens of a rolling cache lie.
struct RollingPlacement {
  RollingSlotsView plan;
  HEADAWARE_HOST_DEVICE Survivors survivors(std::int64_t layer, std::int64_t kv_head, std::int64_t length, std::int64_t,
                                            std::int64_t count) const {
    RollingHead const& head = plan.head(layer, kv_head);
    std::int64_t const end = length + count;
    return detail::survivors(head.sink, head.ring == 0 ? end : end - head.ring, length, count);
  }
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head,
                                            std::int64_t token, std::int64_t channels) const {
    RollingHead const& head = plan.head(layer, kv_head);
    return head.row(sequence, head.slot_of(token)) * channels;
  }
};

/// Whether buffers were made for a plan.
template <class T>
void check_rolling(RollingSlotsView const& plan, Destination<T, RollingForm> const& cache, char const* where) {
  // Memory that a plan has given back may be the next one's.
  require(cache.form.heads == plan.heads && cache.form.plan_id == plan.id, "cache", "one made for this plan's view",
          "another plan's", where);
  require(cache.form.num_sequences == plan.num_sequences, "cache's sequences", plan.num_sequences,
          cache.form.num_sequences, where);
  require(cache.form.num_kv_heads == plan.num_kv_heads, "cache's KV heads", plan.num_kv_heads, cache.form.num_kv_heads,
          where);
  auto const layers = static_cast<std::size_t>(plan.num_layers);
  require(cache.layers.size() == layers && cache.capacities.size() == layers, "cache's layers", layers,
          cache.layers.size(), where);
}

/// Buffers of layers that hold something must be there, and none may meet another: rows would overwrite each other.
template <class T>
void check_rolling_buffers(Destination<T, RollingForm> const& cache, std::size_t first, std::size_t count,
                           char const* where) {
  std::vector<Interval> buffers;
  for (std::size_t layer = first; layer < first + count; ++layer) {
    std::int64_t const rows = cache.capacities[layer].rows;
    auto const add = [&](T const* data, std::int64_t channels, char const* what) {
      bool const aligned = reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0;
      if (!aligned || (rows > 0 && data == nullptr)) {
        check_pointer(data, rows > 0, what, std::string(where) + ", layer " + std::to_string(layer));
      }
      buffers.push_back(interval(data, rows * channels));
    };
    add(cache.layers[layer].keys, cache.head_dim, "cache's keys");
    add(cache.layers[layer].values, cache.value_dim, "cache's values");
  }
  if (overlap_among(std::move(buffers))) {
    require(false, "buffers", "keys and values of all layers apart from each other", "overlapping buffers", where);
  }
}

template <class T, class U, class Source>
AppendShape check_rolling_append(RollingSlotsView const& plan, std::vector<LayerKv<U>> const& tokens,
                                 Source const& source, std::int64_t max_count, Destination<T, RollingForm> const& cache,
                                 AppendOptions const& options) {
  check_rolling(plan, cache, "append");
  AppendShape const shape{options.first_layer, plan.num_layers, plan.num_sequences, plan.num_kv_heads,
                          max_count,           cache.head_dim,  cache.value_dim,    plan.max_slots > 0};
  std::vector<std::int64_t> keys;
  std::vector<std::int64_t> values;
  for (LayerCapacity const& capacity : cache.capacities) {
    keys.push_back(capacity.rows * cache.head_dim);
    values.push_back(capacity.rows * cache.value_dim);
  }
  auto const first = static_cast<std::size_t>(std::clamp(options.first_layer, 0, plan.num_layers));
  check_append(shape, tokens, source, cache.layers.data() + first, {keys.data() + first, values.data() + first});
  if (shape.max_count > 0) check_rolling_buffers(cache, first, tokens.size(), "append");
  return shape;
}

/// No place may be given twice, or be both an end and a beginning.
template <class T>
void check_copies(RollingSlotsView const& plan, std::span<SequenceCopy const> copies,
                  Destination<T, RollingForm> const& cache) {
  constexpr auto where = "copy_sequences";
  check_rolling(plan, cache, where);
  if (!copies.empty()) check_rolling_buffers(cache, 0, cache.layers.size(), where);
  std::int32_t const num_sequences = plan.num_sequences;
  std::vector<char> role(static_cast<std::size_t>(num_sequences), 0);
  for (SequenceCopy const& copy : copies) {
    require_index(copy.from, num_sequences, "sequence", where);
    require_index(copy.to, num_sequences, "sequence", where);
    role[static_cast<std::size_t>(copy.from)] = 1;
  }
  for (SequenceCopy const& copy : copies) {
    char& to = role[static_cast<std::size_t>(copy.to)];
    if (to != 0) {
      require(false, "sequence to copy to", "one that is neither copied from nor copied to twice", copy.to, where);
    }
    to = 2;
  }
}

}  // namespace detail

/// @brief Appends new tokens of every sequence, on the CPU.
///
/// Only tokens that stay are written: of an append longer than a window and its slack, the last ones (and sinks).
/// @param plan     `RollingSlots::view()`
/// @param state    lengths of the sequences; counted up unless the options say otherwise
/// @param tokens   keys and values of neighbouring layers, host pointers
/// @param source   how each layer's new keys and values lie: any `KvLayout`, its token 0 the first new one
/// @param counts   [num_sequences] new tokens of each sequence; 0 where there are none
/// @param cache    made by `rolling`
/// @throws ArgumentError before anything is written, on shapes that disagree, missing or misaligned pointers, sequences
///         beyond the plan's limit, host tables that have no places for the new tokens, new tokens that overlap the
///         cache and buffers of the cache that overlap each other
/// @par Cost  O(bytes that stay), whatever the lengths: no old byte is read or written. All cores with OpenMP where it
///            is more than 1 MiB
template <class U, class Source, class T>
void append(RollingSlotsView const& plan, RollingState& state, std::vector<LayerKv<U>> const& tokens,
            Source const& source, std::span<std::int32_t const> counts, Destination<T, RollingForm> const& cache,
            AppendOptions const& options = {}) {
  state.check(plan, counts, "append");
  std::int64_t const most = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  auto const shape = detail::check_rolling_append(plan, tokens, source, most, cache, options);
  detail::check_source_tables(source, plan.num_sequences, detail::tokens_in(counts), "append, keys", "append, values");
  auto const of = [](std::span<std::int32_t const> values) {
    return [values](std::int32_t sequence) { return std::int64_t{values[static_cast<std::size_t>(sequence)]}; };
  };
  detail::append_rows(shape, detail::RollingPlacement{plan}, tokens, source,
                      cache.layers.data() + static_cast<std::size_t>(options.first_layer), of(state.lengths()),
                      of(state.lengths()), of(counts));
  if (options.advance) state.advance(plan, counts);
}

/// @brief Makes sequences continue others (a fork, or beams that survive), on the CPU: rows and counters.
/// @param copies  no sequence may be copied to twice, or be copied from and to
/// @throws ArgumentError before anything is written, on sequences that are not, copies that meet, and a cache of
///         another plan or with missing, misaligned or overlapping buffers
/// @par Cost  The rows that hold something
template <class T>
void copy_sequences(RollingSlotsView const& plan, RollingState& state, std::span<SequenceCopy const> copies,
                    Destination<T, RollingForm> const& cache) {
  detail::check_copies(plan, copies, cache);
  require(state.num_sequences() == plan.num_sequences, "state's sequences", plan.num_sequences, state.num_sequences(),
          "copy_sequences");
  for (SequenceCopy const& copy : copies) {
    for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
      LayerKv<T> const& buffers = cache.layers[static_cast<std::size_t>(layer)];
      for (std::int32_t kv_head = 0; kv_head < plan.num_kv_heads; ++kv_head) {
        RollingHead const& head = plan.head(layer, kv_head);
        SlotRuns const runs = head.intact(state.length(copy.from), state.written(copy.from));
        auto const move = [&](std::int64_t first, std::int64_t count) {
          auto const rows = [&](T* tensor, std::int64_t channels) {
            if (count <= 0) return;
            std::memcpy(tensor + head.row(copy.to, first) * channels, tensor + head.row(copy.from, first) * channels,
                        static_cast<std::size_t>(count * channels) * sizeof(T));
          };
          rows(buffers.keys, cache.head_dim);
          rows(buffers.values, cache.value_dim);
        };
        move(0, runs.sinks);
        move(runs.first, runs.count);
        move(runs.wrapped_first, runs.wrapped);
      }
    }
    state.copy(copy.from, copy.to);
  }
}

/// @brief Fills in which token every slot of a head shows to attention.
/// @param positions  [head.slots()]: the token; -1 for slots to leave out
/// @throws ArgumentError on an array of another size
/// @par Cost  O(head.slots()), a division a slot: for masks over all slots, as an engine of one's own may want them.
///            Where rows are all that is wanted, `RollingHead::visible` costs O(1)
inline void slot_positions(RollingHead const& head, std::int64_t length, std::span<std::int32_t> positions) {
  require(static_cast<std::int64_t>(positions.size()) == head.slots(), "positions", head.slots(), positions.size(),
          "slot_positions");
  for (std::int64_t slot = 0; slot < head.slots(); ++slot) {
    positions[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(head.position_of(slot, length));
  }
}

HEADAWARE_NAMESPACE_END
