#pragma once

/// @file
/// The cache in pages of `cache/paged_heads.hpp` as attention reads it.

#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/paged.hpp>

#include <cstdint>
#include <numeric>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The rows that one head of one sequence shows: sinks, then the windows from their oldest token on.
struct HeadPagesRows {
  std::int32_t const* sink_pages = nullptr;    ///< page numbers of tokens below `head.sink_pages` pages
  std::int32_t const* window_pages = nullptr;  ///< page numbers of the others: a ring
  PagedHead head;
  detail::FixedDivisor page_size;
  std::int64_t page_stride = 0;  ///< elements; 0: pages back to back
  std::int64_t length = 0;       ///< tokens seen
  std::int64_t sinks = 0;        ///< tokens [0, sinks) are shown,
  std::int64_t begin = 0;        ///< and [begin, length)
  std::int64_t ring_page = 0;    ///< a page not behind the first one shown that is found through the ring,
  std::int64_t ring_column = 0;  ///< and its place in it

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return sinks + (length - begin); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const {
    return row < sinks ? row : begin + (row - sinks);
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    std::int64_t const token = position(row);
    std::int64_t const index = page_size.quotient(token);
    std::int64_t const slot = page_size.remainder(token);
    std::int64_t const stride = page_stride != 0 ? page_stride : page_size.value() * channels;
    return page(index) * stride + slot * channels;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool sees(std::int64_t position, std::int64_t query) const {
    std::int64_t const newest = length - 1;  // a query behind it sees what it sees
    return position < head.sink || position > (query < newest ? query : newest) - head.window;
  }
  /// The number of a sequence's page. @pre it lies in what is shown
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t page(std::int64_t index) const {
    if (index < head.sink_pages) return sink_pages[index];
    std::int64_t const column = ring_column + (index - ring_page);  // dividing each time would cost more
    return window_pages[column < head.ring_pages ? column : column - head.ring_pages];
  }
};

/// @brief One layer of a cache in pages of single heads: exactly each head's sinks and window, from the base pointers
/// of the pool (`PageStorage`).
///
/// Tables and lengths are read when attention runs, so that a graph may be replayed with others in the same memory.
/// On CUDA `AttentionBounds::max_rows` may be `PagedHeads::plan().rows_total(layer)`.
class HeadPagesView {
 public:
  HeadPagesView() = default;

  /// @brief What the newest token sees: decoding.
  /// @param pages        `PagedHeads::view()` or `view_at`, where the back end runs; borrowed
  /// @param lengths      [num_sequences], tokens seen: `PagedHeads::state().lengths()` or a copy of it where the back
  ///                     end runs; borrowed
  /// @param page_stride  elements, of keys and values alike, as `PageStorage::page_stride`
  /// @throws ArgumentError if there is no such layer, or on a negative stride
  HeadPagesView(PagedHeadsView const& pages, std::int32_t layer, std::int32_t const* lengths,
                std::int64_t page_stride = 0)
      : pages_(pages),
        lengths_(lengths),
        layer_(layer),
        page_stride_(page_stride),
        page_size_(pages.page_size, "page size", "HeadPagesView") {
    detail::require_index(layer, pages.num_layers, "layer", "HeadPagesView");
    detail::require(page_stride >= 0, "page stride", ">= 0", page_stride, "HeadPagesView");
  }

  /// @brief What the newest tokens see, each its own sinks and window: a prefill chunk, or a draft, appended in one
  /// call and attended to in one call, with the result of going token by token. Attention needs `first_positions`:
  /// the length before the chunk.
  /// @param query_tokens  of every sequence, at most; of one with fewer new tokens the last queries see what its newest
  ///                      token sees
  /// @throws ArgumentError if windows of the first of them may have gone: `slack` is less than query_tokens - 1
  [[nodiscard]] static HeadPagesView of_chunk(PagedHeadsView const& pages, std::int32_t layer,
                                              std::int32_t const* lengths, std::int64_t query_tokens,
                                              std::int64_t page_stride = 0) {
    detail::require(query_tokens >= 1 && query_tokens - 1 <= pages.slack, "query_tokens",
                    "1 to " + std::to_string(pages.slack + std::int64_t{1}) + ", the plan's slack and 1", query_tokens,
                    "HeadPagesView");
    HeadPagesView view(pages, layer, lengths, page_stride);
    view.query_tokens_ = query_tokens;
    return view;
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE HeadPagesRows segment(std::int64_t sequence, std::int64_t kv_head) const {
    HeadPagesRows rows;
    rows.head = pages_.head(layer_, kv_head);
    PagedHead const& head = rows.head;
    rows.page_size = page_size_;
    rows.page_stride = page_stride_;
    rows.length = lengths_[sequence];
    rows.sinks = rows.length < head.sink ? rows.length : head.sink;
    rows.sink_pages = pages_.table + sequence * head.sequence_entries + head.first_entry;
    rows.window_pages = rows.sink_pages + head.sink_pages;
    rows.begin = rows.length;
    if (head.ring_pages == 0 || rows.length <= head.sink) return rows;
    std::int64_t const oldest = rows.length - (query_tokens_ - 1) - head.window;  // of the first query's window
    rows.begin = oldest > head.sink ? oldest : std::int64_t{head.sink};
    std::int64_t const first = page_size_.quotient(rows.begin);
    rows.ring_page = first > head.sink_pages ? first : std::int64_t{head.sink_pages};
    rows.ring_column =
        static_cast<std::uint32_t>(rows.ring_page - head.sink_pages) % static_cast<std::uint32_t>(head.ring_pages);
    if (query_tokens_ == 1) return rows;
    // A sequence that has just been taken back and has fewer new tokens than others need not hold the oldest pages of
    // the stretch; none of its queries sees them.
    for (std::int64_t index = first; rows.begin < rows.length && rows.page(index) < 0; ++index) {
      rows.begin = (index + 1) * page_size_.value();
      if (rows.begin > rows.length) rows.begin = rows.length;
    }
    return rows;
  }
  [[nodiscard]] bool needs_positions() const { return query_tokens_ > 1; }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return std::gcd(channels, page_stride_); }

 private:
  PagedHeadsView pages_;
  std::int32_t const* lengths_ = nullptr;
  std::int32_t layer_ = 0;
  std::int64_t page_stride_ = 0;
  std::int64_t query_tokens_ = 1;
  detail::FixedDivisor page_size_;
};
static_assert(KeptView<HeadPagesView>);

HEADAWARE_NAMESPACE_END
