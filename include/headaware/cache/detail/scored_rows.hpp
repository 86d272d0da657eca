#pragma once

// Rows of scored slots on the CPU: those that enter in an append, and those of a sequence that is continued.

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/scored_slots.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks scores of an append of so many layers.
inline void check_token_scores(AppendShape const& shape, RollingSlotsView const& slots,
                               RollingScoresView const& records, TokenScores const& scores) {
  check_scores(slots, records, "append");
  if (slots.max_scored == 0 || shape.max_count == 0) return;
  require_pointer(scores.data, "new tokens' scores", "append");
  require_aligned(scores.data, "new tokens' scores", "append");
}

/// @brief Updates the scored slots of heads that have any, before the rings' rows are overwritten.
/// @param make  () to a thread's memory
/// @param move  (memory, segment, head, token, slot, new token) writes a slot's row: of a token that is in the ring, or
///              of a new one; -1: it is none
template <class Make, class Move>
void append_scored(AppendShape const& shape, std::int64_t layers, RollingSlotsView const& slots,
                   RollingState const& state, RollingScoresView const& records, TokenScores const& scores,
                   std::span<std::int32_t const> counts, Make const& make, Move const& move) {
  if (slots.max_scored == 0) return;
  LayerHeads const& heads = shape.heads;
  std::int64_t const first = heads.first(shape.first_layer);
  std::int64_t const end = heads.first(shape.first_layer + layers);
  constexpr std::int64_t few_slots = 1 << 14;  // looked at
  bool const share = (end - first) * shape.num_sequences * shape.max_count * slots.max_scored > few_slots;
  parallel_for((end - first) * shape.num_sequences, 1, share, make, [&](auto& memory, std::int64_t h) {
    Segment const segment = segment_at(first * shape.num_sequences + h, shape.num_sequences, heads);
    RollingHead const& head = slots.head(segment);
    std::int64_t const count = counts[static_cast<std::size_t>(segment.sequence)];
    if (head.scored == 0 || count == 0) return;
    std::int64_t const length = state.length(segment.sequence);
    ScoredAppend<OneLane> const append{{},
                                       head,
                                       records.of(head, heads.first(segment.layer) + segment.kv_head, segment.sequence),
                                       slots.slack,
                                       length,
                                       count,
                                       state.high_water(segment.sequence),
                                       scores.of(segment.layer - shape.first_layer, segment.sequence, segment.kv_head)};
    if (append.run().count == 0) return;
    std::int64_t const used = head.scored_used(length + count);
    for (std::int64_t i = 0; i < used; ++i) {
      if (!append.has_new(i)) continue;
      std::int64_t const token = append.of.slots[i].token;
      move(memory, segment, head, token, head.ring_end() + i, token < length ? -1 : token - length);
    }
  });
}

/// @brief Copies scores and records of a head to another sequence, and rows of the slots that may show something.
/// @param move  (first slot, slots)
template <class Move>
void copy_scored(RollingHead const& head, std::int64_t index, RollingState const& state,
                 RollingScoresView const& records, std::int32_t from, std::int32_t to, Move const& move) {
  if (head.scored == 0) return;
  std::memcpy(records.memory + records.first_unit(index, to), records.memory + records.first_unit(index, from),
              static_cast<std::size_t>(RollingScoresView::units(head)) * sizeof(RollingScoresView::Unit));
  move(head.ring_end(), head.scored_used(state.length(from)));
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
