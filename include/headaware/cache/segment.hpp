#pragma once

/// @file
/// Segments: one KV head of one sequence in one layer, the unit of compaction.

#include <headaware/config.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/prune.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One (layer, sequence, KV head). Segments are numbered in this order: the heads of a sequence in a layer side
/// by side, then the layer's next sequence. With `LayerHeads h` a segment's number is
/// `h.first(layer) * num_sequences + sequence * h.count(layer) + kv_head`.
struct SegmentName {
  std::int32_t layer = 0;
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;

  friend constexpr bool operator==(SegmentName const&, SegmentName const&) = default;
};

/// @brief A segment and its sizes.
struct Segment {
  std::int64_t index = 0;
  std::int32_t layer = 0;
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
  std::int64_t length = 0;      ///< tokens before
  std::int64_t kept = 0;        ///< tokens after
  std::int64_t first_row = 0;   ///< first row in the layer: rows that earlier segments keep
  std::int32_t group_head = 0;  ///< place among the heads of its group (grouped caches)
  bool full_group = false;      ///< belongs to the group of `Full` heads (grouped caches)

  [[nodiscard]] HEADAWARE_HOST_DEVICE SegmentName name() const { return {layer, sequence, kv_head}; }
};

/// @brief Rows of one layer's buffers, as far as the form of the cache needs them.
struct LayerCapacity {
  std::int64_t rows = 0;            ///< all rows
  std::int64_t head_rows = 0;       ///< padded: rows per head; grouped: rows per window head
  std::int64_t full_head_rows = 0;  ///< grouped: rows per `Full` head
  std::int32_t full_heads = 0;      ///< grouped: number of `Full` heads
  std::int32_t window_heads = 0;    ///< grouped: number of heads that keep a bounded number of tokens
  std::int32_t num_kv_heads = 0;    ///< KV heads of the layer
  std::int32_t page_size = 0;       ///< paged: tokens per page of the layer; 0: the form's

  friend constexpr bool operator==(LayerCapacity const&, LayerCapacity const&) = default;
};

namespace detail {

/// Calls `f` with the segment's policy; tables whose policies depend on the sequence are told which.
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table, class F>
HEADAWARE_HOST_DEVICE auto visit_policy(Table const& table, std::int32_t layer, std::int32_t sequence,
                                        std::int32_t kv_head, F&& f) {
  if constexpr (requires { table.visit(layer, sequence, kv_head, f); }) {
    return table.visit(layer, sequence, kv_head, f);
  } else {
    return table.visit(layer, kv_head, f);
  }
}

struct KeptCount {
  std::int64_t length;
  template <class P>
  HEADAWARE_HOST_DEVICE std::int64_t operator()(P const& policy) const {
    return kept_count(policy, length);
  }
};

/// Layer, sequence and KV head of a segment.
HEADAWARE_HOST_DEVICE inline Segment segment_at(std::int64_t index, std::int32_t num_sequences,
                                                LayerHeads const& heads) {
  Segment segment;
  segment.index = index;
  if (heads.first_heads == nullptr) {
    segment.kv_head = static_cast<std::int32_t>(index % heads.num_kv_heads);
    segment.sequence = static_cast<std::int32_t>(index / heads.num_kv_heads % num_sequences);
    segment.layer = static_cast<std::int32_t>(index / heads.num_kv_heads / num_sequences);
    return segment;
  }
  segment.layer = heads.layer_of(index, num_sequences);
  std::int64_t const within = index - heads.first(segment.layer) * num_sequences;
  std::int32_t const count = heads.count(segment.layer);
  segment.kv_head = static_cast<std::int32_t>(within % count);
  segment.sequence = static_cast<std::int32_t>(within / count);
  return segment;
}

/// Sets what a segment of this length keeps.
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table>
HEADAWARE_HOST_DEVICE void count_kept(Table const& table, std::int64_t length, Segment& segment) {
  segment.length = length;
  segment.kept = visit_policy(table, segment.layer, segment.sequence, segment.kv_head, KeptCount{length});
}

/// A segment without its place in the cache (`first_row`).
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table>
HEADAWARE_HOST_DEVICE Segment make_segment(Table const& table, std::int64_t index, std::int32_t num_sequences,
                                           std::int32_t const* lengths) {
  Segment segment = segment_at(index, num_sequences, layer_heads(table));
  count_kept(table, lengths[segment.sequence], segment);
  return segment;
}

/// Group of a policy in a grouped cache.
enum class HeadGroup : std::uint8_t { none, window, full };

struct GroupOf {
  template <class P>
  HEADAWARE_HOST_DEVICE HeadGroup operator()(P const&) const {
    if constexpr (std::is_same_v<P, Full>) {
      return HeadGroup::full;
    } else if constexpr (std::is_same_v<P, Prune>) {
      return HeadGroup::none;
    } else {
      return HeadGroup::window;
    }
  }
};

/// A head's group is one for all sequences. Where policies depend on the sequence, a head is `full` if every
/// sequence that keeps anything of it keeps all.
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table>
HEADAWARE_HOST_DEVICE HeadGroup group_of(Table const& table, std::int32_t layer, std::int32_t kv_head) {
  if constexpr (requires { table.num_sequences(); }) {
    HeadGroup group = HeadGroup::none;
    for (std::int32_t sequence = 0; sequence < table.num_sequences() && group != HeadGroup::window; ++sequence) {
      HeadGroup const here = visit_policy(table, layer, sequence, kv_head, GroupOf{});
      if (here != HeadGroup::none) group = here;
    }
    return group;
  } else {
    return visit_policy(table, layer, 0, kv_head, GroupOf{});
  }
}

}  // namespace detail

/// @brief Sets the segment's place in its group of heads (`full_group`, `group_head`): heads keep their order.
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table>
HEADAWARE_HOST_DEVICE void place_in_group(Table const& table, Segment& segment) {
  detail::HeadGroup const group = detail::group_of(table, segment.layer, segment.kv_head);
  segment.full_group = group == detail::HeadGroup::full;
  segment.group_head = 0;
  for (std::int32_t head = 0; head < segment.kv_head; ++head) {
    segment.group_head += detail::group_of(table, segment.layer, head) == group ? 1 : 0;
  }
}

namespace detail {

/// The first row whose token moves; tokens never move to a later row, so `source_token(row) - row` ascends.
/// An entry of a keep-list that names no token counts as moved: no row before it may be passed over.
HEADAWARE_EXEC_CHECK_DISABLE
template <class P>
HEADAWARE_HOST_DEVICE std::int64_t first_moved_row(P const& policy, std::int64_t kept, std::int64_t length) {
  std::int64_t low = 0;
  std::int64_t high = kept;
  while (low < high) {
    std::int64_t const middle = low + (high - low) / 2;
    if (source_token(policy, middle, length) != middle) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
