#pragma once

/// @file
/// Lengths of the sequences of a rolling cache, and how far they can be rolled back.

#include <headaware/cache/rolling_slots.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The counters of a rolling cache in host or device memory; borrowed.
struct RollingStateView {
  std::int32_t* lengths = nullptr;     ///< [num_sequences] tokens seen
  std::int32_t* high_water = nullptr;  ///< [num_sequences] see `RollingState::high_water`
  std::int32_t* ticket = nullptr;      ///< device: counts blocks; 0 between calls
  std::int32_t* status = nullptr;      ///< device: set to 1 when a call refuses a sequence; cleared by the caller

  /// Bytes of the counters of so many sequences.
  static std::size_t bytes(std::int32_t num_sequences) {
    return (2 * static_cast<std::size_t>(num_sequences) + 2) * sizeof(std::int32_t);
  }
  /// @brief Counters in `bytes(num_sequences)` bytes at `memory`, 4-byte aligned. All zeroes is a state of empty
  /// sequences (`cudaMemsetAsync`).
  static RollingStateView at(void* memory, std::int32_t num_sequences) {
    auto* const counters = static_cast<std::int32_t*>(memory);
    return {counters, counters + num_sequences, counters + 2 * std::int64_t{num_sequences},
            counters + 2 * std::int64_t{num_sequences} + 1};
  }
};

/// @brief The counters of a rolling cache on the host. A sequence is a place in the cache: an engine's request takes
/// one, `reset` frees it, and the others stay where they are.
class RollingState {
 public:
  RollingState() = default;
  /// @throws ArgumentError on a negative number
  explicit RollingState(std::int32_t num_sequences) {
    require(num_sequences >= 0, "sequences", ">= 0", num_sequences, "RollingState");
    lengths_.resize(static_cast<std::size_t>(num_sequences));
    high_water_.resize(static_cast<std::size_t>(num_sequences));
  }

  [[nodiscard]] std::int32_t num_sequences() const { return static_cast<std::int32_t>(lengths_.size()); }
  [[nodiscard]] std::span<std::int32_t const> lengths() const { return lengths_; }
  /// Tokens a sequence has seen. @throws ArgumentError if there is no such sequence
  [[nodiscard]] std::int64_t length(std::int32_t sequence) const { return lengths_[index(sequence)]; }
  [[nodiscard]] std::span<std::int32_t const> high_water() const { return high_water_; }
  /// @brief The longest that a sequence has been since it was empty: slots of tokens below `high_water - ring` have
  /// been overwritten. (After `compress` it counts the slack as overwritten, since nothing is in it yet.)
  [[nodiscard]] std::int64_t high_water(std::int32_t sequence) const { return high_water_[index(sequence)]; }

  /// @brief Number of a sequence's last tokens that can be rolled back with every head's window still whole: all until
  /// the first ring wraps, later `slack` less what has already been rolled back.
  [[nodiscard]] std::int64_t max_rollback(RollingSlotsView const& slots, std::int32_t sequence) const {
    return slots.max_rollback(length(sequence), high_water(sequence));
  }
  /// @brief Rolls back the last `tokens` tokens (speculative decoding). Touches no slot.
  /// @throws ArgumentError if more than `max_rollback`
  void rollback(RollingSlotsView const& slots, std::int32_t sequence, std::int64_t tokens) {
    std::int64_t const most = max_rollback(slots, sequence);
    require(tokens >= 0 && tokens <= most, "tokens to take back", {"in [0, ", most, "]"}, tokens,
            {"rollback, sequence ", sequence});
    lengths_[index(sequence)] -= static_cast<std::int32_t>(tokens);
  }

  /// @brief Counts tokens that `append` has written without counting them.
  /// @param counts  [num_sequences]
  /// @throws ArgumentError, before anything changes, on a negative count or a sequence longer than the cache's limit
  void advance(RollingSlotsView const& slots, std::span<std::int32_t const> counts) {
    check(slots, counts, "advance");
    for (std::size_t b = 0; b < counts.size(); ++b) {
      lengths_[b] += counts[b];
      high_water_[b] = std::max(high_water_[b], lengths_[b]);
    }
  }

  /// @brief Sets the counters of a sequence that `compress` has filled with `length` tokens.
  /// @throws ArgumentError if the slots have no room for them, or heads keep tokens by scores: such a cache takes a
  /// prompt that was read elsewhere by one `append` of all its rows, with their scores
  void start(RollingSlotsView const& slots, std::int32_t sequence, std::int64_t length) {
    require(length >= 0 && length <= slots.token_limit, "length", {"in [0, ", slots.token_limit, "]"}, length,
            "RollingState::start");
    if (length > 0) detail::refuse_scored(slots, "RollingState::start");
    std::size_t const b = index(sequence);
    lengths_[b] = static_cast<std::int32_t>(length);
    high_water_[b] = static_cast<std::int32_t>(std::min<std::int64_t>(slots.high_water_at_start(length), all_tokens));
  }

  /// Empties a sequence; its slots are free for another.
  void reset(std::int32_t sequence) { lengths_[index(sequence)] = high_water_[index(sequence)] = 0; }

  /// Gives a sequence the counters of another; `copy_sequences` copies the rows.
  void copy(std::int32_t from, std::int32_t to) {
    lengths_[index(to)] = lengths_[index(from)];
    high_water_[index(to)] = high_water_[index(from)];
  }

  /// Runs the argument checks of `append` and `advance`.
  void check(RollingSlotsView const& slots, std::span<std::int32_t const> counts, char const* where) const {
    require(slots.num_sequences == num_sequences(), "state's sequences", slots.num_sequences, num_sequences(), where);
    require(counts.size() == lengths_.size(), "counts", lengths_.size(), counts.size(), where);
    for (std::size_t b = 0; b < counts.size(); ++b) {
      std::int64_t const room = slots.token_limit - lengths_[b];
      require(counts[b] >= 0 && counts[b] <= room, "new tokens", {"in [0, ", room, "]"}, counts[b],
              {where, ", sequence ", b});
    }
  }

 private:
  [[nodiscard]] std::size_t index(std::int32_t sequence) const {
    require_index(sequence, num_sequences(), "sequence", "RollingState");
    return static_cast<std::size_t>(sequence);
  }

  std::vector<std::int32_t> lengths_;
  std::vector<std::int32_t> high_water_;
};

HEADAWARE_NAMESPACE_END
