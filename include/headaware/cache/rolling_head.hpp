#pragma once

/// @file
/// Which slot of a fixed block holds which token of a head: sinks stay, the window rolls over them in a ring.

#include <headaware/config.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/window_only.hpp>

#include <concepts>
#include <cstdint>
#include <limits>

HEADAWARE_NAMESPACE_BEGIN

/// A sink of so many tokens means all: room is reserved for as many as the plan says.
inline constexpr std::int32_t all_tokens = std::numeric_limits<std::int32_t>::max();

/// @brief What a policy with a rolling form keeps of `length` tokens: those below `sink` and those from
/// `length - window` on, whatever the length. `sink == all_tokens`: all.
struct SinkAndWindow {
  std::int32_t sink = 0;
  std::int32_t window = 0;
  friend constexpr bool operator==(SinkAndWindow const&, SinkAndWindow const&) = default;
};

[[nodiscard]] constexpr SinkAndWindow rolling_form(SinkWindow const& policy) { return {policy.sink, policy.window}; }
[[nodiscard]] constexpr SinkAndWindow rolling_form(WindowOnly const& policy) { return {0, policy.window}; }
[[nodiscard]] constexpr SinkAndWindow rolling_form(Full const&) { return {all_tokens, 0}; }
[[nodiscard]] constexpr SinkAndWindow rolling_form(Prune const&) { return {0, 0}; }

/// @brief A policy that can be kept up token by token in place. One's own policy becomes such with a host function
/// `SinkAndWindow rolling_form(Mine const&)` in the policy's namespace (found by its argument).
/// @pre  `keeps(token, length)` is `token < sink || token >= length - window`
template <class P>
concept RollingPolicy = requires(P const policy) {
  { rolling_form(policy) } -> std::same_as<SinkAndWindow>;
};

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

/// @brief The block of slots of one (layer, KV head), of every sequence alike: `sink` slots for the first tokens and a
/// ring of `ring` slots for the newest. Token t lies in slot `t < sink ? t : sink + (t - sink) mod ring`.
/// Lengths and tokens are below 2^31.
struct alignas(16) RollingHead {
  std::int64_t first_row = 0;      ///< rows of the same sequence's earlier heads in the layer
  std::int64_t sequence_rows = 0;  ///< rows of one sequence in the layer
  std::int32_t sink = 0;
  std::int32_t window = 0;
  std::int32_t ring = 0;  ///< window + slack; 0 where the window is 0
  std::int32_t unused = 0;

  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t slots() const { return std::int64_t{sink} + ring; }

  /// The row, in the layer's buffers, of one sequence's slot.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t row(std::int64_t sequence, std::int64_t slot) const {
    return sequence * sequence_rows + first_row + slot;
  }
  /// The slot of a token; -1 where none ever holds it.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t slot_of(std::int64_t token) const {
    if (token < sink) return token;
    if (ring == 0) return -1;
    // 32 bits suffice, and divide faster on a device.
    return sink +
           static_cast<std::int64_t>(static_cast<std::uint32_t>(token - sink) % static_cast<std::uint32_t>(ring));
  }
  /// The oldest token behind the sinks that a sequence of `length` tokens keeps; `length` or more if none.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t window_begin(std::int64_t length) const {
    return length - window > sink ? length - window : std::int64_t{sink};
  }
  /// Tokens that a sequence of `length` tokens keeps.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t kept(std::int64_t length) const {
    std::int64_t const begin = window_begin(length);
    return length <= sink ? length : sink + (length > begin ? length - begin : 0);
  }
  /// The `i`-th token kept. @pre 0 <= i < kept(length)
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_token(std::int64_t i, std::int64_t length) const {
    return i < sink ? i : length - kept(length) + i;
  }
  /// @brief The token that a slot shows to attention at this length; -1 for a slot that holds nothing, or only a token
  /// that has left the window (`slack` keeps some for `rollback`).
  /// @pre 0 <= slot < slots()
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t position_of(std::int64_t slot, std::int64_t length) const {
    if (slot < sink) return slot < length ? slot : -1;
    std::int64_t const newest = length - 1 - sink;  // counted from the ring's first token
    std::int64_t const at = slot - sink;
    if (newest < at) return -1;
    std::int64_t const token = sink + newest - (newest - at) % ring;
    return token >= length - window ? token : -1;
  }
  /// The slots of the sinks and of tokens `[begin, length)`. @pre begin >= sink, length - begin <= ring
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr SlotRuns runs(std::int64_t begin, std::int64_t length) const {
    SlotRuns result;
    result.sinks = length < sink ? length : sink;
    result.wrapped_first = sink;
    if (length <= begin || ring == 0) return result;
    std::int64_t const tokens = length - begin;
    result.first = slot_of(begin);
    result.count = tokens < slots() - result.first ? tokens : slots() - result.first;
    result.wrapped = tokens - result.count;
    return result;
  }
  /// The slots that attention reads at this length, oldest token first.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr SlotRuns visible(std::int64_t length) const {
    return runs(window_begin(length), length);
  }
  /// The slots whose tokens no later append has overwritten. @param written see `RollingState`
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr SlotRuns intact(std::int64_t length, std::int64_t written) const {
    return runs(written - ring > sink ? written - ring : std::int64_t{sink}, length);
  }
};

namespace detail {

/// The tokens of an append that stay: `[first, sink_end)` and `[ring_begin, end)`.
struct Survivors {
  std::int64_t first = 0;
  std::int64_t sink_end = 0;
  std::int64_t ring_begin = 0;
  std::int64_t end = 0;
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t count() const {
    return sink_end - first + end - ring_begin;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t token(std::int64_t i) const {
    return i < sink_end - first ? first + i : ring_begin + (i - (sink_end - first));
  }
};

/// @param sink   tokens that stay from the start
/// @param begin  the oldest token behind them that stays
HEADAWARE_HOST_DEVICE constexpr Survivors survivors(std::int64_t sink, std::int64_t begin, std::int64_t length,
                                                    std::int64_t count) {
  std::int64_t const end = length + count;
  auto const clamp = [&](std::int64_t token) { return token < length ? length : token > end ? end : token; };
  std::int64_t const sink_end = clamp(sink);
  return {length, sink_end, clamp(begin < sink ? sink : begin), end};
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
