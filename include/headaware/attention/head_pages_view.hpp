#pragma once

/// @file
/// The cache in pages of `cache/paged_heads.hpp` as attention reads it.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/check_windows.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>

#include <cstdint>
#include <numeric>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One layer of a cache in pages of single heads: exactly each head's sinks and window, from the base pointers
/// of the pool (`PageStorage`). Where heads have scored slots: `ScoredPagesView`. Layers may differ in heads and
/// channels; one that reads another's cache names that one here.
///
/// Tables and lengths are read when attention runs, so that a graph may be replayed with others in the same memory.
/// On CUDA `AttentionBounds::max_rows` may be `PagedHeads::slots().rows_total(layer)`.
class HeadPagesView {
 public:
  HeadPagesView() = default;

  /// @brief The rows that the newest token sees: decoding.
  /// @param pages        `PagedHeads::view()` or `view_at`, where the back end runs; borrowed
  /// @param lengths      [num_sequences], tokens seen: `PagedHeads::state().lengths()` or a copy of it where the back
  ///                     end runs; borrowed
  /// @param page_stride  elements, of keys and values alike, as `PageStorage::page_stride`; of encoded rows
  ///                     `PackedPages::page_units`
  /// @throws ArgumentError if there is no such layer, or on a negative stride, or none where page sizes differ
  HeadPagesView(PagedHeadsView const& pages, std::int32_t layer, std::int32_t const* lengths,
                std::int64_t page_stride = 0)
      : pages_(pages), lengths_(lengths), layer_(layer), page_stride_(page_stride) {
    require_index(layer, pages.num_layers, "layer", "HeadPagesView");
    require(pages.page_sizes.of(layer) > 0, "page size", "> 0", pages.page_sizes.of(layer), "HeadPagesView");
    require(page_stride >= 0, "page stride", ">= 0", page_stride, "HeadPagesView");
    require(page_stride > 0 || pages.page_sizes.alike(), "page stride", "> 0, as page sizes of layers differ",
            page_stride, "HeadPagesView");
  }

  /// @brief The rows that the newest tokens see, each its own sinks and window: a prefill chunk, or a draft, appended
  /// in one call and attended to in one call, with the result of going token by token. Attention needs
  /// `first_positions`: the length before the chunk.
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

  [[nodiscard]] HEADAWARE_HOST_DEVICE HeadPagesRows head(std::int64_t sequence, std::int64_t kv_head) const {
    PagedHead const& head = pages_.head(layer_, kv_head);
    WindowRange const tokens = head.rule.range_of_queries(detail::global_pointer(lengths_)[sequence], query_tokens_);
    HeadPagesRows rows = pages_.rows(head, sequence, tokens, page_stride_);
    if (query_tokens_ == 1) return rows;
    // A sequence that has just been taken back and has fewer new tokens than others need not hold the oldest pages of
    // the stretch; none of its queries sees them.
    std::int32_t& begin = rows.tokens.begin;
    std::int32_t const length = rows.tokens.length;
    auto index = static_cast<std::int32_t>(rows.page_size.quotient(begin));
    for (; begin < length && rows.page(index) < 0; ++index) {
      std::int64_t const next = (index + std::int64_t{1}) * rows.page_size.value();
      begin = next < length ? static_cast<std::int32_t>(next) : length;
    }
    return rows;
  }
  void check(AttentionShape const& shape, AttentionOptions const& options) const {
    constexpr auto where = "attend, HeadPagesView";
    detail::refuse_scored_pages(pages_.max_scored, where);
    check_pages(shape, options, where);
  }
  /// Checks all but the policies.
  void check_pages(AttentionShape const& shape, AttentionOptions const& options, char const* where) const {
    detail::check_windowed_call(shape, options, pages_.num_sequences, pages_.layer_heads(), query_tokens_, where);
    require_pointer(pages_.heads, "pages", where);
    if (pages_.max_tokens_held > 0) require_pointer(pages_.table, "block table", where);
    require_pointer(lengths_, "lengths", where);
  }
  void check_tables(AttentionShape const& shape) const {
    detail::check_layer_heads(shape, pages_.layer_heads(), layer_, "attend, HeadPagesView");
    for (std::int64_t b = 0; b < shape.num_sequences; ++b) {
      require(lengths_[b] >= 0 && lengths_[b] <= pages_.token_limit, "length", {"in [0, ", pages_.token_limit, "]"},
              lengths_[b], {"attend, HeadPagesView, sequence ", b});
      for (std::int64_t h = 0; h < shape.num_kv_heads; ++h) {
        HeadPagesRows const rows = head(b, h);
        std::int64_t const size = rows.page_size.value();
        auto const check = [&](std::int64_t first, std::int64_t end) {  // tokens
          if (first >= end) return;
          for (std::int64_t index = first / size; index <= (end - 1) / size; ++index) {
            std::int32_t const page = rows.page(static_cast<std::int32_t>(index));
            require(page >= 0 && page < pages_.num_pages, "page table entry", {"a page in [0, ", pages_.num_pages, ")"},
                    {page, " for page ", index}, detail::SegmentPlace{"HeadPagesView", b, h});
          }
        };
        check(0, rows.tokens.sinks);
        check(rows.tokens.begin, rows.tokens.length);
      }
    }
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return std::gcd(channels, page_stride_); }

  [[nodiscard]] HEADAWARE_HOST_DEVICE PagedHeadsView const& pages() const { return pages_; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t layer() const { return layer_; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t const* lengths() const { return lengths_; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t query_tokens() const { return query_tokens_; }

 private:
  PagedHeadsView pages_;
  std::int32_t const* lengths_ = nullptr;
  std::int32_t layer_ = 0;
  std::int64_t page_stride_ = 0;
  std::int64_t query_tokens_ = 1;
};
static_assert(KeptView<HeadPagesView>);

HEADAWARE_NAMESPACE_END
