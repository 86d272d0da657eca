#pragma once

/// @file
/// Pages of single heads with scored slots (`cache/paged_scored.hpp`) as attention reads them.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/attention/scored_rows.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One layer of a cache in pages of single heads, which may have scored slots: each head's sinks and window,
/// then the scored tokens that a query sees, from the base pointers of the pool (`PageStorage`), of rows of any format.
///
/// Where heads have scored slots and the cache has slack, or several tokens are new, attention needs `first_positions`:
/// which slots are shown depends on the query. It takes no window of the call.
class ScoredPagesView {
 public:
  ScoredPagesView() = default;

  /// @brief The rows that the newest token sees, or the newest tokens each.
  /// @param window   `HeadPagesView` of the layer, or `HeadPagesView::of_chunk`
  /// @param records  `RollingScores::view()` or `view_at` of `PagedHeads::slots()`, where the back end runs; borrowed
  ScoredPagesView(HeadPagesView const& window, RollingScoresView const& records) : window_(window), records_(records) {}

  [[nodiscard]] HEADAWARE_HOST_DEVICE BasicScoredRows<HeadPagesRows> head(std::int64_t sequence,
                                                                          std::int64_t kv_head) const {
    PagedHeadsView const& pages = window_.pages();
    PagedHead const& paged = pages.head(window_.layer(), kv_head);
    BasicScoredRows<HeadPagesRows> rows{window_.head(sequence, kv_head)};
    if (paged.scored == 0) return rows;
    RollingHead const of = paged.rolling(pages.slack);
    rows.show(of, records_.of(of, pages.layer_heads().first(window_.layer()) + kv_head, sequence).slots,
              detail::global_pointer(window_.lengths())[sequence], window_.query_tokens(), pages.slack);
    return rows;
  }
  void check(AttentionShape const& shape, AttentionOptions const& options) const {
    constexpr auto where = "attend, ScoredPagesView";
    PagedHeadsView const& pages = window_.pages();
    window_.check_pages(shape, options, where);
    detail::check_scores(pages.max_scored, pages.slots_id, records_, where);
    detail::check_scored_call(pages.max_scored, pages.slack, shape, options, where);
  }
  void check_tables(AttentionShape const& shape) const {
    window_.check_tables(shape);
    PagedHeadsView const& pages = window_.pages();
    for (std::int64_t b = 0; b < shape.num_sequences; ++b) {
      for (std::int64_t h = 0; h < shape.num_kv_heads; ++h) {
        HeadPagesRows const rows = window_.head(b, h);
        std::int64_t const end = pages.head(window_.layer(), h).scored_pages(rows.tokens.length);
        for (std::int64_t index = 0; index < end; ++index) {
          std::int32_t const page = rows.slot_page(index);
          require(page >= 0 && page < pages.num_pages, "page table entry", {"a page in [0, ", pages.num_pages, ")"},
                  {page, " for page ", index, " of scored slots"}, detail::SegmentPlace{"ScoredPagesView", b, h});
        }
      }
    }
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return window_.row_run(channels); }

 private:
  HeadPagesView window_;
  RollingScoresView records_;
};
static_assert(KeptView<ScoredPagesView>);

HEADAWARE_NAMESPACE_END
