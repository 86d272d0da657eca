#pragma once

/// @file
/// Which pages a head of a paged cache holds, and where its block table says so: pure functions for both back ends.

#include <headaware/cache/rolling_head.hpp>
#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// No tables have this generation: it stands for "not known", and a step or view with it is compared with nothing.
inline constexpr std::uint64_t generation_not_known = 0;

/// @brief The block table's row of one (layer, KV head), of every sequence alike. Token t lies at `t mod page_size` of
/// its sequence's page number `t / page_size`; the row has an entry for each page with sinks, and a ring of entries for
/// the pages that the window reaches.
struct alignas(16) PagedHead {
  std::int64_t first_entry = 0;       ///< entries of the same sequence's earlier heads and layers
  std::int64_t sequence_entries = 0;  ///< entries of one sequence, all layers
  std::int32_t sink = 0;              ///< tokens
  std::int32_t window = 0;            ///< tokens
  std::int32_t sink_pages = 0;
  std::int32_t ring_pages = 0;  ///< the most pages that window and slack reach; 0 where the window is 0

  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t entries() const {
    return std::int64_t{sink_pages} + ring_pages;
  }
  /// The entry of a sequence's page. @pre the head holds it
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t entry(std::int64_t sequence, std::int64_t page) const {
    std::int64_t const column =
        page < sink_pages ? page
                          : sink_pages + static_cast<std::int64_t>(static_cast<std::uint32_t>(page - sink_pages) %
                                                                   static_cast<std::uint32_t>(ring_pages));
    return sequence * sequence_entries + first_entry + column;
  }
  /// @brief The first page behind the sinks' that a sequence holds which has been `written` tokens long; far away where
  /// the window is 0.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t first_held(std::int64_t written, std::int32_t slack,
                                                                        std::int32_t page_size) const {
    if (ring_pages == 0) return std::int64_t{all_tokens} + 1;
    std::int64_t const oldest = written - window - slack;
    std::int64_t const page = oldest > 0 ? oldest / page_size : 0;
    return page > sink_pages ? page : sink_pages;
  }
  /// Whether a sequence of `length` tokens holds a page.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr bool holds(std::int64_t page, std::int64_t length, std::int64_t first,
                                                           std::int32_t page_size) const {
    return page * page_size < length && (page < sink_pages || page >= first);
  }
};

/// @brief A paged cache's tables as both back ends read them; borrowed.
struct PagedHeadsView {
  PagedHead const* heads = nullptr;     ///< [num_layers, num_kv_heads], where the back end runs
  std::int32_t const* table = nullptr;  ///< [num_sequences, entries of a sequence]: page numbers; -1: none
  std::int32_t num_layers = 0;
  std::int32_t num_sequences = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t page_size = 1;
  std::int32_t slack = 0;
  std::int32_t num_pages = 0;
  std::int64_t token_limit = 0;
  std::int64_t max_tokens_held = 0;                 ///< the most tokens that the pages of any head have room for
  std::uint64_t generation = generation_not_known;  ///< of the tables, new with every change

  [[nodiscard]] HEADAWARE_HOST_DEVICE PagedHead const& head(std::int64_t layer, std::int64_t kv_head) const {
    return heads[layer * num_kv_heads + kv_head];
  }
};

/// @brief A page that several sequences owned and one of them goes on writing: its first tokens move to a page of
/// its own.
struct PageCopy {
  std::int32_t layer = 0;
  std::int32_t from = 0;
  std::int32_t to = 0;
  std::int32_t tokens = 0;
};

namespace detail {

/// Where tokens of a paged cache lie.
struct PagedPlacement {
  PagedHeadsView view;
  std::int64_t page_stride = 0;  ///< elements; 0: page_size * channels

  HEADAWARE_HOST_DEVICE Survivors survivors(std::int64_t layer, std::int64_t kv_head, std::int64_t length,
                                            std::int64_t written, std::int64_t count) const {
    PagedHead const& head = view.head(layer, kv_head);
    std::int64_t const end = length + count;
    std::int64_t const first = head.first_held(written > end ? written : end, view.slack, view.page_size);
    // All of a page that is held: what lies between sinks and window in it is overread by whole pages.
    return detail::survivors(std::int64_t{head.sink_pages} * view.page_size, first * view.page_size, length, count);
  }
  HEADAWARE_HOST_DEVICE std::int64_t page_offset(std::int64_t page, std::int64_t channels) const {
    return page * (page_stride != 0 ? page_stride : view.page_size * channels);
  }
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head,
                                            std::int64_t token, std::int64_t channels) const {
    std::int64_t const page = token / view.page_size;
    std::int64_t const number = view.table[view.head(layer, kv_head).entry(sequence, page)];
    return page_offset(number, channels) + (token - page * view.page_size) * channels;
  }
};

}  // namespace detail

HEADAWARE_NAMESPACE_END
