#pragma once

/// @file
/// A rolling cache of encoded rows whose newest tokens, and sinks, are exact: an append writes them into a small
/// rolling cache of plain rows, too, and attention reads that in place of their codes. On CUDA: `exact_ring.cuh`.

#include <headaware/attention/attend.hpp>
#include <headaware/attention/attention.hpp>
#include <headaware/attention/merge.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/window_rule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Tokens of a head that its ring shows exactly, of those that the head keeps: [0, sinks) and those from `begin` on.
struct ExactTokens {
  std::int32_t sinks = 0;
  std::int32_t begin = 0;

  [[nodiscard]] HEADAWARE_HOST_DEVICE static ExactTokens of(BasicWindowRange<std::int32_t> const& kept,
                                                            BasicWindowRange<std::int32_t> const& ring) {
    bool const whole = kept.is_whole();
    std::int32_t const last_sink = whole ? kept.length : kept.sinks;
    std::int32_t const sinks = ring.sinks < last_sink ? ring.sinks : last_sink;
    std::int32_t const begin = whole || ring.begin > kept.begin ? ring.begin : kept.begin;
    return {sinks, begin > sinks ? begin : sinks};
  }
};

/// A run of a rolling head's rows after some of its first ones.
struct SomeRows {
  RollingRows all;
  WindowRule rule;             ///< of what queries see
  std::int32_t leading = 0;    ///< rows from the first one on
  std::int32_t following = 0;  ///< the row after them
  std::int32_t count = 0;      ///< of both together

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return count; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return all.offset(of(row), channels);
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const { return all.position(of(row)); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool sees(std::int64_t position, std::int64_t query) const {
    return rule.sees(position, query, all.tokens.length);
  }

 private:
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t of(std::int64_t row) const {
    return row < leading ? row : row - leading + following;
  }
};

/// A rolling cache and its ring, as both parts of their attention read them.
struct RingedViews {
  RollingView view;
  RollingView ring;

  void check(AttentionShape const& shape, AttentionOptions const& options) const {
    constexpr auto where = "attend, exact ring";
    view.check(shape, options);
    ring.check(shape, options);
    require(view.query_tokens == ring.query_tokens, "query tokens of the ring", view.query_tokens, ring.query_tokens,
            where);
    require(view.slots.num_sequences == ring.slots.num_sequences, "sequences of the ring", view.slots.num_sequences,
            ring.slots.num_sequences, where);
    require(view.lengths == ring.lengths, "lengths of the ring", "those of the cache", "others", where);
  }
  void check_tables(AttentionShape const& shape) const {
    view.check_tables(shape);
    ring.check_tables(shape);
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }
};

}  // namespace detail

/// @brief The rows of a rolling cache but those of tokens that its ring shows: the one part of the attention.
struct BesideRingView : detail::RingedViews {
  [[nodiscard]] HEADAWARE_HOST_DEVICE detail::SomeRows head(std::int64_t sequence, std::int64_t kv_head) const {
    RollingRows const rows = view.head(sequence, kv_head);
    auto const exact = detail::ExactTokens::of(rows.tokens, ring.head(sequence, kv_head).tokens);
    // Rows ascend by token: what the ring shows are the first ones and the last.
    auto const first = static_cast<std::int32_t>(rows.tokens.kept_before(exact.sinks));
    auto const end = static_cast<std::int32_t>(rows.tokens.kept_before(exact.begin));
    return {rows, rows.rule, 0, first, end - first};
  }
};
static_assert(KeptView<BesideRingView>);

/// @brief The rows of a ring that its cache keeps: the other part.
struct OfRingView : detail::RingedViews {
  [[nodiscard]] HEADAWARE_HOST_DEVICE detail::SomeRows head(std::int64_t sequence, std::int64_t kv_head) const {
    RollingRows const rows = ring.head(sequence, kv_head);
    RollingRows const kept = view.head(sequence, kv_head);
    auto const exact = detail::ExactTokens::of(kept.tokens, rows.tokens);
    auto const following = static_cast<std::int32_t>(rows.tokens.kept_before(exact.begin));
    // The cache's rule says what a query sees, not the ring's: of several queries the last ones see more than their own
    // ring, as the ring has it for the first.
    return {rows, kept.rule, exact.sinks, following,
            exact.sinks + static_cast<std::int32_t>(rows.tokens.count()) - following};
  }
};
static_assert(KeptView<OfRingView>);

/// @brief One layer of a rolling cache of encoded rows with an exact ring beside it. @tparam T of the ring's elements
template <class Registry, class T>
struct RingedCache {
  PackedCache<Registry, RollingView> packed;
  KeptCache<T, RollingView> ring;

  /// The packed rows of tokens that the ring does not show.
  [[nodiscard]] PackedCache<Registry, BesideRingView> beside() const {
    return {packed.rows, packed.segments, {{packed.view, ring.view}}};
  }
  /// The ring's rows of tokens that the cache keeps.
  [[nodiscard]] KeptCache<T, OfRingView> of_ring() const {
    return {ring.keys, ring.values, {{packed.view, ring.view}}};
  }
};

/// @brief The slots of a cache that has a ring beside it, for calls that ask for counters or change them (`start`,
/// `rollback`, `advance`, `max_rollback`, on host and device): both allow what these do. A ring wraps long before its
/// cache does, and shows tokens that are gone where more are rolled back than it has slack for.
[[nodiscard]] inline RollingSlotsView with_ring(RollingSlotsView const& slots, RollingSlotsView const& ring_slots) {
  RollingSlotsView both = slots;
  both.free_length = std::min(slots.free_length, ring_slots.free_length);
  both.token_limit = std::min(slots.token_limit, ring_slots.token_limit);
  return both;
}

namespace detail {

/// Throws unless the ring's slots are of the cache's layers and sequences.
inline void check_ring_slots(RollingSlotsView const& slots, RollingSlotsView const& ring_slots) {
  constexpr auto where = "append";
  refuse_scored(slots, where);
  refuse_scored(ring_slots, where);
  require(ring_slots.num_layers == slots.num_layers, "layers of the ring", slots.num_layers, ring_slots.num_layers,
          where);
  require(ring_slots.num_sequences == slots.num_sequences, "sequences of the ring", slots.num_sequences,
          ring_slots.num_sequences, where);
  require(ring_slots.slack == slots.slack, "slack of the ring", slots.slack, ring_slots.slack, where);
}

}  // namespace detail

/// @brief Appends new tokens of every sequence on the CPU into encoded slots and into the ring, each read once more at
/// most: a token that leaves the ring is in its slot already, so nothing is written or read again later.
///
/// A prompt is compressed into both, and a fork copies both (`copy_sequences`, once each); the state is one.
/// @param slots, state, tokens, source, counts, packed, options  as the `append` into encoded rows
/// @param ring_slots  of the same layers, heads and sequences, a policy such as `SinkWindow{4, 16}` for every head
/// @param ring        of these slots, rows of the tokens' type; made by `rolling`
/// @throws ArgumentError before anything is written, as both appends
/// @par Cost  O(bytes that stay) in both; no old byte is read or written
template <LayerRange Tokens, class Source, class Registry, class T>
void append(RollingSlotsView const& slots, RollingState& state, Tokens const& tokens, Source const& source,
            std::span<std::int32_t const> counts, PackedDestination<RollingSlotsView, Registry> const& packed,
            RollingSlotsView const& ring_slots, Destination<T, RollingSlotsView> const& ring,
            AppendOptions const& options = {}) {
  detail::check_ring_slots(slots, ring_slots);
  RollingSlotsView const both = with_ring(slots, ring_slots);
  state.check(both, counts, "append");
  auto const layers = layer_span(tokens);
  auto const of_packed = detail::check_host_append(both, layers, source, counts, packed, options);
  auto const of_ring = detail::check_host_append(ring_slots, layers, source, counts, ring, options);
  detail::append_checked(of_ring, ring_slots, state, layers, source, counts, ring, options);
  detail::append_checked(of_packed, both, state, layers, source, counts, packed, options);
  if (options.advance) state.advance(both, counts);
}

/// @brief Computes attention over a rolling cache of encoded rows whose newest tokens and sinks are exact: each token
/// once, from the ring where that shows it, else from its codes.
/// On CUDA attend to `RingedCache::beside` and to `of_ring`, and merge the two.
/// @param cache  views of the same lengths and query tokens: both `RollingView::of_chunk`, or both made by hand
/// @throws ArgumentError as the other `attend`, and if the two are of other sequences
/// @par Cost  The rows of both; the two outputs, which are merged. Allocates nothing once the thread has made room for
///            calls of this size
template <class Q, class QLayout, class Registry, class T, class O, class OLayout>
void attend(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries,
            RingedCache<Registry, T> const& cache, AttentionOutput<O, OLayout> const& output,
            AttentionOptions const& options = {}) {
  detail::check_attention(shape, queries, cache.of_ring(), output, options);
  require(!cache.packed.rotated_by_caller, "rotated_by_caller", "false: the ring's rows are not rotated", "true",
          "attend, exact ring");
  if (shape.num_sequences == 0 || shape.query_tokens == 0) return;
  std::int64_t const rows = std::int64_t{shape.num_sequences} * shape.num_query_heads * shape.query_tokens;
  thread_local detail::FloatBuffer buffers[2];
  auto const room = [&](detail::FloatBuffer& buffer) {
    return buffer.grow(static_cast<std::size_t>(rows * (shape.output_dim() + 1)));
  };
  auto const layout = strided_bhsd(shape.num_sequences, shape.num_query_heads, shape.query_tokens, shape.output_dim());
  auto const part = [&](float* data) { return AttentionOutput{data + rows, layout, data}; };
  AttentionOutput const whole = part(room(buffers[0]));
  AttentionOutput const newest = part(room(buffers[1]));
  AttentionOptions without_sinks = options;  // one of them counts once, in the merge
  without_sinks.sinks = nullptr;
  attend(shape, queries, cache.beside(), whole, without_sinks);
  attend(shape, queries, cache.of_ring(), newest, without_sinks);
  merge_attention(shape, whole, newest, options.sinks);
  detail::parallel_for(rows, 16, [&](std::int64_t i) {
    std::int64_t const token = i % shape.query_tokens;
    std::int64_t const head = i / shape.query_tokens % shape.num_query_heads;
    std::int64_t const sequence = i / shape.query_tokens / shape.num_query_heads;
    float const* const from = whole.data + i * shape.output_dim();
    for (std::int64_t c = 0; c < shape.output_dim(); ++c) {
      output.data[output.layout.offset(sequence, head, token, c)] = from_float<O>(from[c]);
    }
    if (output.lse != nullptr) output.lse[i] = whole.lse[i];
  });
}

HEADAWARE_NAMESPACE_END
