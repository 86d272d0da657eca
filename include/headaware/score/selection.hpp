#pragma once

/// @file
/// The arguments of selection by scores, the same for both back ends: which tokens of every KV head are kept beside its
/// sinks and its window.

#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/window_rule.hpp>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Scores of the tokens of all segments, which are numbered as `SegmentName` says: token t of segment s has
/// `data[s * stride + t]`.
///
/// Those of one layer are what `score_keys` merges into (`KeyScores`); those of several layers lie layer after layer.
/// NaN counts as the smallest score, less than -inf, and -0 as 0.
struct SegmentScores {
  float const* data = nullptr;  ///< host or device, where the back end runs
  std::int64_t stride = 0;      ///< elements from one segment to the next: at least the longest sequence's tokens
};

/// @brief The segments that are selected from.
struct SelectionShape {
  LayerHeads heads;  ///< KV heads of the layers; `first_heads` where the back end runs
  std::int32_t num_sequences = 0;
  /// [num_sequences], tokens of each sequence, host or device, where the back end runs
  std::int32_t const* lengths = nullptr;
  std::int64_t max_length = 0;  ///< no sequence is longer; the device counts tokens after it as not there

  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t num_segments() const {
    return heads.total() * num_sequences;
  }
};

/// @brief Tokens that heads keep: sinks and a window whatever their scores are, and the best of the others, by a budget
/// for every KV head or by one threshold for all.
///
/// Of equal scores of a head the newer token is kept; of equal scores of several heads, where one threshold cuts
/// between them, the earlier layer's, and within it the earlier head's.
struct SelectionRule {
  std::int32_t sink = 4;    ///< first tokens that every head keeps
  std::int32_t window = 0;  ///< newest tokens that every head keeps
  /// [heads.total()], in place of `window`, newest tokens of each KV head; host or device; nullptr: `window`
  std::int32_t const* windows = nullptr;
  /// [heads.total()], other tokens of each KV head, of every sequence alike; host or device. A head that has fewer
  /// keeps all. nullptr: one threshold
  std::int32_t const* budgets = nullptr;
  /// One threshold: other tokens that all KV heads of a sequence keep together. Where there are fewer, all are kept.
  std::int64_t shared = 0;
  /// One threshold: the fewest other tokens that every head keeps, if it has as many. They count as shared ones;
  /// `shared` of fewer than these is as many.
  std::int32_t floor = 0;
};

/// @brief Where the selected tokens go. Those of a segment ascend, sinks and window included.
struct SelectedTokens {
  std::int32_t* tokens = nullptr;  ///< [segments, stride], host or device; elements after a segment's count stay
  std::int64_t stride = 0;         ///< elements from one segment to the next, see `selection_stride`
  KeepList* lists = nullptr;       ///< [segments], host or device, what `WithKeepLists` takes; nullptr: not wanted
  std::int32_t* counts = nullptr;  ///< [segments], host or device, tokens of each; nullptr: not wanted
};

namespace detail {

/// A segment's worst selected token: greater keys are selected, and of its own key the tokens from its own on.
struct SelectionThreshold {
  std::uint32_t key = 0xffffffffU;  ///< beyond all keys: none is selected
  std::int32_t token = 0;

  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr bool selects(std::uint32_t k, std::int32_t t) const {
    return k > key || (k == key && t >= token);
  }
  /// What selects whatever one of them does.
  [[nodiscard]] HEADAWARE_HOST_DEVICE static constexpr SelectionThreshold weaker(SelectionThreshold const& a,
                                                                                 SelectionThreshold const& b) {
    return b.selects(a.key, a.token) ? b : a;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE static constexpr SelectionThreshold all() { return {0, 0}; }
};

/// A head among those of all layers, whatever the sequence.
HEADAWARE_HOST_DEVICE inline std::int64_t selection_head(LayerHeads const& heads, Segment const& segment) {
  return heads.first(segment.layer) + segment.kv_head;
}

/// The sinks and the window of a segment. @param length  of its sequence
HEADAWARE_HOST_DEVICE inline WindowRange selection_range(SelectionRule const& rule, std::int64_t head,
                                                         std::int64_t length) {
  std::int32_t const window = rule.windows != nullptr ? rule.windows[head] : rule.window;
  return WindowRule{rule.sink, window}.range(length);
}

/// Other tokens that a segment keeps whatever the others do: by its budget, or the floor. @param others  it has so many
HEADAWARE_HOST_DEVICE inline std::int64_t own_selected(SelectionRule const& rule, std::int64_t head,
                                                       std::int64_t others) {
  std::int64_t const wanted = rule.budgets != nullptr ? rule.budgets[head] : rule.floor;
  return wanted < 0 ? 0 : wanted < others ? wanted : others;
}

/// Checks what does not depend on numbers that may be on the device. @return whether there is anything to select from
inline bool check_selection(SelectionShape const& shape, SegmentScores const& scores, SelectionRule const& rule,
                            SelectedTokens const& to) {
  constexpr auto where = "select_tokens";
  require(shape.heads.num_layers >= 0, "layers", ">= 0", shape.heads.num_layers, where);
  require(shape.heads.num_kv_heads >= 0, "KV heads", ">= 0", shape.heads.num_kv_heads, where);
  require(shape.num_sequences >= 0, "sequences", ">= 0", shape.num_sequences, where);
  require(shape.max_length >= 0 && shape.max_length <= 0x7fffffff, "max_length", "in [0, 2147483647]", shape.max_length,
          where);
  require(rule.sink >= 0, "sink", ">= 0", rule.sink, where);
  require(rule.window >= 0, "window", ">= 0", rule.window, where);
  require(rule.shared >= 0, "shared tokens", ">= 0", rule.shared, where);
  require(rule.floor >= 0, "floor", ">= 0", rule.floor, where);
  require(rule.budgets == nullptr || (rule.shared == 0 && rule.floor == 0), "budgets of heads",
          "no shared tokens and no floor beside them", {rule.shared, " and ", rule.floor}, where);
  require(scores.stride >= shape.max_length, "stride of scores", {"at least max_length, ", shape.max_length},
          scores.stride, where);
  require(to.stride >= 0, "stride of tokens", ">= 0", to.stride, where);
  std::int64_t const segments = shape.num_segments();
  (void)elements(where, {segments, scores.stride});
  (void)elements(where, {segments, to.stride});
  require_aligned(scores.data, "scores", where);
  require_aligned(to.tokens, "tokens", where);
  require_aligned(to.lists, "lists", where);
  require_aligned(to.counts, "counts", where);
  if (segments == 0) return false;
  require_pointer(shape.lengths, "lengths", where);
  require_pointer(scores.data, "scores", where);
  require(to.tokens != nullptr || to.stride == 0, "tokens", "a pointer", "nullptr", where);
  return true;
}

}  // namespace detail

/// @brief A stride of tokens that suffices for every segment: the most that any KV head may keep.
/// @param shape  `lengths` are not read
/// @param rule   `budgets` and `windows` on the host, or null
/// @throws ArgumentError on negative numbers
template <class = void>
[[nodiscard]] std::int64_t selection_stride(SelectionShape const& shape, SelectionRule const& rule) {
  constexpr auto where = "selection_stride";
  std::int64_t most = 0;
  for (std::int64_t head = 0; head < shape.heads.total(); ++head) {
    std::int64_t const window = rule.windows != nullptr ? rule.windows[head] : rule.window;
    std::int64_t const budget = rule.budgets != nullptr ? rule.budgets[head] : shape.max_length;
    require(window >= 0, "window", ">= 0", window, {where, ", head ", head});
    require(budget >= 0, "budget", ">= 0", budget, {where, ", head ", head});
    most = std::max(most, std::min(shape.max_length, rule.sink + window + budget));
  }
  return most;
}

HEADAWARE_NAMESPACE_END
