#pragma once

/// @file
/// How long each sequence of a rolling cache is, and how far it can be taken back.

#include <headaware/cache/rolling_slots.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The counters of a rolling cache in host or device memory; borrowed.
struct RollingStateView {
  std::int32_t* lengths = nullptr;  ///< [num_sequences] tokens seen
  std::int32_t* written = nullptr;  ///< [num_sequences] what `RollingState::written` says
  std::int32_t* ticket = nullptr;   ///< device: counts blocks; 0 between calls
  std::int32_t* status = nullptr;   ///< device: 1 once a call refused a sequence, until someone clears it

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
    written_.resize(static_cast<std::size_t>(num_sequences));
  }

  [[nodiscard]] std::int32_t num_sequences() const { return static_cast<std::int32_t>(lengths_.size()); }
  [[nodiscard]] std::span<std::int32_t const> lengths() const { return lengths_; }
  /// Tokens a sequence has seen. @throws ArgumentError if there is no such sequence
  [[nodiscard]] std::int64_t length(std::int32_t sequence) const { return lengths_[index(sequence)]; }
  /// @brief The longest that a sequence has been since it was empty: slots of tokens below `written - ring` have been
  /// overwritten. (Behind `compress` it counts the slack as overwritten, since nothing is in it yet.)
  [[nodiscard]] std::int64_t written(std::int32_t sequence) const { return written_[index(sequence)]; }

  /// @brief How many of a sequence's last tokens can be taken back so that every head's window is still whole: all
  /// until the first ring wraps, later `slack` less what has already been taken back.
  [[nodiscard]] std::int64_t max_rollback(RollingSlotsView const& plan, std::int32_t sequence) const {
    return plan.max_rollback(length(sequence), written(sequence));
  }
  /// @brief Takes the last `tokens` tokens back (speculative decoding). Touches no slot.
  /// @throws ArgumentError if more than `max_rollback`
  void rollback(RollingSlotsView const& plan, std::int32_t sequence, std::int64_t tokens) {
    std::int64_t const most = max_rollback(plan, sequence);
    if (tokens < 0 || tokens > most) {
      require(false, "tokens to take back", {"in [0, ", most, "]"}, tokens, {"rollback, sequence ", sequence});
    }
    lengths_[index(sequence)] -= static_cast<std::int32_t>(tokens);
  }

  /// @brief Counts tokens that `append` has written without counting them.
  /// @param counts  [num_sequences]
  /// @throws ArgumentError, before anything changes, on a negative count or a sequence longer than the plan's limit
  void advance(RollingSlotsView const& plan, std::span<std::int32_t const> counts) {
    check(plan, counts, "advance");
    for (std::size_t b = 0; b < counts.size(); ++b) {
      lengths_[b] += counts[b];
      written_[b] = std::max(written_[b], lengths_[b]);
    }
  }

  /// @brief Says that `compress` has filled a sequence with `length` tokens.
  /// @throws ArgumentError if the plan has no room for them
  void start(RollingSlotsView const& plan, std::int32_t sequence, std::int64_t length) {
    if (length < 0 || length > plan.token_limit) {
      require(false, "length", {"in [0, ", plan.token_limit, "]"}, length, "RollingState::start");
    }
    std::size_t const b = index(sequence);
    lengths_[b] = static_cast<std::int32_t>(length);
    written_[b] = static_cast<std::int32_t>(std::min<std::int64_t>(plan.written_at_start(length), all_tokens));
  }

  /// Empties a sequence; its slots are free for another.
  void reset(std::int32_t sequence) { lengths_[index(sequence)] = written_[index(sequence)] = 0; }

  /// Gives a sequence the counters of another; the rows are `copy_sequences`' business.
  void copy(std::int32_t from, std::int32_t to) {
    lengths_[index(to)] = lengths_[index(from)];
    written_[index(to)] = written_[index(from)];
  }

  /// Throws what `append` and `advance` complain about.
  void check(RollingSlotsView const& plan, std::span<std::int32_t const> counts, char const* where) const {
    require(plan.num_sequences == num_sequences(), "state's sequences", plan.num_sequences, num_sequences(), where);
    require(counts.size() == lengths_.size(), "counts", lengths_.size(), counts.size(), where);
    for (std::size_t b = 0; b < counts.size(); ++b) {
      std::int64_t const room = plan.token_limit - lengths_[b];
      if (counts[b] >= 0 && counts[b] <= room) continue;
      require(false, "new tokens", {"in [0, ", room, "]"}, counts[b], {where, ", sequence ", b});
    }
  }

 private:
  [[nodiscard]] std::size_t index(std::int32_t sequence) const {
    require_index(sequence, num_sequences(), "sequence", "RollingState");
    return static_cast<std::size_t>(sequence);
  }

  std::vector<std::int32_t> lengths_;
  std::vector<std::int32_t> written_;
};

HEADAWARE_NAMESPACE_END
