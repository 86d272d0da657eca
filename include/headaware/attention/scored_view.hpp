#pragma once

/// @file
/// A rolling cache with scored slots (`cache/scored_append.hpp`) as attention reads it.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/check_windows.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/attention/scored_rows.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

using ScoredRows = BasicScoredRows<RollingRows>;

/// @brief One layer of a rolling cache whose heads may have scored slots: from its layer's base pointers.
///
/// Made by hand, `{slots, records, layer, lengths}`, it shows what the newest token sees: decoding. `of_chunk` is for
/// several. Where heads have scored slots and the cache has slack, or several tokens are new, attention needs
/// `first_positions`, for a token more: which slots are shown depends on the query. It takes no window of the call.
struct ScoredView {
  RollingSlotsView slots;     ///< `RollingSlots::view()` or `view_at`, where the back end runs
  RollingScoresView records;  ///< `RollingScores::view()` or `view_at`, likewise
  std::int32_t layer = 0;
  std::int32_t const* lengths = nullptr;  ///< [num_sequences], tokens seen; host or device
  std::int64_t query_tokens = 1;          ///< the newest ones, of which each sees its own window
  std::int32_t const* counts = nullptr;   ///< as `RollingView::counts`

  /// @brief The rows that the newest tokens see, each what it saw, or would have seen, going token by token: a chunk or
  /// a draft, appended in one call or in several.
  /// @param query_tokens, counts  as of `RollingView::of_chunk`
  /// @throws ArgumentError if there is no such layer, or if rows that the first of the tokens saw may be overwritten:
  ///         the cache's `slack` is less than query_tokens - 1
  [[nodiscard]] static ScoredView of_chunk(RollingSlotsView const& slots, RollingScoresView const& records,
                                           std::int32_t layer, std::int32_t const* lengths, std::int64_t query_tokens,
                                           std::int32_t const* counts = nullptr) {
    detail::check_chunk(query_tokens, slots.slack, "ScoredView");
    require_index(layer, slots.num_layers, "layer", "ScoredView");
    return {slots, records, layer, lengths, query_tokens, counts};
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE ScoredRows head(std::int64_t sequence, std::int64_t kv_head) const {
    RollingHead const& head = slots.head(layer, kv_head);
    std::int64_t tokens = query_tokens;
    if (counts != nullptr && counts[sequence] < tokens) tokens = counts[sequence] > 1 ? counts[sequence] : 1;
    std::int64_t const length = detail::global_pointer(lengths)[sequence];
    ScoredRows rows{RollingRows::of(head, sequence, head.rule.range_of_queries(length, tokens))};
    if (head.scored == 0) return rows;
    rows.first_scored = static_cast<std::int32_t>(head.ring_end());
    rows.show(head, records.of(head, slots.layer_heads().first(layer) + kv_head, sequence).slots, length, tokens,
              slots.slack);
    return rows;
  }
  void check(AttentionShape const& shape, AttentionOptions const& options) const {
    constexpr auto where = "attend, ScoredView";
    require_index(layer, slots.num_layers, "layer", where);
    detail::check_windowed_call(shape, options, slots.num_sequences, slots.layer_heads(), query_tokens, where);
    detail::check_scores(slots, records, where);
    require_pointer(slots.heads, "slots", where);
    require_pointer(lengths, "lengths", where);
    detail::check_scored_call(slots.max_scored, slots.slack, shape, options, where);
  }
  void check_tables(AttentionShape const& shape) const {
    detail::check_layer_heads(shape, slots.layer_heads(), layer, "attend, ScoredView");
    std::int64_t const most = slots.token_limit > 0 ? slots.token_limit : std::int64_t{all_tokens};
    for (std::int64_t b = 0; b < shape.num_sequences; ++b) {
      require(lengths[b] >= 0 && lengths[b] <= most, "length", {"in [0, ", most, "]"}, lengths[b],
              {"attend, ScoredView, sequence ", b});
    }
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }
};
static_assert(KeptView<ScoredView>);

HEADAWARE_NAMESPACE_END
