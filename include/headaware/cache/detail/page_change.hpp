#pragma once

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/page_pool.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads_shape.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/error.hpp>
#include <headaware/fixed_divisor.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows of the block table for the heads of a cache.
inline HeadRecords<PagedHead> make_paged_heads(RollingSlots const& slots, PagedHeadsShape const& shape) {
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
      h.scored = block.scored;
      // A stretch of `ring` tokens that begins anywhere.
      h.ring_pages = block.ring == 0 ? 0 : static_cast<std::int32_t>(pages_for(block.ring - 1, page_size) + 1);
      entries += h.row_entries();
    }
  }
  for (PagedHead& h : heads.records()) h.sequence_entries = entries;
  return heads;
}

/// A head of a sequence.
struct PagePlace {
  std::int32_t layer = 0;
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
};

/// New tokens of a sequence.
struct PageGrowth {
  std::int64_t length = 0;  ///< before
  std::int64_t count = 0;
  std::int64_t high_water = 0;  ///< before
  std::int32_t slack = 0;
};

/// Changes of an append in one head of one sequence; pages by their place in the sequence.
struct PageChange {
  PagedHead const* head = nullptr;
  PagePlace place;
  std::int64_t length = 0;
  std::int64_t first_before = 0;    ///< the window's first page
  std::int64_t release_end = 0;     ///< pages [first_before, release_end) go back
  std::int64_t first = 0;           ///< the window's first page afterwards
  std::int64_t new_begin = 0;       ///< pages from here on are new,
  std::int64_t new_end = 0;         ///< up to here
  std::int64_t copy_on_write = -1;  ///< this page is replaced; -1: none
  std::int64_t scored_begin = 0;    ///< pages of scored slots from here on are new,
  std::int64_t scored_end = 0;      ///< up to here
  bool copies_scored = false;       ///< those before are shared, and replaced: any of their slots may be written to

  /// @param is_shared  (entry) whether several sequences own the page
  template <class IsShared>
  [[nodiscard]] static PageChange of(PagedHead const& head, PagePlace const& place, PageGrowth const& by,
                                     IsShared const& is_shared) {
    std::int64_t const length = by.length + by.count;
    PageChange change{&head, place, by.length, head.first_held(by.high_water, by.slack)};
    change.first = head.first_held(std::max(by.high_water, length), by.slack);
    change.new_begin = head.pages(by.length);
    change.new_end = head.pages(length);
    change.release_end = std::min(change.first, change.new_begin);
    std::int64_t const last = head.page_size.quotient(by.length);
    if (last < change.new_begin && head.holds(last, by.length, change.first)) {
      // Every sequence that shares the page leaves it, even if all do: none may write while another copies.
      if (is_shared(head.entry(place.sequence, last))) change.copy_on_write = last;
    }
    // Where there are pages of scored slots, a token leaves the window with each new one.
    change.scored_begin = head.scored_pages(by.length);
    change.scored_end = head.scored_pages(length);
    for (std::int64_t p = 0; p < change.scored_begin && !change.copies_scored; ++p) {
      change.copies_scored = is_shared(head.scored_entry(place.sequence, p));
    }
    return change;
  }
  [[nodiscard]] bool any() const {
    return first_before < release_end || new_begin < new_end || copy_on_write >= 0 || scored_begin < scored_end ||
           copies_scored;
  }
  /// Pages of scored slots that are taken: [first, scored_end).
  [[nodiscard]] std::int64_t first_scored() const { return copies_scored ? 0 : scored_begin; }
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

/// Entries that an append changes without making new ones.
struct PageNeeds {
  std::size_t copies = 0;  ///< on write
  std::size_t left = 0;    ///< pages that are given back once it has been written: it reads rows of theirs
};

/// @brief Counts copies on write, and pages that rows move out of.
/// @param leaving  becomes the pages that are given back before any is taken
/// @throws CapacityError if changes need more pages than are free or given back by them
inline PageNeeds require_pages(std::span<PageChange const> changes, PagePool const& pool,
                               std::span<std::int32_t const> table, std::vector<std::int32_t>& leaving) {
  std::int64_t needed = 0;
  PageNeeds needs;
  leaving.clear();
  for (PageChange const& change : changes) {
    change.for_each_new([&](std::int64_t) { ++needed; });
    if (change.copy_on_write >= 0) {
      ++needed;
      ++needs.copies;
    }
    needed += change.scored_end - change.first_scored();
    needs.left += static_cast<std::size_t>(change.scored_begin - change.first_scored());
    for (std::int64_t p = change.first_before; p < change.release_end; ++p) {
      if (change.head->scored > 0) {
        ++needs.left;
      } else {
        leaving.push_back(table[static_cast<std::size_t>(change.head->entry(change.place.sequence, p))]);
      }
    }
  }
  std::int64_t const freed = pages_freed(pool, leaving);
  if (needed > pool.free_pages() + freed) {
    throw CapacityError(
        {"pages", std::to_string(needed) + " free ones, " + std::to_string(freed) + " of them given back",
         std::to_string(pool.free_pages()) + " of " + std::to_string(pool.num_pages()), "PagedHeads::append"});
  }
  return needs;
}

/// Notes the entries of heads with scored slots as they are before an append. @param counts  new tokens
inline void keep_entries(std::span<PagedHead const> heads, std::span<std::int32_t const> counts,
                         std::span<std::int32_t> table) {
  for (PagedHead const& head : heads) {
    if (head.scored == 0) continue;
    for (std::size_t b = 0; b < counts.size(); ++b) {
      if (counts[b] == 0) continue;
      auto const first = table.begin() + static_cast<std::ptrdiff_t>(b) * head.sequence_entries + head.first_entry;
      std::copy_n(first, head.all_entries(), first + head.all_entries());
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
