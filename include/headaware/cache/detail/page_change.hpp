#pragma once

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/page_pool.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads_shape.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/fixed_divisor.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows of the block table for the heads of a cache.
inline HeadRecords<PagedHead> make_paged_heads(RollingSlots const& slots, PagedHeadsShape const& shape) {
  require(slots.view().max_scored == 0, "policy",
          "one of sinks and a window: of scored tokens take a rolling cache (cache/scored_append.hpp)",
          "sink_window_scored", "PagedHeads");
  HeadRecords<PagedHead> heads(HeadCounts(slots.heads()), {});
  std::int64_t entries = 0;
  for (std::int32_t layer = 0; layer < slots.num_layers(); ++layer) {
    for (std::int32_t kv_head = 0; kv_head < slots.heads().count(layer); ++kv_head) {
      std::int64_t const page_size = shape.page_size_of(slots.heads(), layer, kv_head);
      RollingHead const& block = slots.head(layer, kv_head);
      PagedHead& h = heads.at(layer, kv_head);
      h.first_entry = entries;
      h.rule = block.rule;
      h.page_size = FixedDivisor(static_cast<std::int32_t>(page_size));
      h.sink_pages = static_cast<std::int32_t>(pages_for(h.rule.sink, page_size));
      // A stretch of `ring` tokens that begins anywhere.
      h.ring_pages = block.ring == 0 ? 0 : static_cast<std::int32_t>(pages_for(block.ring - 1, page_size) + 1);
      entries += h.entries();
    }
  }
  for (PagedHead& h : heads.records()) h.sequence_entries = entries;
  return heads;
}

/// Changes of an append in one head of one sequence; pages by their place in the sequence.
struct PageChange {
  PagedHead const* head = nullptr;
  std::int32_t layer = 0;
  std::int32_t sequence = 0;
  std::int64_t length = 0;
  std::int64_t first_before = 0;    ///< the window's first page
  std::int64_t release_end = 0;     ///< pages [first_before, release_end) go back
  std::int64_t first = 0;           ///< the window's first page afterwards
  std::int64_t new_begin = 0;       ///< pages from here on are new,
  std::int64_t new_end = 0;         ///< up to here
  std::int64_t copy_on_write = -1;  ///< this page is replaced; -1: none
  std::int32_t kv_head = 0;

  [[nodiscard]] bool any() const { return first_before < release_end || new_begin < new_end || copy_on_write >= 0; }
  /// Calls `f(page)` for every page that is new.
  template <class F>
  void for_each_new(F const& f) const {
    for (std::int64_t p = new_begin; p < std::min<std::int64_t>(new_end, head->sink_pages); ++p) f(p);
    for (std::int64_t p = std::max(new_begin, first); p < new_end; ++p) f(p);
  }
};

/// Counts the pages that are free once all of `leaving` are released. Sorts `leaving`.
inline std::int64_t pages_freed(PagePool const& pool, std::span<std::int32_t> leaving) {
  std::sort(leaving.begin(), leaving.end());
  std::int64_t freed = 0;
  for (std::size_t i = 0, end = 0; i < leaving.size(); i = end) {
    while (end < leaving.size() && leaving[end] == leaving[i]) ++end;
    freed += static_cast<std::int64_t>(end - i) == pool.references(leaving[i]) ? 1 : 0;
  }
  return freed;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
