#pragma once

/// @file
/// Slots of every head of a rolling cache, by policies alone, and the cache as a destination of `compress`.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/unique_id.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/detail/zero_when_moved.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/token_bytes.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Sizes of a rolling cache that policies do not say.
struct RollingLimits {
  std::int64_t max_tokens = 0;  ///< tokens per sequence that heads which keep all have room for; used by those alone
  /// Extra ring slots: allows rollback of up to `slack` tokens, and appends of `slack + 1` tokens whose queries all see
  /// their own windows.
  std::int32_t slack = 0;
};

/// @brief `RollingSlots` as both back ends read them, and the form in which `compress` fills them: each kept token goes
/// to the slot from which `append` goes on. Borrows `heads`.
struct RollingSlotsView {
  static constexpr bool needs_group = false;
  static constexpr bool keeps_positions = true;  ///< keys turned on the way would be wrong with the next token
  RollingHead const* heads = nullptr;            ///< of all layers, where the back end runs
  std::int32_t const* first_heads = nullptr;     ///< `LayerHeads::first_heads`, where the back end runs
  std::int32_t num_layers = 0;
  std::int32_t num_sequences = 0;
  std::int32_t num_kv_heads = 0;  ///< of every layer; where they differ, of the layer that has most
  std::int32_t num_heads = 0;     ///< KV heads of all layers
  std::int32_t slack = 0;
  std::int32_t max_scored = 0;   ///< the most slots for scored tokens that any head has: 0 where none has any
  std::int64_t free_length = 0;  ///< up to this many tokens no ring has overwritten anything
  std::int64_t token_limit = 0;  ///< most tokens per sequence
  std::int64_t max_slots = 0;    ///< the most slots any head has
  std::uint64_t id = 0;          ///< of the `RollingSlots`: unique in the process, but for copies

  [[nodiscard]] HEADAWARE_HOST_DEVICE LayerHeads layer_heads() const {
    return {num_layers, num_kv_heads, first_heads, num_heads};
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE RollingHead const& head(std::int64_t layer, std::int64_t kv_head) const {
    return detail::global_pointer(heads)[layer_heads().first(layer) + kv_head];
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE RollingHead const& head(Segment const& segment) const {
    return head(segment.layer, segment.kv_head);
  }
  /// @brief Number of a sequence's last tokens that can be rolled back, every window whole afterwards: all of them
  /// until the first ring wraps; later `slack`, less what has been rolled back from the high-water mark.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t max_rollback(std::int64_t length,
                                                                          std::int64_t high_water) const {
    if (high_water <= free_length) return length;
    std::int64_t const left = slack - (high_water - length);
    return left < 0 ? 0 : left < length ? left : length;
  }
  /// `RollingState::high_water` of a sequence that `compress` has filled: the slack is empty yet.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t high_water_at_start(std::int64_t length) const {
    return length <= free_length - slack ? length : length + slack;
  }

  /// Whether the segment's policy is the one that its slots were made for, as far as its count of tokens tells.
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool matches(Segment const& segment) const {
    // Which tokens of high scores stay is for appends to say, that know the scores.
    return head(segment).scored == 0 && head(segment).kept(segment.length).count() == segment.kept;
  }
  /// Whether a policy keeps the tokens that the segment's slots were made for. Kept counts tell nothing of (4 sinks, a
  /// window of 4) in slots of (2, 6); where all tokens are kept, or none, they are the same for every policy.
  template <class P>
  [[nodiscard]] bool matches(Segment const& segment, P const& policy) const {
    if (!matches(segment)) return false;
    if (segment.kept == 0 || segment.kept == segment.length) return true;
    if constexpr (RollingPolicy<P>) {
      return window_rule(policy) == head(segment).rule;
    } else {
      return false;
    }
  }
  /// Rows that one head may fill; none where the policy is another one.
  HEADAWARE_HOST_DEVICE std::int64_t head_capacity(Segment const& segment, LayerCapacity const&) const {
    return matches(segment) ? head(segment).slots() : -1;
  }
  HEADAWARE_HOST_DEVICE RollingRows rows(Segment const& segment, LayerCapacity const&) const {
    RollingHead const& slots = head(segment);
    return RollingRows::of(slots, segment.sequence, slots.kept(segment.length));
  }
};

static_assert(std::is_trivially_copyable_v<RollingSlotsView>);

namespace detail {

/// Refuses slots of scored tokens where scores are not at hand.
inline void refuse_scored(RollingSlotsView const& slots, Text const& where) {
  require(slots.max_scored == 0, "slots", "heads of sinks and windows (scores: cache/scored_append.hpp, ScoredView)",
          "heads with scored tokens", where);
}

}  // namespace detail

/// @brief Rows of every (layer, sequence, KV head) of a rolling cache. They depend on policies, not on lengths.
///
/// A head that keeps sinks and a window owns `sink + window + slack` rows, one that keeps all `max_tokens`, a pruned
/// one none; one of scored tokens (`SinkWindowScored`) has `scored + slack` rows more, and records of them beside the
/// rows: `RollingScores`. A layer's buffers are [rows, head_dim], segments back to back in the order of `Segment`. What
/// has been moved from has no heads.
class RollingSlots {
 public:
  /// @param table          policies of all layers and KV heads, each a `RollingPolicy` or `SinkWindowScored`
  /// @param num_sequences  sequences that the cache has room for
  /// @throws ArgumentError on negative numbers, a policy that is none (a `KeepList`), heads that keep all
  ///         without `max_tokens`, and blocks beyond 2^31 slots
  /// @par Cost  O(layers · sequences · heads)
  template <class Table>
  RollingSlots(Table const& table, std::int32_t num_sequences, RollingLimits const& limits)
      : num_sequences_(num_sequences),
        heads_(detail::HeadCounts(detail::layer_heads(table)), {}),
        limits_(limits),
        token_limit_(std::int64_t{all_tokens} - limits.slack) {
    static_assert(
        !requires { table.num_sequences(); },
        "headaware: a rolling cache needs policies that are the same for all sequences, without keep-lists");
    constexpr auto where = "RollingSlots";
    require(num_sequences >= 0, "sequences", ">= 0", num_sequences, where);
    require(limits.max_tokens >= 0 && limits.max_tokens <= all_tokens, "max_tokens", "in [0, 2147483647]",
            limits.max_tokens, where);
    require(limits.slack >= 0, "slack", ">= 0", limits.slack, where);
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
      std::int64_t rows = 0;
      std::int32_t const count = heads().count(layer);
      for (std::int32_t head = 0; head < count; ++head) {
        table.visit(layer, head, [&](auto const& policy) { add_head(policy, layer, head, rows); });
      }
      for (std::int32_t head = 0; head < count; ++head) heads_.at(layer, head).sequence_rows = rows;
      for (std::int32_t sequence = 0; sequence < num_sequences_; ++sequence) {
        for (std::int32_t head = 0; head < count; ++head) {
          offsets_.push_back(offsets_.back() + heads_.at(layer, head).slots());
        }
      }
    }
  }

  [[nodiscard]] std::int32_t num_layers() const { return heads().num_layers; }
  [[nodiscard]] std::int32_t num_sequences() const { return num_sequences_; }
  /// KV heads of every layer; where they differ, of the layer that has most.
  [[nodiscard]] std::int32_t num_kv_heads() const { return heads().num_kv_heads; }
  /// Numbers of KV heads of all layers; valid while these live unchanged.
  [[nodiscard]] LayerHeads heads() const { return heads_.heads(); }
  [[nodiscard]] RollingLimits const& limits() const { return limits_; }
  /// Most tokens per sequence: `max_tokens` where a head keeps all, else 2^31 - 1 less the slack.
  [[nodiscard]] std::int64_t token_limit() const { return token_limit_; }

  /// The slots of one head. @throws ArgumentError if there is no such head
  [[nodiscard]] RollingHead const& head(std::int32_t layer, std::int32_t kv_head) const {
    require_index(layer, num_layers(), "layer", "RollingSlots");
    require_index(kv_head, heads().count(layer), "KV head", "RollingSlots");
    return heads_.at(layer, kv_head);
  }
  /// Prefix sums of rows over all segments, in the order of `Segment`: [segments + 1].
  [[nodiscard]] std::span<std::int64_t const> offsets() const { return offsets_; }
  /// Rows of the whole model.
  [[nodiscard]] std::int64_t rows_total() const { return offsets_.empty() ? 0 : offsets_.back(); }
  /// Rows of one layer's buffers. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int64_t rows_total(std::int32_t layer) const {
    require_index(layer, num_layers(), "layer", "RollingSlots");
    return heads().count(layer) == 0 ? 0 : num_sequences_ * heads_.at(layer, 0).sequence_rows;
  }
  /// Bytes of all rows, which the cache holds whatever its lengths. @throws ArgumentError beyond 64 bits
  [[nodiscard]] std::int64_t bytes_held(LayerBytes const& token) const {
    return detail::sum_layer_bytes("RollingSlots::bytes_held", num_layers(), token,
                                   [&](std::int32_t layer) { return rows_total(layer); });
  }
  /// The same for keys and values alike. @param head_dim channels; @param element_bytes bytes per element
  [[nodiscard]] std::int64_t bytes_held(std::int64_t head_dim, std::size_t element_bytes) const {
    return bytes_held(TokenBytes::of(head_dim, element_bytes));
  }

  /// The slots as the CPU back end reads them; valid while these live unchanged.
  [[nodiscard]] RollingSlotsView view() const { return view_of(heads_.records().data(), heads()); }
  /// The bytes to copy to the device, once: a `RollingHead` for each KV head, and where layers begin if they differ.
  [[nodiscard]] std::span<std::byte const> bytes() const { return heads_.bytes(); }
  /// The slots as the CUDA back end reads them. @param d_heads  device, a copy of `bytes()`, 16-byte aligned
  [[nodiscard]] RollingSlotsView view_at(void const* d_heads) const {
    return view_of(static_cast<RollingHead const*>(d_heads), heads_.heads_at(d_heads));
  }

 private:
  [[nodiscard]] RollingSlotsView view_of(RollingHead const* records, LayerHeads const& layers) const {
    return {records,        layers.first_heads,  layers.num_layers,
            num_sequences_, layers.num_kv_heads, static_cast<std::int32_t>(layers.total()),
            limits_.slack,  max_scored_,         free_length_,
            token_limit_,   max_slots_,          id_};
  }

  template <class P>
  void add_head(P const& policy, std::int32_t layer, std::int32_t kv_head, std::int64_t& rows) {
    auto const where = [&] {
      return "RollingSlots, layer " + std::to_string(layer) + ", KV head " + std::to_string(kv_head);
    };
    constexpr bool scored = std::is_same_v<P, SinkWindowScored>;
    require(RollingPolicy<P> || scored, "policy", "one of sinks and a window", P::name, where);
    if constexpr (RollingPolicy<P> || scored) {
      RollingHead head;
      head.first_row = rows;
      std::int64_t scored_slots = 0;
      if constexpr (scored) {
        head.rule = {policy.sink, policy.window};
        require(policy.scored >= 0, "scored tokens of a head", ">= 0", policy.scored, where);
        if (policy.scored > 0) scored_slots = std::int64_t{policy.scored} + limits_.slack;
      } else {
        head.rule = window_rule(policy);
      }
      auto const& [sink, window] = head.rule;
      if (sink == all_tokens) {
        require(limits_.max_tokens > 0, "max_tokens", "> 0, as a head keeps all tokens", limits_.max_tokens, where);
        head.rule = {static_cast<std::int32_t>(limits_.max_tokens), 0};
        token_limit_ = std::min(token_limit_, limits_.max_tokens);
      }
      bool const fits =
          sink >= 0 && window >= 0 && std::int64_t{sink} + window + limits_.slack + scored_slots <= all_tokens;
      require(fits, "slots of a head", "sink >= 0, window >= 0, with slack below 2^31", {sink, " + ", window}, where);
      head.ring = window > 0 ? window + limits_.slack : 0;
      if (head.ring > 0) free_length_ = std::min(free_length_, head.ring_end());
      head.scored = static_cast<std::int32_t>(scored_slots);
      if (head.scored > 0) free_length_ = std::min(free_length_, head.rule.sink + head.rule.window + scored_slots);
      max_scored_ = std::max(max_scored_, head.scored);
      max_slots_ = std::max(max_slots_, head.slots());
      rows += head.slots();
      heads_.at(layer, kv_head) = head;
    }
  }

  detail::ZeroWhenMoved<std::int32_t> num_sequences_;
  detail::HeadRecords<RollingHead> heads_;
  RollingLimits limits_;
  std::int64_t token_limit_;
  std::int64_t free_length_ = std::numeric_limits<std::int64_t>::max() / 2;
  std::int64_t max_slots_ = 0;
  std::int32_t max_scored_ = 0;
  std::uint64_t id_ = detail::unique_id();
  std::vector<std::int64_t> offsets_ = {0};
};

namespace detail {

template <class T>
Destination<T, RollingSlotsView> rolling_form_of(RollingSlots const& slots, RollingSlotsView const& view,
                                                 LayerChannels const& channels, std::int64_t value_dim) {
  return without_buffers<T>("rolling", view, slots.heads(), channels, value_dim,
                            [&](std::int32_t layer) { return LayerCapacity{.rows = slots.rows_total(layer)}; });
}

}  // namespace detail

/// @brief The buffers of a rolling cache, for `compress`, `append` and `copy_sequences` alike: one of keys and one of
/// values, layers back to back.
/// @param view       `slots.view()` for host memory, `slots.view_at(d_heads)` for device memory; borrowed
/// @param keys       [slots.rows_total(), head_dim]
/// @param values     [slots.rows_total(), value_dim]
/// @param channels   head_dim where all layers are alike, or a `ModelShape`
/// @param value_dim  channels of a value, where all layers are alike; 0: as many as a key has
/// @throws ArgumentError if channels are not positive
template <class T>
[[nodiscard]] Destination<T, RollingSlotsView> rolling(RollingSlots const& slots, RollingSlotsView const& view, T* keys,
                                                       T* values, LayerChannels const& channels,
                                                       std::int64_t value_dim = 0) {
  return detail::with_buffers(detail::rolling_form_of<T>(slots, view, channels, value_dim), keys, values);
}

/// @brief The same with buffers of its own for each layer: [slots.rows_total(layer), head_dim].
template <LayerRange Layers>
[[nodiscard]] Destination<LayerElement<Layers>, RollingSlotsView> rolling(RollingSlots const& slots,
                                                                          RollingSlotsView const& view,
                                                                          Layers const& layers,
                                                                          LayerChannels const& channels,
                                                                          std::int64_t value_dim = 0) {
  return detail::with_layers(detail::rolling_form_of<LayerElement<Layers>>(slots, view, channels, value_dim),
                             layer_span(layers), "rolling");
}

HEADAWARE_NAMESPACE_END
