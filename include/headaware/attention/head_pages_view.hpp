#pragma once

/// @file
/// The cache in pages of `cache/paged_heads.hpp` as attention reads it.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/chunk_windows.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/paged.hpp>

#include <cstdint>
#include <numeric>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The rows that one head of one sequence shows: sinks, then the windows from their oldest token on. Tokens are
/// below 2^31, and kernels have few registers.
struct HeadPagesRows {
  std::int32_t const* pages = nullptr;  ///< the head's entries of the block table: sinks' pages, then the ring
  std::int64_t page_stride = 0;         ///< elements; 0: pages back to back
  detail::FixedDivisor page_size;
  std::int32_t sink = 0;        ///< tokens
  std::int32_t window = 0;      ///< tokens
  std::int32_t sink_pages = 0;  ///< entries of sinks' pages
  std::int32_t ring_pages = 0;  ///< entries of the ring
  std::int32_t ring_shift = 0;  ///< from a page behind the sinks' to its entry, or to one that the ring has no longer
  std::int32_t length = 0;      ///< tokens seen
  std::int32_t begin = 0;       ///< sinks and tokens [begin, length) are shown

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const {
    return std::int64_t{length < sink ? length : sink} + (length - begin);
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const {
    return row < sink ? row : begin + (row - sink);
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    std::int64_t const token = position(row);
    std::int64_t const index = page_size.quotient(token);
    std::int64_t const slot = token - index * page_size.value();
    std::int64_t const stride = page_stride != 0 ? page_stride : page_size.value() * channels;
    return page(static_cast<std::int32_t>(index)) * stride + slot * channels;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool sees(std::int64_t position, std::int64_t query) const {
    return detail::in_sinks_or_window(position, query, length, sink, window);
  }
  /// The number of a sequence's page. @pre it lies in what is shown
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t page(std::int32_t index) const {
    if (index < sink_pages) return pages[index];
    std::int32_t const entry = index + ring_shift;  // dividing each time would cost more
    return pages[entry < sink_pages + ring_pages ? entry : entry - ring_pages];
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
    require_index(layer, pages.num_layers, "layer", "HeadPagesView");
    require(page_stride >= 0, "page stride", ">= 0", page_stride, "HeadPagesView");
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
    detail::check_chunk(query_tokens, pages.slack, "HeadPagesView");
    HeadPagesView view(pages, layer, lengths, page_stride);
    view.query_tokens_ = query_tokens;
    return view;
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE HeadPagesRows segment(std::int64_t sequence, std::int64_t kv_head) const {
    PagedHead const& head = pages_.head(layer_, kv_head);
    HeadPagesRows rows;
    rows.pages = pages_.table + sequence * head.sequence_entries + head.first_entry;
    rows.page_stride = page_stride_;
    rows.page_size = page_size_;
    rows.sink = head.sink;
    rows.window = head.window;
    rows.sink_pages = head.sink_pages;
    rows.ring_pages = head.ring_pages;
    rows.length = lengths_[sequence];
    rows.begin = rows.length;
    if (head.ring_pages == 0 || rows.length <= head.sink) return rows;
    std::int64_t const oldest = rows.length - (query_tokens_ - 1) - head.window;  // of the first query's window
    rows.begin = oldest > head.sink ? static_cast<std::int32_t>(oldest) : head.sink;
    auto const first = static_cast<std::int32_t>(page_size_.quotient(rows.begin));
    std::int32_t const ring_page = first > head.sink_pages ? first : head.sink_pages;
    auto const column =
        static_cast<std::uint32_t>(ring_page - head.sink_pages) % static_cast<std::uint32_t>(head.ring_pages);
    rows.ring_shift = head.sink_pages + static_cast<std::int32_t>(column) - ring_page;
    if (query_tokens_ == 1) return rows;
    // A sequence that has just been taken back and has fewer new tokens than others need not hold the oldest pages of
    // the stretch; none of its queries sees them.
    for (std::int32_t index = first; rows.begin < rows.length && rows.page(index) < 0; ++index) {
      std::int64_t const next = (index + std::int64_t{1}) * page_size_.value();
      rows.begin = next < rows.length ? static_cast<std::int32_t>(next) : rows.length;
    }
    return rows;
  }
  void check(AttentionShape const& shape, AttentionOptions const& options) const {
    constexpr auto where = "attend, HeadPagesView";
    detail::check_windowed_call(shape, options, pages_.num_sequences, pages_.num_kv_heads, query_tokens_, where);
    require_pointer(pages_.heads, "pages", where);
    if (pages_.max_tokens_held > 0) require_pointer(pages_.table, "block table", where);
    require_pointer(lengths_, "lengths", where);
  }
  void check_tables(AttentionShape const& shape) const {
    for (std::int64_t b = 0; b < shape.num_sequences; ++b) {
      if (lengths_[b] < 0 || lengths_[b] > pages_.token_limit) {
        require(false, "length", {"in [0, ", pages_.token_limit, "]"}, lengths_[b],
                {"attend, HeadPagesView, sequence ", b});
      }
      for (std::int64_t h = 0; h < shape.num_kv_heads; ++h) {
        HeadPagesRows const rows = segment(b, h);
        std::int64_t const size = page_size_.value();
        auto const check = [&](std::int64_t first, std::int64_t end) {  // tokens
          if (first >= end) return;
          for (std::int64_t index = first / size; index <= (end - 1) / size; ++index) {
            std::int32_t const page = rows.page(static_cast<std::int32_t>(index));
            if (page >= 0 && page < pages_.num_pages) continue;
            require(false, "page table entry", {"a page in [0, ", pages_.num_pages, ")"}, {page, " for page ", index},
                    detail::segment_place("HeadPagesView", b, h));
          }
        };
        check(0, rows.length < rows.sink ? rows.length : rows.sink);
        check(rows.begin, rows.length);
      }
    }
  }
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
