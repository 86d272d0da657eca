#pragma once

/// @file
/// Pages of one head: which ones it holds, and where its block table names them. Pure functions for both back ends.

#include <headaware/cache/page_sizes.hpp>
#include <headaware/cache/page_step.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>
#include <headaware/fixed_divisor.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/policy/rolling_policy.hpp>
#include <headaware/policy/window_rule.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The block table's row of one (layer, KV head), of every sequence alike. Token t lies at `t mod page_size` of
/// its sequence's page number `t / page_size`; the row has an entry for each page with sinks, and a ring of entries for
/// the pages that the window reaches. Of a head with scored slots (`RollingHead::scored`) an entry for each page of
/// these follows, slot i at `i mod page_size` of page `i / page_size`, and then all entries as they were before the
/// last append: from there come rows of tokens that leave the window.
struct alignas(16) PagedHead {
  std::int64_t first_entry = 0;       ///< entries of the same sequence's earlier heads and layers
  std::int64_t sequence_entries = 0;  ///< entries of one sequence, all layers
  WindowRule rule;
  std::int32_t sink_pages = 0;
  std::int32_t ring_pages = 0;  ///< the most pages that window and slack reach; 0 where the window is 0
  FixedDivisor page_size;       ///< tokens per page
  std::int32_t scored = 0;      ///< as `RollingHead::scored`

  /// Entries of the pages that tokens lie in by position.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t entries() const {
    return std::int64_t{sink_pages} + ring_pages;
  }
  /// Those and the entries of scored slots' pages.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t all_entries() const { return entries() + pages(scored); }
  /// Entries of the head's row: those, and where there are scored slots, the same before the last append.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t row_entries() const {
    return all_entries() * (scored == 0 ? 1 : 2);
  }
  /// The head as a rolling cache has it, which decides what scored slots hold; without its rows.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr RollingHead rolling(std::int32_t slack) const {
    return {0, 0, rule, rule.window > 0 ? rule.window + slack : 0, scored};
  }
  /// Pages of the scored slots that a sequence of `length` tokens uses.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t scored_pages(std::int64_t length) const {
    return scored == 0 ? 0 : pages(rolling(0).scored_used(length));
  }
  /// The entry of a page of scored slots in the table.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t scored_entry(std::int64_t sequence,
                                                                          std::int64_t page) const {
    return sequence * sequence_entries + first_entry + entries() + page;
  }
  /// Pages of a sequence of so many tokens.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t pages(std::int64_t tokens) const {
    return tokens > 0 ? page_size.quotient(tokens - 1) + 1 : 0;
  }
  /// The entry of a sequence's page in the head's row. @pre the head holds it
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int32_t column(std::int32_t page) const {
    if (page < sink_pages) return page;
    // 32 bits suffice, and divide faster on a device.
    return sink_pages + static_cast<std::int32_t>(static_cast<std::uint32_t>(page - sink_pages) %
                                                  static_cast<std::uint32_t>(ring_pages));
  }
  /// The entry of a sequence's page in the table. @pre the head holds it
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t entry(std::int64_t sequence, std::int64_t page) const {
    return sequence * sequence_entries + first_entry + column(static_cast<std::int32_t>(page));
  }
  /// @brief The first page after the sinks' that a sequence holds which has been `high_water` tokens long; beyond all
  /// pages where the window is 0.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t first_held(std::int64_t high_water,
                                                                        std::int32_t slack) const {
    if (ring_pages == 0) return std::int64_t{all_tokens} + 1;
    std::int64_t const page = page_size.quotient(rule.held(high_water, high_water, slack).begin);
    return page > sink_pages ? page : sink_pages;
  }
  /// Whether a sequence of `length` tokens holds a page.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr bool holds(std::int64_t page, std::int64_t length,
                                                           std::int64_t first) const {
    return page * page_size.value() < length && (page < sink_pages || page >= first);
  }
};

/// @brief Rows of one head of one sequence in pages of single heads, oldest token first. Tokens are below 2^31, and
/// kernels have few registers.
struct HeadPagesRows {
  std::int32_t const* pages = nullptr;  ///< the head's entries of the block table: sinks' pages, then the ring
  std::int64_t page_stride = 0;         ///< elements; 0: pages back to back
  FixedDivisor page_size;
  std::int32_t window = 0;      ///< tokens
  std::int32_t sink_pages = 0;  ///< entries of sinks' pages
  std::int32_t ring_pages = 0;  ///< entries of the ring
  std::int32_t ring_shift = 0;  ///< from a page after the sinks' to its entry, or to that one plus `ring_pages`
  BasicWindowRange<std::int32_t> tokens;

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return tokens.count(); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const { return tokens.token(row); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return token_offset(position(row), channels);
  }
  /// Where a token's row begins. @pre its page is held
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t token_offset(std::int64_t token, std::int64_t channels) const {
    std::int64_t const index = page_size.quotient(token);
    return page_offset(page(static_cast<std::int32_t>(index)), channels) +
           (token - index * page_size.value()) * channels;
  }
  /// Where a scored slot's row begins. @pre its page is held
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t slot_offset(std::int64_t slot, std::int64_t channels) const {
    std::int64_t const index = page_size.quotient(slot);
    return page_offset(slot_page(index), channels) + (slot - index * page_size.value()) * channels;
  }
  /// The number of a page of scored slots.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t slot_page(std::int64_t index) const {
    return detail::global_pointer(pages)[sink_pages + ring_pages + index];
  }
  /// Elements before a page. @param number  of it in the pool
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t page_offset(std::int32_t number, std::int64_t channels) const {
    return number * (page_stride != 0 ? page_stride : page_size.value() * channels);
  }
  /// Whether a query sees the token at `position`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool sees(std::int64_t position, std::int64_t query) const {
    return window_rule().sees(position, query, tokens.length);
  }
  /// The head's sinks and window; of a shorter sequence fewer sinks.
  [[nodiscard]] HEADAWARE_HOST_DEVICE WindowRule window_rule() const { return {tokens.sinks, window}; }
  /// The number of a sequence's page. @pre it lies in what is shown
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t page(std::int32_t index) const {
    std::int32_t const* const from = detail::global_pointer(pages);
    if (index < sink_pages) return from[index];
    std::int32_t const entry = index + ring_shift;  // dividing each time would cost more
    return from[entry < sink_pages + ring_pages ? entry : entry - ring_pages];
  }
};

/// @brief A paged cache's tables as both back ends read them; borrowed.
struct PagedHeadsView {
  PagedHead const* heads = nullptr;           ///< of all layers, where the back end runs
  std::int32_t const* first_heads = nullptr;  ///< `LayerHeads::first_heads`, where the back end runs
  std::int32_t const* table = nullptr;        ///< [num_sequences, entries of a sequence]: page numbers; -1: none
  std::int32_t num_layers = 0;
  std::int32_t num_sequences = 0;
  std::int32_t num_kv_heads = 0;  ///< of every layer; where they differ, of the layer that has most
  std::int32_t num_heads = 0;     ///< KV heads of all layers
  std::int32_t slack = 0;
  std::int32_t max_scored = 0;  ///< as `RollingSlotsView::max_scored`
  std::int32_t num_pages = 0;
  PageSizes page_sizes = 1;  ///< on the host, where calls check them; kernels read each head's
  std::int64_t token_limit = 0;
  std::int64_t max_tokens_held = 0;                 ///< the most tokens that the pages of any head have room for
  std::uint64_t generation = generation_not_known;  ///< of the tables, new with every change
  std::uint64_t slots_id = 0;                       ///< of `PagedHeads::slots()`, which scores are made for

  [[nodiscard]] HEADAWARE_HOST_DEVICE PagedHead const& head(std::int64_t layer, std::int64_t kv_head) const {
    return detail::global_pointer(heads)[layer_heads().first(layer) + kv_head];
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE LayerHeads layer_heads() const {
    return {num_layers, num_kv_heads, first_heads, num_heads};
  }
  /// Rows of tokens that a head holds. @param page_stride  as `PageStorage::page_stride`
  [[nodiscard]] HEADAWARE_HOST_DEVICE HeadPagesRows rows(PagedHead const& head, std::int64_t sequence,
                                                         WindowRange const& tokens, std::int64_t page_stride) const {
    HeadPagesRows result;
    result.pages = table + sequence * head.sequence_entries + head.first_entry;
    result.page_stride = page_stride;
    result.page_size = head.page_size;
    result.window = head.rule.window;
    result.sink_pages = head.sink_pages;
    result.ring_pages = head.ring_pages;
    result.tokens = tokens.narrow();
    if (result.tokens.begin == result.tokens.length) return result;
    auto const first = static_cast<std::int32_t>(head.page_size.quotient(result.tokens.begin));
    std::int32_t const ring_page = first > head.sink_pages ? first : head.sink_pages;
    result.ring_shift = head.column(ring_page) - ring_page;
    return result;
  }
  /// @brief The tokens in pages that a head holds of a sequence: sinks' and window's pages whole, so that what lies
  /// between sinks and window in them is held, too.
  [[nodiscard]] HEADAWARE_HOST_DEVICE WindowRange held(PagedHead const& head, std::int64_t length,
                                                       std::int64_t high_water) const {
    std::int64_t const size = head.page_size.value();
    return WindowRange::clamped(head.sink_pages * size, head.first_held(high_water, slack) * size, length);
  }
};

namespace detail {

/// Refuses pages of scored tokens where scores are not at hand.
inline void refuse_scored_pages(std::int32_t max_scored, Text const& where) {
  require(max_scored == 0, "pages", "heads of sinks and windows (scores: cache/paged_scored.hpp, ScoredPagesView)",
          "heads with scored tokens", where);
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
