#pragma once

/// @file
/// Slots of a rolling cache: sinks stay, the window rolls over its ring, tokens of high scores have slots after it.

#include <headaware/config.hpp>
#include <headaware/policy/rolling_policy.hpp>
#include <headaware/policy/window_rule.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Up to three runs of slots: `[0, sinks)`, `[first, first + count)` and `[wrapped_first, wrapped_first +
/// wrapped)`; the tokens ascend in this order.
struct SlotRuns {
  std::int64_t sinks = 0;
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t wrapped_first = 0;
  std::int64_t wrapped = 0;
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t total() const { return sinks + count + wrapped; }
  /// The `i`-th slot of all runs. @pre 0 <= i < total()
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t slot(std::int64_t i) const {
    if (i < sinks) return i;
    i -= sinks;
    return i < count ? first + i : wrapped_first + (i - count);
  }
};

/// @brief Slots of one (layer, KV head), the same for every sequence: `sink` slots for the first tokens and a ring of
/// `ring` slots for the newest. Token t lies in slot `t < sink ? t : sink + (t - sink) mod ring`. After the ring come
/// slots of tokens that have left the window and whose scores are high: `cache/scored_records.hpp` says which. Lengths
/// and tokens are below 2^31.
struct alignas(16) RollingHead {
  std::int64_t first_row = 0;      ///< rows of the same sequence's earlier heads in the layer
  std::int64_t sequence_rows = 0;  ///< rows of one sequence in the layer
  WindowRule rule;
  std::int32_t ring = 0;    ///< window + slack; 0 where the window is 0
  std::int32_t scored = 0;  ///< slots after the ring, scored tokens + slack; 0 where the policy has no scored tokens

  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t slots() const { return ring_end() + scored; }
  /// The slots of sinks and of the ring; scored tokens have those from here on.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t ring_end() const { return std::int64_t{rule.sink} + ring; }
  /// @brief The scored slots, the first ones, that may show something of a sequence of so many tokens: all that have
  /// left the window, or as many as there are.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t scored_used(std::int64_t length) const {
    std::int64_t const left = length - rule.window - rule.sink;
    return left < 0 ? 0 : left < scored ? left : std::int64_t{scored};
  }

  /// The row, in the layer's buffers, of one sequence's slot.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t row(std::int64_t sequence, std::int64_t slot) const {
    return sequence * sequence_rows + first_row + slot;
  }
  /// The slot of a token; -1 where none ever holds it.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t slot_of(std::int64_t token) const {
    if (token < rule.sink) return token;
    if (ring == 0) return -1;
    // 32 bits suffice, and divide faster on a device.
    return rule.sink +
           static_cast<std::int64_t>(static_cast<std::uint32_t>(token - rule.sink) % static_cast<std::uint32_t>(ring));
  }
  /// @brief The token that a slot shows to attention at this length; -1 for a slot that holds nothing, or only a token
  /// that has left the window (`slack` keeps some for `rollback`); -1 for slots of scored tokens, which records tell.
  /// @pre 0 <= slot < slots()
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t position_of(std::int64_t slot, std::int64_t length) const {
    if (slot < rule.sink) return slot < length ? slot : -1;
    if (slot >= ring_end()) return -1;
    std::int64_t const newest = length - 1 - rule.sink;  // counted from the ring's first token
    std::int64_t const at = slot - rule.sink;
    if (newest < at) return -1;
    std::int64_t const token = rule.sink + newest - (newest - at) % ring;
    return rule.keeps(token, length) ? token : -1;
  }
  /// The tokens that a sequence of `length` tokens keeps, and attention reads.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr WindowRange kept(std::int64_t length) const {
    return rule.range(length);
  }
  /// The tokens in slots that no append has overwritten. @param high_water  see `RollingState`
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr WindowRange held(std::int64_t length, std::int64_t high_water) const {
    return rule.held(length, high_water, ring - rule.window);
  }
  /// The slots of tokens, oldest first. @pre the head keeps them, and at most `ring` after the sinks
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr SlotRuns runs(WindowRange const& tokens) const {
    SlotRuns result;
    result.sinks = tokens.sinks;
    result.wrapped_first = rule.sink;
    std::int64_t const in_ring = tokens.length - tokens.begin;
    if (in_ring <= 0) return result;
    result.first = slot_of(tokens.begin);
    result.count = in_ring < ring_end() - result.first ? in_ring : ring_end() - result.first;
    result.wrapped = in_ring - result.count;
    return result;
  }
};

/// @brief Rows of one head of one sequence in a rolling cache, oldest token first. Tokens and slots are below 2^31, and
/// kernels have few registers.
struct RollingRows {
  std::int64_t first = 0;  ///< row of the head's slot 0
  WindowRule rule;
  BasicWindowRange<std::int32_t> tokens;
  std::int32_t window_slot = 0;  ///< of the window's first token
  std::int32_t unwrapped = 0;    ///< tokens from there to the ring's end; the next ones begin the ring

  [[nodiscard]] HEADAWARE_HOST_DEVICE static RollingRows of(RollingHead const& head, std::int64_t sequence,
                                                            WindowRange const& tokens) {
    SlotRuns const runs = head.runs(tokens);
    return {head.row(sequence, 0), head.rule, tokens.narrow(), static_cast<std::int32_t>(runs.first),
            static_cast<std::int32_t>(runs.count)};
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return tokens.count(); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    auto slot = static_cast<std::int32_t>(row);
    if (slot >= tokens.sinks) {
      std::int32_t const i = slot - tokens.sinks;
      slot = i < unwrapped ? window_slot + i : rule.sink + (i - unwrapped);
    }
    return slot_offset(slot, channels);
  }
  /// Where a slot's row begins.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t slot_offset(std::int64_t slot, std::int64_t channels) const {
    return (first + slot) * channels;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE WindowRule window_rule() const { return rule; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const { return tokens.token(row); }
  /// Whether a query sees the token at `position`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool sees(std::int64_t position, std::int64_t query) const {
    return rule.sees(position, query, tokens.length);
  }
};

HEADAWARE_NAMESPACE_END
