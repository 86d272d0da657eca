#pragma once

/// @file
/// Sizes of what is selected on a device, for the host that allocates: `Compaction` takes lists by their counts alone.

#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/window_rule.hpp>
#include <headaware/score/selection.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Lists of tokens on a device with counts that were copied from it (`SelectedTokens::counts`, 4 bytes a
/// segment): after one threshold over several layers, whose heads share tokens as only the device knows.
/// @param counts  [segments], host
/// @param to      of the `device::select_tokens` that counted them
template <class = void>
[[nodiscard]] std::vector<KeepList> selected_lists(std::span<std::int32_t const> counts, SelectedTokens const& to) {
  std::vector<KeepList> lists;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    std::int64_t const count = counts[s];
    require(count >= 0 && count <= to.stride, "tokens of a segment", {"in [0, ", to.stride, "]"}, count,
            {"selected_lists, segment ", s});
    lists.push_back({to.tokens + static_cast<std::int64_t>(s) * to.stride, count});
  }
  return lists;
}

/// @brief Lists of tokens on a device with the counts that a selection will give, known before it runs.
///
/// By budgets of heads they are each head's. By one threshold over a single layer, how many tokens a head gets is not
/// known, but how many all heads of a sequence get is: the lists' counts add up to that, which is what a ragged cache's
/// buffers and `Compaction::on_device` need (the heads' own counts are read on the device). Padded and paged caches
/// need those of every head: copies of the counts.
/// @param shape  host pointers @param rule  host pointers
/// @param to     of the `device::select_tokens` that selects; its pointers are not read
/// @throws ArgumentError on negative numbers, and for one threshold over several layers
template <class = void>
[[nodiscard]] std::vector<KeepList> selected_lists(SelectionShape const& shape, SelectionRule const& rule,
                                                   SelectedTokens const& to) {
  constexpr auto where = "selected_lists";
  (void)selection_stride(shape, rule);  // refuses negative numbers
  require(rule.budgets != nullptr || shape.heads.num_layers <= 1, "layers that one threshold is over",
          "one, or counts that were copied from the device", shape.heads.num_layers, where);
  std::int64_t const segments = shape.num_segments();
  require(segments == 0 || shape.lengths != nullptr, "lengths", "a pointer", "nullptr", where);
  std::vector<KeepList> lists(static_cast<std::size_t>(segments));
  std::vector<std::int64_t> others(lists.size());
  std::vector<std::int64_t> left(static_cast<std::size_t>(shape.num_sequences), rule.shared);
  auto const add = [&](std::int64_t s, std::int64_t tokens) {
    lists[static_cast<std::size_t>(s)].count += tokens;
    others[static_cast<std::size_t>(s)] -= tokens;
  };
  for (std::int64_t s = 0; s < segments; ++s) {
    Segment const segment = detail::segment_at(s, shape.num_sequences, shape.heads);
    std::int64_t const head = detail::selection_head(shape.heads, segment);
    WindowRange const range = detail::selection_range(rule, head, shape.lengths[segment.sequence]);
    lists[static_cast<std::size_t>(s)] = {to.tokens + s * to.stride, range.count()};
    others[static_cast<std::size_t>(s)] = range.begin - range.sinks;
    std::int64_t const own = detail::own_selected(rule, head, range.begin - range.sinks);
    left[static_cast<std::size_t>(segment.sequence)] -= own;
    add(s, own);
  }
  for (std::int64_t s = 0; rule.budgets == nullptr && s < segments; ++s) {
    auto const sequence = static_cast<std::size_t>(detail::segment_at(s, shape.num_sequences, shape.heads).sequence);
    std::int64_t const more = std::clamp<std::int64_t>(left[sequence], 0, others[static_cast<std::size_t>(s)]);
    left[sequence] -= more;
    add(s, more);
  }
  return lists;
}

HEADAWARE_NAMESPACE_END
