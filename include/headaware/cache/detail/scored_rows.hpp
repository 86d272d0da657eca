#pragma once

// Rows of scored slots on the CPU: those that enter in an append, and those of a sequence that is continued.

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/scored_slots.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks scores of an append of so many layers.
/// @param max_scored, id  of the slots
inline void check_token_scores(AppendShape const& shape, std::int32_t max_scored, std::uint64_t id,
                               RollingScoresView const& records, TokenScores const& scores) {
  check_scores(max_scored, id, records, "append");
  if (max_scored == 0 || shape.max_count == 0) return;
  require_pointer(scores.data, "new tokens' scores", "append");
  require_aligned(scores.data, "new tokens' scores", "append");
}
inline void check_token_scores(AppendShape const& shape, RollingSlotsView const& slots,
                               RollingScoresView const& records, TokenScores const& scores) {
  check_token_scores(shape, slots.max_scored, slots.id, records, scores);
}

/// The sequences of an append, [num_sequences] each.
struct AppendedTokens {
  std::span<std::int32_t const> lengths;     ///< before
  std::span<std::int32_t const> high_water;  ///< before
  std::span<std::int32_t const> counts;      ///< new tokens
};

/// Where the row of a scored slot comes from and goes to. @tparam Head  as `RollingScoredHead`
template <class Head>
struct SlotRow {
  Head const& head;
  std::int64_t slot;
  std::int64_t token;      ///< that was in the ring; -1: of the slot itself, which has moved
  std::int64_t new_token;  ///< of the new ones; -1: it is none

  [[nodiscard]] std::int64_t to(std::int64_t channels) const { return head.slot_offset(slot, channels); }
  /// @pre it is no new token's
  [[nodiscard]] std::int64_t from(std::int64_t channels) const {
    return token < 0 ? head.moved_offset(slot, channels) : head.token_offset(token, channels);
  }
};

/// @brief Updates the scored slots of heads that have any, before the rings' rows are overwritten.
/// @param cache  `max_scored()`, `slack()` and `scored_head(segment, length, count, high_water)` as of `RollingAppend`
/// @param make   () to a thread's memory
/// @param move   (memory, segment, `SlotRow`) writes a slot's row
template <class Cache, class Make, class Move>
void append_scored(AppendShape const& shape, std::int64_t layers, Cache const& cache, RollingScoresView const& records,
                   TokenScores const& scores, AppendedTokens const& tokens, Make const& make, Move const& move) {
  if (cache.max_scored() == 0) return;
  LayerHeads const& heads = shape.heads;
  std::int64_t const first = heads.first(shape.first_layer);
  std::int64_t const end = heads.first(shape.first_layer + layers);
  constexpr std::int64_t few_slots = 1 << 14;  // looked at
  bool const share = (end - first) * shape.num_sequences * shape.max_count * cache.max_scored() > few_slots;
  parallel_for((end - first) * shape.num_sequences, 1, share, make, [&](auto& memory, std::int64_t h) {
    Segment const segment = segment_at(first * shape.num_sequences + h, shape.num_sequences, heads);
    auto const b = static_cast<std::size_t>(segment.sequence);
    std::int64_t const count = tokens.counts[b];
    std::int64_t const length = tokens.lengths[b];
    if (count == 0) return;
    auto const of = cache.scored_head(segment, length, count, tokens.high_water[b]);
    if (of.head.scored == 0) return;
    using Row = SlotRow<std::remove_const_t<decltype(of)>>;
    for (std::int64_t i = 0, n = of.moved_slots(length); i < n; ++i) move(memory, segment, Row{of, i, -1, -1});
    ScoredAppend<OneLane> const append{
        {},
        of.head,
        records.of(of.head, heads.first(segment.layer) + segment.kv_head, segment.sequence),
        cache.slack(),
        length,
        count,
        tokens.high_water[b],
        scores.of(segment.layer - shape.first_layer, segment.sequence, segment.kv_head)};
    if (append.run().count == 0) return;
    std::int64_t const used = of.head.scored_used(length + count);
    for (std::int64_t i = 0; i < used; ++i) {
      if (!append.has_new(i)) continue;
      std::int64_t const token = append.of.slots[i].token;
      move(memory, segment, Row{of, i, token, token < length ? -1 : token - length});
    }
  });
}

/// The same with plain rows. @param buffers  (new tokens' layer) to `CacheBuffers`
template <class Cache, class U, class Source, class Buffers>
void append_scored_rows(AppendShape const& shape, Cache const& cache, std::span<LayerKv<U> const> tokens,
                        Source const& source, Buffers const& buffers, RollingScoresView const& records,
                        TokenScores const& scores, AppendedTokens const& appended) {
  using T = std::remove_const_t<U>;
  struct None {};
  append_scored(
      shape, static_cast<std::int64_t>(tokens.size()), cache, records, scores, appended, [] { return None{}; },
      [&](None, Segment const& segment, auto const& row) {
        auto const i = static_cast<std::size_t>(segment.layer - shape.first_layer);
        CacheBuffers<T> const to = buffers(i);
        auto const move = [&](auto const& layout, std::int64_t channels, U const* news, T* data) {
          T* const kept = data + row.to(channels);
          if (row.new_token < 0) {
            std::memcpy(kept, data + row.from(channels), static_cast<std::size_t>(channels) * sizeof(T));
            return;
          }
          for (std::int64_t c = 0; c < channels; ++c) {
            kept[c] = news[layout.offset(segment.sequence, segment.kv_head, row.new_token, c)];
          }
        };
        move(keys_of(layer_source(source, i)), to.channels.head_dim, tokens[i].keys, to.data.keys);
        if (to.channels.value_dim == 0) return;
        move(values_of(layer_source(source, i)), to.channels.value_dim, tokens[i].values, to.data.values);
      });
}

/// Copies scores and records of a head to another sequence. @param index  of the head
inline void copy_records(RollingHead const& head, std::int64_t index, RollingScoresView const& records,
                         std::int32_t from, std::int32_t to) {
  if (head.scored == 0) return;
  std::memcpy(records.memory + records.first_unit(index, to), records.memory + records.first_unit(index, from),
              static_cast<std::size_t>(RollingScoresView::units(head)) * sizeof(RollingScoresView::Unit));
}

/// @brief Copies scores and records of a head to another sequence, and rows of the slots that may show something.
/// @param move  (first slot, slots)
template <class Move>
void copy_scored(RollingHead const& head, std::int64_t index, RollingState const& state,
                 RollingScoresView const& records, std::int32_t from, std::int32_t to, Move const& move) {
  if (head.scored == 0) return;
  copy_records(head, index, records, from, to);
  move(head.ring_end(), head.scored_used(state.length(from)));
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
