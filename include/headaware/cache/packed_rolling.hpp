#pragma once

/// @file
/// A rolling cache of encoded rows, on the CPU: prompts are compressed into it, new tokens appended and encoded on the
/// way, sequences copied.

#include <headaware/cache/detail/append_encoded.hpp>
#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Plans a rolling cache of encoded rows. Attention reads it by `RollingView`.
/// @param view      `slots.view()`
/// @param formats   of the same layers and KV heads
/// @param channels  of the rows before they are encoded: head_dim where all layers are alike, or a `ModelShape`
/// @return the cache without buffers: `total_bytes()` says how many it needs, whatever the lengths
/// @throws ArgumentError on other layers or heads, or channels that are not positive
template <class Registry>
[[nodiscard]] PackedDestination<RollingSlotsView, Registry> packed_rolling(RollingSlots const& slots,
                                                                           RollingSlotsView const& view,
                                                                           BasicFormatTable<Registry> const& formats,
                                                                           LayerChannels const& channels,
                                                                           std::int64_t value_dim = 0) {
  auto const capacity = [&](std::int32_t layer) { return LayerCapacity{.rows = slots.rows_total(layer)}; };
  auto const plain =
      detail::without_buffers<RowUnit>("packed_rolling", view, slots.heads(), channels, value_dim, capacity);
  return detail::packed_destination(slots.heads(), plain, formats, "packed_rolling", [&](std::int32_t layer) {
    std::vector<detail::RowBlock> blocks;
    for (std::int32_t sequence = 0; sequence < slots.num_sequences(); ++sequence) {
      for (std::int32_t head = 0; head < slots.heads().count(layer); ++head) {
        RollingHead const& of = slots.head(layer, head);
        blocks.push_back({of.row(sequence, 0), of.slots()});
      }
    }
    return blocks;
  });
}

namespace detail {

/// A packed rolling cache's buffers as checks of an append take them: one per layer, counted in the new tokens' type.
template <class T, class Registry>
auto packed_buffers(PackedDestination<RollingSlotsView, Registry> const& cache, std::int32_t first_layer) {
  return [&cache, first = static_cast<std::size_t>(first_layer)](std::size_t i) {
    constexpr auto per_unit = static_cast<std::int64_t>(sizeof(RowUnit) / sizeof(T));
    auto* const rows = reinterpret_cast<T*>(cache.layers[first + i]);
    std::int64_t const units = cache.first_units[first + i + 1] - cache.first_units[first + i];
    return CacheBuffers<T>{
        {rows, rows}, units * per_unit, 0, cache.channels.of(first + i), cache.capacities[first + i].num_kv_heads};
  };
}

template <class Registry>
void check_packed_rolling(RollingSlotsView const& slots, PackedDestination<RollingSlotsView, Registry> const& cache,
                          char const* where) {
  require(cache.form.heads == slots.heads && cache.form.id == slots.id, "cache", "one made for these slots",
          "one of other slots", where);
  auto const layers = static_cast<std::size_t>(slots.num_layers);
  require(cache.layers.size() == layers, "cache's layers", layers, cache.layers.size(), where);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    bool const some = cache.first_units[layer + 1] > cache.first_units[layer];
    check_pointer(cache.layers[layer], some, "cache's rows", where, layer);
  }
}

/// Checks an append, but for lengths and tables, which a host may not know.
template <class U, class Source, class Registry>
AppendShape check_packed_append(RollingSlotsView const& slots, std::span<LayerKv<U> const> tokens, Source const& source,
                                std::int64_t max_count, PackedDestination<RollingSlotsView, Registry> const& cache,
                                AppendOptions const& options) {
  check_packed_rolling(slots, cache, "append");
  AppendShape const shape{.first_layer = options.first_layer,
                          .num_sequences = slots.num_sequences,
                          .heads = slots.layer_heads(),
                          .max_count = max_count,
                          .writes = slots.max_slots > 0};
  check_append(shape, tokens, source, packed_buffers<std::remove_const_t<U>>(cache, options.first_layer));
  return shape;
}

/// Checks an append on the CPU, its tables too, but for counts.
template <class U, class Source, class Registry>
AppendShape check_host_append(RollingSlotsView const& slots, std::span<LayerKv<U> const> tokens, Source const& source,
                              std::span<std::int32_t const> counts,
                              PackedDestination<RollingSlotsView, Registry> const& cache,
                              AppendOptions const& options) {
  using T = std::remove_const_t<U>;
  static_assert(holds_floats<T>, "headaware: rows to encode hold float, float16 or bfloat16");
  AppendShape const shape = check_packed_append(slots, tokens, source, most_of(counts), cache, options);
  check_append_tables(source, shape, packed_buffers<T>(cache, options.first_layer), tokens.size(), counts);
  return shape;
}

/// Encodes new tokens, which have been checked.
template <class U, class Source, class Registry>
void append_checked(AppendShape const& shape, RollingSlotsView const& slots, RollingState const& state,
                    std::span<LayerKv<U> const> tokens, Source const& source, std::span<std::int32_t const> counts,
                    PackedDestination<RollingSlotsView, Registry> const& cache, AppendOptions const&) {
  append_encoded(
      shape, RollingAppend{slots}, tokens, source, cache.channels,
      std::span<PackedSegment<Registry> const>(cache.segments), [&](std::size_t layer) { return cache.layers[layer]; },
      state.lengths(), state.high_water(), counts);
}

}  // namespace detail

/// @brief Appends new tokens of every sequence on the CPU, each encoded in its head's formats: the rows that
/// compressing the same tokens gives.
/// @param slots, state, tokens, source, counts, options  as the `append` into plain rows; float, float16 or bfloat16
/// @param cache  made by `packed_rolling` for these slots, with buffers
/// @throws ArgumentError before anything is written, as that `append`
/// @par Cost  O(bytes that stay); no old byte is read or written
template <LayerRange Tokens, class Source, class Registry>
void append(RollingSlotsView const& slots, RollingState& state, Tokens const& tokens, Source const& source,
            std::span<std::int32_t const> counts, PackedDestination<RollingSlotsView, Registry> const& cache,
            AppendOptions const& options = {}) {
  detail::refuse_scored(slots, "append");
  state.check(slots, counts, "append");
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(slots, layers, source, counts, cache, options);
  detail::append_checked(shape, slots, state, layers, source, counts, cache, options);
  if (options.advance) state.advance(slots, counts);
}

namespace detail {

/// The row of a slot. @param of_layer  `PackedDestination::layer`
template <class Registry>
RowUnit* packed_slot(RowUnit* rows, std::span<PackedSegment<Registry> const> of_layer, std::int64_t heads,
                     RollingHead const& head, std::int64_t sequence, std::int64_t kv_head, std::int64_t slot) {
  PackedSegment<Registry> const& packed = of_layer[static_cast<std::size_t>(sequence * heads + kv_head)];
  return rows + head.row(sequence, slot) * packed.units + packed.shift;
}

/// @param scored  as `copy_rolling_sequences`
template <class Registry, class Scored>
void copy_packed_sequences(RollingSlotsView const& slots, RollingState& state, std::span<SequenceCopy const> copies,
                           PackedDestination<RollingSlotsView, Registry> const& cache, Scored const& scored) {
  constexpr auto where = "copy_sequences";
  check_packed_rolling(slots, cache, where);
  check_copies(slots.num_sequences, copies);
  require(state.num_sequences() == slots.num_sequences, "state's sequences", slots.num_sequences, state.num_sequences(),
          where);
  for (SequenceCopy const& copy : copies) {
    for (std::int32_t layer = 0; layer < slots.num_layers; ++layer) {
      std::int32_t const heads = slots.layer_heads().count(layer);
      auto const of_layer = cache.layer(layer);
      RowUnit* const rows = cache.layers[static_cast<std::size_t>(layer)];
      for (std::int32_t kv_head = 0; kv_head < heads; ++kv_head) {
        RollingHead const& head = slots.head(layer, kv_head);
        SlotRuns const runs = head.runs(head.held(state.length(copy.from), state.high_water(copy.from)));
        auto const units = static_cast<std::size_t>(of_layer[static_cast<std::size_t>(kv_head)].units);
        auto const move = [&](std::int64_t first, std::int64_t count) {
          if (count <= 0) return;
          std::memcpy(packed_slot(rows, of_layer, heads, head, copy.to, kv_head, first),
                      packed_slot(rows, of_layer, heads, head, copy.from, kv_head, first),
                      static_cast<std::size_t>(count) * units * sizeof(RowUnit));
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

}  // namespace detail

/// @brief Makes sequences continue others (a fork, or beams that survive), on the CPU: rows and counters.
/// @throws ArgumentError before anything is written, on sequences that are not, copies that meet, and a cache of other
///         slots
/// @par Cost  The rows that hold something
template <class Registry>
void copy_sequences(RollingSlotsView const& slots, RollingState& state, std::span<SequenceCopy const> copies,
                    PackedDestination<RollingSlotsView, Registry> const& cache) {
  detail::refuse_scored(slots, "copy_sequences");
  detail::copy_packed_sequences(slots, state, copies, cache, detail::NoneScored{});
}

HEADAWARE_NAMESPACE_END
