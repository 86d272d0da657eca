#pragma once

/// @file
/// A decoding step's new tokens, handed over to attention together with the queries.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The new tokens of a step, of one layer, and the counters of the rolling cache that takes them.
/// @tparam T         `__half`, `__nv_bfloat16`, `float16` or `bfloat16`, as the cache has it
/// @tparam Source    how the new keys and values lie: a `KvLayout`, or `KvLayouts` of both
/// @tparam Rotation  `KeepPositions`, or `KeyRotation`
template <class T, class Source, class Rotation = KeepPositions>
struct RollingStep {
  RollingSlotsView slots;   ///< `RollingSlots::view_at(d_heads)`
  RollingStateView state;   ///< in device memory; no other call on it may run at the same time
  LayerKv<T const> tokens;  ///< device, the layer's new keys and values
  Source source;            ///< of [sequences, num_kv_heads, query_tokens, channels]
  AppendOptions options{};  ///< `first_layer` is the layer; `advance`: false in all layers of a step but the last
  /// Device, [num_sequences] new tokens of each sequence, at most `query_tokens`, read when the kernel runs; nullptr:
  /// `query_tokens` each
  std::int32_t const* d_counts = nullptr;
  /// Turns new keys and queries to their tokens' positions, which follow each sequence's length. Without it both are
  /// rotated already, or never
  Rotation rotation{};
};
template <class T, class Source>
RollingStep(RollingSlotsView, RollingStateView, LayerKv<T>, Source) -> RollingStep<std::remove_const_t<T>, Source>;
template <class T, class Source>
RollingStep(RollingSlotsView, RollingStateView, LayerKv<T>, Source, AppendOptions)
    -> RollingStep<std::remove_const_t<T>, Source>;
template <class T, class Source>
RollingStep(RollingSlotsView, RollingStateView, LayerKv<T>, Source, AppendOptions, std::int32_t const*)
    -> RollingStep<std::remove_const_t<T>, Source>;
template <class T, class Source, class Rotation>
RollingStep(RollingSlotsView, RollingStateView, LayerKv<T>, Source, AppendOptions, std::int32_t const*, Rotation)
    -> RollingStep<std::remove_const_t<T>, Source, Rotation>;

namespace detail {

template <class Rotation>
void check_step_rotation(Rotation const& rotation, std::int64_t head_dim) {
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    constexpr auto where = "append_and_attend";
    bool const fits = rotation.rotary_dim() > 0 && rotation.rotary_dim() <= head_dim && rotation.rotary_dim() % 16 == 0;
    require(fits, "rotary_dim", {"a multiple of 16, at most ", head_dim}, rotation.rotary_dim(), where);
    require(rotation.token_positions() == nullptr, "positions of the rotation", "none: they follow the lengths",
            "a pointer", where);
  } else {
    static_assert(std::is_same_v<Rotation, KeepPositions>,
                  "headaware: a step's rotation is KeepPositions or KeyRotation");
  }
}

/// Throws unless 16-byte loads may read a tensor's rows.
template <class T, class Layout>
void check_wide(T const* data, Layout const& layout, std::int64_t channels, char const* what) {
  constexpr std::int64_t width = 16 / static_cast<std::int64_t>(sizeof(T));
  bool const wide = rows_contiguous(layout, channels) && channel_run(layout) % width == 0 &&
                    reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
  require(wide, what, "rows in one piece, aligned to 16 bytes (else call append, then attend)", "others",
          "append_and_attend");
}

/// Checks the rows that a step's tokens become. @param channels  of the cache's rows
template <class Rotation>
void check_step_rows(AttentionShape const& shape, RowChannels const& channels, Rotation const& rotation) {
  constexpr auto where = "append_and_attend";
  require(shape.head_dim == channels.head_dim, "head_dim", channels.head_dim, shape.head_dim, where);
  require(shape.output_dim() == channels.value_dim, "value_dim", channels.value_dim, shape.output_dim(), where);
  for (std::int64_t const each : {shape.head_dim, shape.output_dim()}) {
    require(each % 16 == 0 && each <= 256, "channels", "a multiple of 16, at most 256 (else call append, then attend)",
            each, where);
  }
  check_step_rotation(rotation, shape.head_dim);
}

/// Throws unless 16-byte accesses may reach all rows of new tokens.
template <class T, class Source>
void check_new_rows(AttentionShape const& shape, LayerKv<T const> const& tokens, Source const& source) {
  check_wide(tokens.keys, keys_of(source), shape.head_dim, "new keys");
  check_wide(tokens.values, values_of(source), shape.output_dim(), "new values");
}

/// The same of the cache's rows.
template <class T>
void check_cache_rows(LayerKv<T> const& cache) {
  auto const check_buffer = [](T const* data) {
    require(reinterpret_cast<std::uintptr_t>(data) % 16 == 0, "cache's buffers",
            "aligned to 16 bytes (else call append, then attend)", "others", "append_and_attend");
  };
  check_buffer(cache.keys);
  check_buffer(cache.values);
}

/// Checks a step, for the checks of `append` and of `attend` to follow.
/// @tparam Cache  `Destination` or `PackedDestination`
template <class T, class Source, class Rotation, class Cache>
void check_step(AttentionShape const& shape, RollingStep<T, Source, Rotation> const& step, Cache const& cache) {
  constexpr auto where = "append_and_attend";
  require_index(step.options.first_layer, std::ssize(cache.capacities), "layer", where);
  auto const layer = static_cast<std::size_t>(step.options.first_layer);
  require(shape.num_sequences == step.slots.num_sequences, "sequences", step.slots.num_sequences, shape.num_sequences,
          where);
  require(shape.num_kv_heads == cache.capacities[layer].num_kv_heads, "KV heads", cache.capacities[layer].num_kv_heads,
          shape.num_kv_heads, where);
  check_step_rows(shape, cache.channels.of(layer), step.rotation);
}

/// Checks all of a call of `append_and_attend` but its storage. @param options  with the positions that masks need
template <class Q, class QLayout, class T, class Source, class Rotation, class O, class OLayout>
void check_append_and_attend(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries,
                             RollingStep<T, Source, Rotation> const& step,
                             Destination<T, RollingSlotsView> const& cache, AttentionOutput<O, OLayout> const& output,
                             AttentionOptions const& options) {
  LayerKv<T> const& buffers = cache.layers[static_cast<std::size_t>(step.options.first_layer)];
  auto const view = RollingView::of_chunk(step.slots, step.options.first_layer, step.state.lengths, shape.query_tokens,
                                          step.d_counts);
  check_attention(shape, queries, KeptCache{buffers.keys, buffers.values, view}, output, options);
  (void)check_rolling_append(step.slots, std::span<LayerKv<T const> const>(&step.tokens, 1), step.source,
                             shape.query_tokens, cache, step.options);
  check_new_rows(shape, step.tokens, step.source);
  check_cache_rows(buffers);
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
