#pragma once

// Which of the tokens that leave a window stay in scored slots: one head of one sequence, on the host or by a warp.

#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/policy/rolling_policy.hpp>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// One thread that does it all. `WarpLanes` are the same, each with its share of the slots.
struct OneLane {
  static constexpr std::int32_t index = 0;
  static constexpr std::int32_t count = 1;
  /// Joins what the lanes have found.
  template <class Scan>
  [[nodiscard]] HEADAWARE_HOST_DEVICE Scan join(Scan const& scan) const {
    return scan;
  }
  /// The first lane of which it is so; `count`: none.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t first_where(bool so) const { return so ? 0 : 1; }
  /// Lets all lanes read what one has written.
  HEADAWARE_HOST_DEVICE void sync() const {}
};

/// What a head's scored slots hold at some length.
struct ScoredScan {
  std::int64_t least = INT64_MAX;  ///< rank of the lowest that stays
  std::int32_t least_slot = INT32_MAX;
  std::int32_t staying = 0;
  std::int32_t free_slot = INT32_MAX;  ///< the first that may be used again

  [[nodiscard]] static HEADAWARE_HOST_DEVICE ScoredScan both(ScoredScan const& a, ScoredScan const& b) {
    bool const first = a.least < b.least;
    return {first ? a.least : b.least, first ? a.least_slot : b.least_slot, a.staying + b.staying,
            a.free_slot < b.free_slot ? a.free_slot : b.free_slot};
  }
};

/// Tokens that have entered scored slots, and the slot of the last one.
struct ScoredEntries {
  std::int32_t count = 0;
  std::int32_t slot = -1;
};

/// @brief The scored slots of one head of one sequence during an append.
///
/// A token that leaves the window at length L competes then, by `score_rank`, with those that stay: it enters, at L, if
/// there are fewer than the policy's, or in the place of the lowest, which leaves at L; else it goes. A slot is used
/// again when no query can see it any more: `leave <= high-water mark - slack`; the first such slot is taken. So the
/// slots of all tokens that may be shown at length L are among the first `RollingHead::scored_used(L)`.
/// Tokens that have been rolled back never were: records that entered later are dropped, those that left later stay.
template <class Lanes>
struct ScoredAppend {
  Lanes lanes;
  RollingHead head;
  HeadScores of;
  std::int32_t slack;
  std::int64_t length;      ///< before the append
  std::int64_t count;       ///< new tokens
  std::int64_t high_water;  ///< before the append
  float const* scores;      ///< [count]

  /// Chooses the tokens that stay, and notes the scores of those that stay in the ring. By all lanes. The ring's rows
  /// must still be as before the append; rows of slots that `has_new` are to be written after.
  HEADAWARE_EXEC_CHECK_DISABLE
  HEADAWARE_HOST_DEVICE ScoredEntries run() const {
    ScoredEntries entries;
    std::int64_t const capacity = std::int64_t{head.scored} - slack;
    std::int64_t const window = head.rule.window;
    std::int64_t const left = length - window;
    std::int64_t const end = length + count - window;
    std::int64_t least = 0;  // where all slots are known to be taken
    bool full = false;
    bool began = false;
    std::int64_t filled = capacity;  // while there are fewer, the first slots are taken, and the rest is free
    for (std::int64_t token = left > head.rule.sink ? left : head.rule.sink; token < end;) {
      if (full) {  // pass over those that go
        std::int64_t const own = token + lanes.index;
        std::int32_t const passed = lanes.first_where(own >= end || rank(own) > least);
        token += passed;
        if (passed == lanes.count || token >= end) continue;
      }
      std::int64_t const now = token + window + 1;
      std::int64_t const gone = (now > high_water ? now : high_water) - slack;
      ScoredScan scan;
      if (filled < capacity) {
        scan.free_slot = static_cast<std::int32_t>(filled);
      } else {
        scan = look(gone, !began);
        if (scan.staying < capacity) filled = scan.staying;
      }
      began = true;
      full = scan.staying >= capacity;
      least = scan.least;
      if (!full || rank(token) > least) {
        std::int32_t slot = scan.free_slot;
        // Without slack its own place is free at once.
        if (full && now <= gone && scan.least_slot < slot) slot = scan.least_slot;
        if (lanes.index == 0 && slot < head.scored) {
          if (full) of.slots[scan.least_slot].leave = static_cast<std::int32_t>(now);
          of.slots[slot] = {static_cast<std::int32_t>(token), score(token), static_cast<std::int32_t>(now), all_tokens};
        }
        lanes.sync();
        if (filled < capacity) ++filled;
        if (slot < head.scored) entries = {entries.count + 1, slot};
        full = false;
      }
      ++token;
    }
    lanes.sync();  // all have read the scores that are replaced now
    std::int64_t const ring_begin = length + count - head.ring;
    std::int64_t const first = ring_begin > length ? ring_begin : length;
    for (std::int64_t token = (first > head.rule.sink ? first : head.rule.sink) + lanes.index;
         token < length + count && head.ring > 0; token += lanes.count) {
      of.ring[head.slot_of(token) - head.rule.sink] = scores[token - length];
    }
    return entries;
  }
  /// Whether a slot's token has entered in this append.
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool has_new(std::int64_t slot) const {
    return of.slots[slot].leave != 0 && of.slots[slot].enter > length;
  }

 private:
  [[nodiscard]] HEADAWARE_HOST_DEVICE float score(std::int64_t token) const {
    return token < length ? of.ring[head.slot_of(token) - head.rule.sink] : scores[token - length];
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rank(std::int64_t token) const {
    return score_rank(score(token), token);
  }
  /// @param gone   the length up to which nothing is looked at any more
  /// @param first  of this append: what has been rolled back is undone
  HEADAWARE_EXEC_CHECK_DISABLE
  [[nodiscard]] HEADAWARE_HOST_DEVICE ScoredScan look(std::int64_t gone, bool first) const {
    ScoredScan scan;
    for (std::int32_t slot = lanes.index; slot < head.scored; slot += lanes.count) {
      ScoredRecord record = of.slots[slot];
      if (first && record.leave != 0) {
        if (record.enter > length) {
          record = {};
          of.slots[slot] = record;
        } else if (record.leave > length && record.leave != all_tokens) {
          record.leave = all_tokens;
          of.slots[slot] = record;
        }
      }
      if (record.leave == all_tokens) {
        ++scan.staying;
        std::int64_t const rank = score_rank(record.score, record.token);
        if (rank < scan.least) {
          scan.least = rank;
          scan.least_slot = slot;
        }
      } else if (slot < scan.free_slot && (record.leave == 0 || record.leave <= gone)) {
        scan.free_slot = slot;
      }
    }
    return lanes.join(scan);
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
