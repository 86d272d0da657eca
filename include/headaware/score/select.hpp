#pragma once

/// @file
/// Selection by scores on the CPU: the best tokens of every KV head beside its sinks and its window, as keep-lists that
/// `compress` takes through `WithKeepLists`.

#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/detail/score_order.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/window_rule.hpp>
#include <headaware/score/selection.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A segment's tokens on their way to being selected.
struct SelectedSegment {
  WindowRange range{};             ///< its sinks and its window
  SelectionThreshold threshold{};  ///< of the others
  std::int64_t selected = 0;       ///< so many of the others

  [[nodiscard]] std::int64_t others() const { return range.begin - range.sinks; }
  [[nodiscard]] std::int64_t count() const { return range.count() + selected; }
  [[nodiscard]] bool selects(float const* scores, std::int64_t token) const {
    return threshold.selects(score_key(scores[token]), static_cast<std::int32_t>(token));
  }
};

/// Selects a segment's best `count` of the tokens beside sinks and window. @pre 0 <= count <= others
/// @param keys  memory for a key and a token each
inline void select_best(float const* scores, std::int64_t count, std::vector<std::uint64_t>& keys,
                        SelectedSegment& segment) {
  segment.selected = count;
  if (count == segment.others()) segment.threshold = SelectionThreshold::all();
  if (count == 0) segment.threshold = {};
  if (count == 0 || count == segment.others()) return;
  keys.clear();
  for (std::int64_t token = segment.range.sinks; token < segment.range.begin; ++token) {
    keys.push_back(std::uint64_t{score_key(scores[token])} << 32 | static_cast<std::uint64_t>(token));
  }
  auto const last = keys.begin() + (count - 1);
  std::nth_element(keys.begin(), last, keys.end(), std::greater<>());
  segment.threshold = {static_cast<std::uint32_t>(*last >> 32), static_cast<std::int32_t>(*last & 0x7fffffffU)};
}

/// Lets a sequence's heads share the best `count` of the tokens that none of them has selected by itself.
/// @param of      the sequence's segments, as they are numbered @param keys  memory for a key each
inline void share_best(SegmentScores const& scores, std::int64_t count, std::span<std::int64_t const> of,
                       std::vector<SelectedSegment>& segments, std::vector<std::uint32_t>& keys) {
  auto const for_each_left = [&](std::int64_t s, auto const& f) {
    SelectedSegment const& segment = segments[static_cast<std::size_t>(s)];
    float const* const own = scores.data + s * scores.stride;
    for (std::int64_t token = segment.range.begin - 1; token >= segment.range.sinks; --token) {
      if (!segment.selects(own, token)) f(score_key(own[token]), static_cast<std::int32_t>(token));
    }
  };
  keys.clear();
  for (std::int64_t const s : of) for_each_left(s, [&](std::uint32_t key, std::int32_t) { keys.push_back(key); });
  count = std::min(count, std::ssize(keys));
  if (count <= 0) return;
  auto const last = keys.begin() + (count - 1);
  std::nth_element(keys.begin(), last, keys.end(), std::greater<>());
  std::uint32_t const worst = *last;
  std::int64_t ties = count - std::count_if(keys.begin(), last, [&](std::uint32_t key) { return key > worst; });
  for (std::int64_t const s : of) {
    SelectionThreshold threshold{worst, 0x7fffffff};
    std::int64_t more = 0;
    for_each_left(s, [&](std::uint32_t key, std::int32_t token) {
      if (key < worst || (key == worst && ties == 0)) return;
      ++more;
      if (key > worst) return;
      threshold.token = token;  // the oldest tie so far, of those from the newest on
      --ties;
    });
    SelectedSegment& segment = segments[static_cast<std::size_t>(s)];
    segment.threshold = SelectionThreshold::weaker(segment.threshold, threshold);
    segment.selected += more;
  }
}

inline void check_selection_on_host(SelectionShape const& shape, SelectionRule const& rule) {
  constexpr auto where = "select_tokens";
  for (std::int32_t sequence = 0; sequence < shape.num_sequences; ++sequence) {
    std::int32_t const length = shape.lengths[sequence];
    require(length >= 0 && length <= shape.max_length, "length of a sequence",
            {"in [0, ", shape.max_length, "], max_length"}, length, {where, ", sequence ", sequence});
  }
  (void)selection_stride(shape, rule);  // refuses negative windows and budgets
}

}  // namespace detail

/// @brief Selects the tokens that every KV head keeps: its sinks, its window, and the best of the others by their
/// scores; on the CPU.
/// @param shape   of one layer or several; host pointers
/// @param scores  [segments, stride]; host. Those of sinks and windows are not read
/// @param rule    budgets of heads, or one threshold for all heads of a sequence; host pointers
/// @param to      tokens, lists and counts; host. Each list borrows the segment's tokens
/// @throws ArgumentError before anything is written: on negative numbers, null or misaligned pointers, lengths above
///         `max_length`, strides too small, and budgets of heads beside shared tokens
/// @note   Deterministic: equal scores are told apart by the rule's words, and the result does not depend on the number
///         of threads. It is the device's.
/// @par Cost  O(tokens of all segments), a selection without sorting; 8 bytes a thread for every token of a segment, or
///            4 for every token that one threshold chooses from
/// @par Source  budgets of heads: AdaKV, arXiv:2407.11550; one threshold for the model: KVzip, arXiv:2505.23416
template <class = void>
void select_tokens(SelectionShape const& shape, SegmentScores const& scores, SelectionRule const& rule,
                   SelectedTokens const& to) {
  constexpr auto where = "select_tokens";
  if (!detail::check_selection(shape, scores, rule, to)) return;
  detail::check_selection_on_host(shape, rule);
  std::int64_t const count = shape.num_segments();
  std::vector<detail::SelectedSegment> segments(static_cast<std::size_t>(count));
  std::vector<std::vector<std::int64_t>> sequences(static_cast<std::size_t>(shape.num_sequences));
  for (std::int64_t s = 0; s < count; ++s) {
    Segment const segment = detail::segment_at(s, shape.num_sequences, shape.heads);
    sequences[static_cast<std::size_t>(segment.sequence)].push_back(s);
    segments[static_cast<std::size_t>(s)].range =
        detail::selection_range(rule, detail::selection_head(shape.heads, segment), shape.lengths[segment.sequence]);
  }
  bool const share = count * scores.stride > 16384;  // less than that does not pay for waking threads
  detail::parallel_for(
      count, 1, share, [] { return std::vector<std::uint64_t>(); },
      [&](std::vector<std::uint64_t>& keys, std::int64_t s) {
        auto& segment = segments[static_cast<std::size_t>(s)];
        Segment const name = detail::segment_at(s, shape.num_sequences, shape.heads);
        std::int64_t const own =
            detail::own_selected(rule, detail::selection_head(shape.heads, name), segment.others());
        detail::select_best(scores.data + s * scores.stride, own, keys, segment);
      });
  if (rule.budgets == nullptr) {
    detail::parallel_for(
        shape.num_sequences, 1, share, [] { return std::vector<std::uint32_t>(); },
        [&](std::vector<std::uint32_t>& keys, std::int64_t sequence) {
          auto const& of = sequences[static_cast<std::size_t>(sequence)];
          std::int64_t left = rule.shared;
          for (std::int64_t const s : of) left -= segments[static_cast<std::size_t>(s)].selected;
          detail::share_best(scores, left, of, segments, keys);
        });
  }
  for (std::int64_t s = 0; s < count; ++s) {
    std::int64_t const kept = segments[static_cast<std::size_t>(s)].count();
    require(kept <= to.stride, "tokens that a head keeps", {"at most the stride of tokens, ", to.stride}, kept,
            {where, ", segment ", s});
  }
  struct None {};
  detail::parallel_for(
      count, 1, share, [] { return None{}; },
      [&](None, std::int64_t s) {
        auto const& segment = segments[static_cast<std::size_t>(s)];
        std::int32_t* const tokens = to.tokens + s * to.stride;
        std::int32_t* next = tokens;
        auto const take = [&](std::int64_t token) { *next++ = static_cast<std::int32_t>(token); };
        for (std::int64_t token = 0; token < segment.range.sinks; ++token) take(token);
        float const* const own = scores.data + s * scores.stride;
        for (std::int64_t token = segment.range.sinks; token < segment.range.begin; ++token) {
          if (segment.selects(own, token)) take(token);
        }
        for (std::int64_t token = segment.range.begin; token < segment.range.length; ++token) take(token);
        if (to.counts != nullptr) to.counts[s] = static_cast<std::int32_t>(segment.count());
        if (to.lists != nullptr) to.lists[s] = {tokens, segment.count()};
      });
}

/// @brief Selected tokens with the memory that they lie in: made by the `select_tokens` that returns them. Moves; a
/// copy's lists would be of the original's tokens.
class TokenLists {
 public:
  TokenLists(std::int64_t segments, std::int64_t stride)
      : tokens_(static_cast<std::size_t>(segments * stride)), lists_(static_cast<std::size_t>(segments)) {}
  TokenLists(TokenLists const&) = delete;
  TokenLists& operator=(TokenLists const&) = delete;
  TokenLists(TokenLists&&) = default;
  TokenLists& operator=(TokenLists&&) = default;
  ~TokenLists() = default;

  /// [segments], for `WithKeepLists`; valid while these live.
  [[nodiscard]] std::span<KeepList const> lists() const { return lists_; }
  /// A segment's tokens, ascending.
  [[nodiscard]] std::span<std::int32_t const> of(std::int64_t segment) const {
    require_index(segment, std::ssize(lists_), "segment", "TokenLists::of");
    KeepList const& list = lists_[static_cast<std::size_t>(segment)];
    return {list.tokens, static_cast<std::size_t>(list.count)};
  }
  /// Tokens of all segments.
  [[nodiscard]] std::int64_t total() const {
    std::int64_t tokens = 0;
    for (KeepList const& list : lists_) tokens += list.count;
    return tokens;
  }
  [[nodiscard]] SelectedTokens destination(std::int64_t stride) {
    return {tokens_.data(), stride, lists_.data(), nullptr};
  }

 private:
  std::vector<std::int32_t> tokens_;
  std::vector<KeepList> lists_;
};

/// @brief The same into memory of its own.
template <class = void>
[[nodiscard]] TokenLists select_tokens(SelectionShape const& shape, SegmentScores const& scores,
                                       SelectionRule const& rule) {
  std::int64_t const stride = selection_stride(shape, rule);
  TokenLists result(shape.num_segments(), stride);
  select_tokens(shape, scores, rule, result.destination(stride));
  return result;
}

HEADAWARE_NAMESPACE_END
