#pragma once

/// @file
/// Caches in pages of one KV head each, as attention reads them.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/paged_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>

#include <cstdint>
#include <numeric>

HEADAWARE_NAMESPACE_BEGIN

/// @brief `ha::paged`: pages found through a block table with a row for each head of each sequence of the layer.
/// Row i of a head counts as token i in causal masks.
/// @pre  rows of a head below 2^31; where `num_pages` is not given, the table names pages of the pool alone
class PagedView {
 public:
  PagedView() = default;

  /// @brief FlashInfer's form, heads folded into the batch.
  /// @param indices        page numbers
  /// @param indptr         [sequences * num_kv_heads + 1], first entry of each head, from `indices`
  /// @param last_page_len  [sequences * num_kv_heads], rows of each head's last page; not read of heads without pages
  /// @param page_stride    elements from one page to the next; 0: page_size rows
  /// @param token_stride   elements from one row of a page to the next; 0: the row's channels
  /// @param num_pages      pages of the pool, if known: the CPU back end checks the table against it; 0: not known,
  ///                       and a page beyond the pool goes unnoticed
  /// All pointers host or device, where attention runs; borrowed.
  /// @throws ArgumentError on a page size that is not positive, a negative stride or a negative number of pages
  static PagedView csr(std::int32_t const* indices, std::int32_t const* indptr, std::int32_t const* last_page_len,
                       std::int32_t num_kv_heads, std::int64_t page_size, std::int64_t page_stride = 0,
                       std::int64_t token_stride = 0, std::int64_t num_pages = 0) {
    PagedView view(num_kv_heads, page_size, page_stride, token_stride, num_pages);
    view.form_.block_table = indices;
    view.form_.indptr = indptr;
    view.lengths_ = last_page_len;
    view.is_csr_ = true;
    return view;
  }

  /// @brief A dense block table: vLLM's and FlashAttention's form, heads folded into the batch.
  /// @param block_table  [sequences * num_kv_heads, table_stride]
  /// @param lengths      [sequences * num_kv_heads], rows held
  static PagedView dense(std::int32_t const* block_table, std::int64_t table_stride, std::int32_t const* lengths,
                         std::int32_t num_kv_heads, std::int64_t page_size, std::int64_t page_stride = 0,
                         std::int64_t token_stride = 0, std::int64_t num_pages = 0) {
    require(table_stride >= 0, "block table row stride", ">= 0", table_stride, "PagedView");
    PagedView view(num_kv_heads, page_size, page_stride, token_stride, num_pages);
    view.form_.block_table = block_table;
    view.form_.table_stride = table_stride;
    view.lengths_ = lengths;
    return view;
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE PagedRows head(std::int64_t sequence, std::int64_t kv_head) const {
    std::int64_t const index = sequence * kv_heads_ + kv_head;
    PagedRows rows = form_.rows(index, 0);
    rows.token_stride = token_stride_;
    std::int32_t const* const lengths = detail::global_pointer(lengths_);
    if (form_.indptr == nullptr) {
      rows.held = lengths[index];
      return rows;
    }
    std::int32_t const* const indptr = detail::global_pointer(form_.indptr);
    if (std::int64_t const count = indptr[index + 1] - indptr[index]; count != 0) {
      rows.held = (count - 1) * form_.page_size.value() + lengths[index];
    }
    return rows;
  }
  void check_tables(AttentionShape const& shape) const {
    std::int64_t const size = form_.page_size.value();
    std::int64_t const pool = num_pages_ != 0 ? num_pages_ : std::int64_t{1} << 31;
    for (std::int64_t i = 0; i < shape.segments(); ++i) {
      auto const check = [&](bool ok, char const* what, std::int64_t least, std::int64_t most, std::int64_t got) {
        require(ok, what, {"in [", least, ", ", most, "]"}, got,
                detail::SegmentPlace{"PagedView", i / kv_heads_, i % kv_heads_});
      };
      if (!is_csr_) {
        std::int64_t const room =
            form_.table_stride > (std::int64_t{1} << 31) / size ? std::int64_t{1} << 31 : form_.table_stride * size;
        check(lengths_[i] >= 0 && lengths_[i] <= room, "rows held", 0, room, lengths_[i]);
      } else {
        std::int64_t const last = std::int64_t{1} << 31;
        check(form_.indptr[i] >= 0, "page table's indptr", 0, last, form_.indptr[i]);
        check(form_.indptr[i + 1] >= form_.indptr[i], "page table's indptr", form_.indptr[i], last,
              form_.indptr[i + 1]);
        bool const counted = form_.indptr[i + 1] == form_.indptr[i] || (lengths_[i] >= 1 && lengths_[i] <= size);
        check(counted, "last_page_len", 1, size, lengths_[i]);
      }
      PagedRows const rows = head(i / kv_heads_, i % kv_heads_);
      if (rows.held > 0) require_pointer(form_.block_table, "pages", "attend, PagedView");
      for (std::int64_t p = 0; p * size < rows.held; ++p) {
        check(rows.pages[p] >= 0 && rows.pages[p] < pool, "page table entry", 0, pool - 1, rows.pages[p]);
      }
    }
  }
  void check(AttentionShape const& shape, AttentionOptions const&) const {
    constexpr auto where = "attend, PagedView";
    require(shape.num_kv_heads == kv_heads_, "KV heads", kv_heads_, shape.num_kv_heads, where);
    if (is_csr_) require_pointer(form_.indptr, "indptr", where);
    require_pointer(lengths_, is_csr_ ? "last_page_len" : "lengths", where);
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const {
    return std::gcd(channels, std::gcd(form_.page_stride, token_stride_));
  }

 private:
  PagedView(std::int32_t num_kv_heads, std::int64_t page_size, std::int64_t page_stride, std::int64_t token_stride,
            std::int64_t num_pages)
      : form_{.page_size = {page_size, "page size", "PagedView"}, .page_stride = page_stride},
        kv_heads_(num_kv_heads),
        token_stride_(token_stride),
        num_pages_(num_pages) {
    require(num_pages >= 0, "pages", ">= 0", num_pages, "PagedView");
    require(page_stride >= 0, "page stride", ">= 0", page_stride, "PagedView");
    require(token_stride >= 0, "token stride", ">= 0", token_stride, "PagedView");
  }

  PagedForm form_;
  std::int32_t const* lengths_ = nullptr;  ///< csr: of the last page
  std::int32_t kv_heads_ = 0;
  bool is_csr_ = false;
  std::int64_t token_stride_ = 0;
  std::int64_t num_pages_ = 0;
};
static_assert(KeptView<PagedView>);

HEADAWARE_NAMESPACE_END
