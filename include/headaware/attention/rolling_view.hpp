#pragma once

/// @file
/// The rolling cache of `cache/rolling.hpp` as attention reads it.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/check_windows.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One layer of a rolling cache: from its layer's base pointers, whatever slack its rings have.
///
/// Layers may differ in heads and channels; one that reads another's cache names that one here.
///
/// Made by hand, `{slots, layer, lengths}`, it shows what the newest token sees: decoding. `of_chunk` is for several.
struct RollingView {
  RollingSlotsView slots;  ///< `RollingSlots::view()` or `view_at`, where the back end runs
  std::int32_t layer = 0;
  std::int32_t const* lengths = nullptr;  ///< [num_sequences], tokens seen; host or device
  std::int64_t query_tokens = 1;          ///< the newest ones, of which each sees its own window
  /// [num_sequences] how many they are of each sequence, at most `query_tokens`, host or device; nullptr: as many of
  /// all
  std::int32_t const* counts = nullptr;

  /// @brief The rows that the newest tokens see, each its own sinks and window: a prefill chunk, or a draft, appended
  /// in one call and attended to in one call, with the result of going token by token. Attention needs
  /// `first_positions`: the length before the chunk.
  /// @param query_tokens  of every sequence, at most
  /// @param counts        [num_sequences] of each sequence, where they differ: those that the append had. The output of
  ///                      queries after a sequence's last is what its last sees. Without them the rows that a shorter
  ///                      sequence shows reach back further than its queries see; those are read, but do not count
  /// @throws ArgumentError if there is no such layer, or if windows of the first of the tokens may be overwritten: the
  ///         cache's `slack` is less than query_tokens - 1
  [[nodiscard]] static RollingView of_chunk(RollingSlotsView const& slots, std::int32_t layer,
                                            std::int32_t const* lengths, std::int64_t query_tokens,
                                            std::int32_t const* counts = nullptr) {
    detail::check_chunk(query_tokens, slots.slack, "RollingView");
    require_index(layer, slots.num_layers, "layer", "RollingView");
    return {slots, layer, lengths, query_tokens, counts};
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE RollingRows head(std::int64_t sequence, std::int64_t kv_head) const {
    RollingHead const& head = slots.head(layer, kv_head);
    std::int64_t tokens = query_tokens;
    if (counts != nullptr && counts[sequence] < tokens) tokens = counts[sequence] > 1 ? counts[sequence] : 1;
    return RollingRows::of(head, sequence,
                           head.rule.range_of_queries(detail::global_pointer(lengths)[sequence], tokens));
  }
  void check(AttentionShape const& shape, AttentionOptions const& options) const {
    constexpr auto where = "attend, RollingView";
    detail::refuse_scored(slots, where);
    require_index(layer, slots.num_layers, "layer", where);
    detail::check_windowed_call(shape, options, slots.num_sequences, slots.layer_heads(), query_tokens, where);
    require_pointer(slots.heads, "slots", where);
    require_pointer(lengths, "lengths", where);
  }
  void check_tables(AttentionShape const& shape) const {
    detail::check_layer_heads(shape, slots.layer_heads(), layer, "attend, RollingView");
    std::int64_t const most =
        slots.token_limit > 0 ? slots.token_limit : std::int64_t{all_tokens};  // of a view by hand
    for (std::int64_t b = 0; b < shape.num_sequences; ++b) {
      require(lengths[b] >= 0 && lengths[b] <= most, "length", {"in [0, ", most, "]"}, lengths[b],
              {"attend, RollingView, sequence ", b});
    }
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }
};
static_assert(KeptView<RollingView>);

HEADAWARE_NAMESPACE_END
