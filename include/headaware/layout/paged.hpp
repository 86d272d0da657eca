#pragma once

/// @file
/// Caches cut into pages of a fixed number of tokens, which a table assigns to sequences.

#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/fixed_divisor.hpp>
#include <headaware/layout/concept.hpp>

#include <array>
#include <cstdint>
#include <numeric>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Table from (sequence, page of the sequence) to a page of the tensor. A view: host or device pointers, as the
/// tensor's; borrowed.
struct PageTable {
  std::int32_t const* pages = nullptr;   ///< page numbers
  std::int32_t const* indptr = nullptr;  ///< CSR: [sequences + 1], first entry of each sequence; nullptr: dense
  std::int64_t row_stride = 0;           ///< dense: entries from one sequence's row to the next
  std::int64_t max_pages = 0;            ///< dense: entries of a row

  /// @brief A dense table: vLLM's and FlashAttention's block table.
  /// @param block_table  [sequences, max_blocks]; entries beyond a sequence's end are never read
  /// @param row_stride   entries between rows; 0: max_blocks
  static PageTable dense(std::int32_t const* block_table, std::int64_t max_blocks, std::int64_t row_stride = 0) {
    return {block_table, nullptr, row_stride == 0 ? max_blocks : row_stride, max_blocks};
  }

  /// @brief A CSR table: FlashInfer's `paged_kv_indices` and `paged_kv_indptr`.
  /// @param indices  [indptr[sequences]], the sequences' page numbers back to back
  /// @param indptr   [sequences + 1], 0 first
  static PageTable csr(std::int32_t const* indices, std::int32_t const* indptr) { return {indices, indptr, 0, 0}; }

  /// The number of a sequence's `index`-th page.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t page(std::int64_t sequence, std::int64_t index) const {
    std::int64_t const row = indptr != nullptr ? indptr[sequence] : sequence * row_stride;
    return pages[row + index];
  }
};

/// @brief Elements a paged cache has in each direction.
struct PagedShape {
  std::int64_t num_sequences = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t channels = 0;   ///< head_dim
  std::int64_t num_pages = 0;  ///< pages of the pool
  std::int64_t page_size = 1;  ///< tokens per page
};

/// @brief Elements between neighbours in each direction; token: within a page.
struct PagedStrides {
  std::int64_t page = 0;
  std::int64_t head = 0;
  std::int64_t token = 0;
  std::int64_t channel = 1;
};

/// @brief Elements between neighbours of a pool whose channels are split in groups of x: `group` lies
/// between groups of one token, `token` between tokens of one group.
struct SplitXStrides {
  std::int64_t page = 0;
  std::int64_t head = 0;
  std::int64_t group = 0;
  std::int64_t token = 0;
};

namespace detail {

inline void check_paged(PageTable const& table, PagedShape const& shape, std::int64_t plane, char const* where) {
  require(shape.num_sequences >= 0, "sequences", ">= 0", shape.num_sequences, where);
  require(shape.num_kv_heads >= 0, "KV heads", ">= 0", shape.num_kv_heads, where);
  require(shape.channels >= 0, "channels", ">= 0", shape.channels, where);
  require(shape.num_pages >= 0, "num_pages", ">= 0", shape.num_pages, where);
  require(plane >= 0, "plane offset", ">= 0", plane, where);
  require(table.pages != nullptr || shape.num_sequences == 0, "page table", "a pointer", "nullptr", where);
  if (table.indptr == nullptr) {
    require(table.max_pages >= 0, "page table entries per row", ">= 0", table.max_pages, where);
    require(table.row_stride >= table.max_pages, "page table row stride", {">= ", table.max_pages}, table.row_stride,
            where);
  }
  (void)elements(where, {table.indptr == nullptr ? table.max_pages : shape.num_pages, shape.page_size});
}

}  // namespace detail

/// @brief Base of the paged layouts: a table, a shape, and the division of tokens into pages.
class PagedLayoutBase {
 public:
  [[nodiscard]] std::int64_t num_sequences() const { return shape_.num_sequences; }
  [[nodiscard]] std::int64_t num_kv_heads() const { return shape_.num_kv_heads; }
  [[nodiscard]] std::int64_t num_channels() const { return shape_.channels; }

  /// Tokens that a sequence's part of the table has room for. A CSR table may be on the device, so
  /// there it is the whole pool, which no sequence exceeds.
  [[nodiscard]] std::int64_t token_capacity() const {
    return (table_.indptr != nullptr ? shape_.num_pages : table_.max_pages) * shape_.page_size;
  }
  [[nodiscard]] PageTable const& table() const { return table_; }
  [[nodiscard]] PagedShape const& shape() const { return shape_; }
  /// @brief Checks one sequence's part of a table in host memory, for tokens [begin, end): entries of other pages may
  /// be anything, as those of pages that went back to their allocator.
  /// @throws ArgumentError if it has fewer pages than the tokens need, or names a page that the pool has not
  void check_table(std::int64_t sequence, std::int64_t begin, std::int64_t end, char const* where) const {
    std::int64_t const tokens = end <= begin ? 0 : end;
    std::int64_t const needed = tokens == 0 ? 0 : (tokens - 1) / shape_.page_size + 1;
    std::int64_t held = table_.max_pages;
    if (table_.indptr != nullptr) {
      std::int64_t const first = table_.indptr[sequence];
      held = table_.indptr[sequence + 1] - first;
      require(first >= 0, "page table's indptr", ">= 0", first, {where, ", sequence ", sequence});
    }
    require(held >= needed, "page table", {needed, " pages for ", tokens, " tokens"}, {held, " pages"},
            {where, ", sequence ", sequence});
    for (std::int64_t i = begin / shape_.page_size; i < needed; ++i) {
      std::int64_t const page = table_.page(sequence, i);
      require(page >= 0 && page < shape_.num_pages, "page table entry", {"a page in [0, ", shape_.num_pages, ")"},
              {page, " for page ", i}, {where, ", sequence ", sequence});
    }
  }
  /// Elements from the base pointer to the tensor: not 0 for values that share a tensor with keys.
  [[nodiscard]] std::int64_t plane() const { return plane_; }

 protected:
  PagedLayoutBase() = default;
  PagedLayoutBase(PageTable const& table, PagedShape const& shape, std::int64_t plane, char const* where)
      : table_(table), shape_(shape), page_size_(shape.page_size, "page_size", where), plane_(plane) {
    detail::check_paged(table, shape, plane, where);
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t page_of(std::int64_t sequence, std::int64_t token) const {
    return table_.page(sequence, page_size_.quotient(token));
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t row_of(std::int64_t token) const {
    return page_size_.remainder(token);
  }
  [[nodiscard]] bool empty() const { return shape_.num_pages == 0 || shape_.num_kv_heads == 0 || shape_.channels == 0; }

  /// The largest divisor of `run` that also divides all that is added to a channel's place in its row.
  [[nodiscard]] std::int64_t aligned_run(std::int64_t run, std::int64_t page, std::int64_t head,
                                         std::int64_t token) const {
    run = std::gcd(run, plane_);
    if (shape_.num_pages > 1) run = std::gcd(run, page);
    if (shape_.num_kv_heads > 1) run = std::gcd(run, head);
    if (shape_.page_size > 1) run = std::gcd(run, token);
    return run > 0 ? run : 1;
  }

  PageTable table_;
  PagedShape shape_;
  FixedDivisor page_size_;
  std::int64_t plane_ = 0;
};

/// @brief A pool of pages: token t of a sequence is row `t mod page_size` of the page that the table
/// names at `t / page_size`.
/// @pre   tokens below 2^31; table entries in [0, num_pages), as many of each sequence as its tokens need. The CPU back
///        end checks this; on a device the caller does (`validate_tables`)
class PagedLayout : public PagedLayoutBase {
 public:
  PagedLayout() = default;

  /// @param plane  elements from the base pointer to the first page, where keys and values share a
  ///               tensor and a base pointer
  /// @throws ArgumentError on a negative extent, stride or plane, a page size that is not positive, more elements than
  ///         64 bits count, a missing table, or a table whose rows overlap
  PagedLayout(PageTable const& table, PagedShape const& shape, PagedStrides const& strides, std::int64_t plane = 0)
      : PagedLayoutBase(table, shape, plane, "PagedLayout"), strides_(strides) {
    constexpr auto where = "PagedLayout";
    require(strides.page >= 0, "page stride", ">= 0", strides.page, where);
    require(strides.head >= 0, "head stride", ">= 0", strides.head, where);
    require(strides.token >= 0, "token stride", ">= 0", strides.token, where);
    require(strides.channel >= 0, "channel stride", ">= 0", strides.channel, where);
    detail::check_extent(where, plane, directions());
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t sequence, std::int64_t head, std::int64_t token,
                                                          std::int64_t channel) const {
    return plane_ + page_of(sequence, token) * strides_.page + head * strides_.head + row_of(token) * strides_.token +
           channel * strides_.channel;
  }

  [[nodiscard]] std::int64_t channel_run() const {
    return strides_.channel == 1 ? aligned_run(shape_.channels, strides_.page, strides_.head, strides_.token) : 1;
  }
  [[nodiscard]] bool rows_contiguous() const { return strides_.channel == 1; }
  [[nodiscard]] bool tokens_adjacent() const {
    return strides_.channel != 1 && (shape_.page_size == 1 ? strides_.page : strides_.token) == 1;
  }
  [[nodiscard]] std::int64_t required_span_size() const {
    if (empty()) return 0;
    return plane_ + (shape_.num_pages - 1) * strides_.page + (shape_.num_kv_heads - 1) * strides_.head +
           (shape_.page_size - 1) * strides_.token + (shape_.channels - 1) * strides_.channel + 1;
  }
  [[nodiscard]] PagedStrides const& strides() const { return strides_; }
  [[nodiscard]] std::array<LayoutDirection, 4> directions() const {
    return {{{shape_.num_pages, strides_.page, true},
             {shape_.num_kv_heads, strides_.head},
             {shape_.page_size, strides_.token},
             {shape_.channels, strides_.channel}}};
  }

 private:
  PagedStrides strides_;
};
static_assert(KvLayout<PagedLayout>);

/// @brief A pool of pages whose channels are split in groups of x: the group comes before the token, so
/// that 16 bytes of neighbouring tokens are neighbours.
/// @pre   as `PagedLayout`
class PagedSplitXLayout : public PagedLayoutBase {
 public:
  PagedSplitXLayout() = default;

  /// @param x      channels per group, side by side; divides the channels
  /// @param plane  as in `PagedLayout`
  /// @throws ArgumentError as `PagedLayout`, and where x does not divide the channels
  PagedSplitXLayout(PageTable const& table, PagedShape const& shape, std::int64_t x, SplitXStrides const& strides,
                    std::int64_t plane = 0)
      : PagedLayoutBase(table, shape, plane, "PagedSplitXLayout"), x_(x, "x", "PagedSplitXLayout"), strides_(strides) {
    constexpr auto where = "PagedSplitXLayout";
    require(strides.page >= 0, "page stride", ">= 0", strides.page, where);
    require(strides.head >= 0, "head stride", ">= 0", strides.head, where);
    require(strides.group >= 0, "group stride", ">= 0", strides.group, where);
    require(strides.token >= 0, "token stride", ">= 0", strides.token, where);
    require(shape.channels % x == 0, "channels", {"a multiple of x (", x, ")"}, shape.channels, where);
    detail::check_extent(where, plane, directions());
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t sequence, std::int64_t head, std::int64_t token,
                                                          std::int64_t channel) const {
    return plane_ + page_of(sequence, token) * strides_.page + head * strides_.head +
           x_.quotient(channel) * strides_.group + row_of(token) * strides_.token + x_.remainder(channel);
  }

  [[nodiscard]] std::int64_t channel_run() const {
    std::int64_t const run = rows_contiguous() ? shape_.channels : std::gcd(x_.value(), strides_.group);
    return aligned_run(run, strides_.page, strides_.head, strides_.token);
  }
  [[nodiscard]] bool rows_contiguous() const { return shape_.channels <= x_.value() || strides_.group == x_.value(); }
  [[nodiscard]] bool tokens_adjacent() const {
    return !rows_contiguous() && (shape_.page_size == 1 ? strides_.page : strides_.token) == 1;
  }
  [[nodiscard]] std::int64_t required_span_size() const {
    if (empty()) return 0;
    return plane_ + (shape_.num_pages - 1) * strides_.page + (shape_.num_kv_heads - 1) * strides_.head +
           (shape_.channels / x_.value() - 1) * strides_.group + (shape_.page_size - 1) * strides_.token + x_.value();
  }
  [[nodiscard]] std::int64_t x() const { return x_.value(); }
  [[nodiscard]] SplitXStrides const& strides() const { return strides_; }
  [[nodiscard]] std::array<LayoutDirection, 5> directions() const {
    return {{{shape_.num_pages, strides_.page, true},
             {shape_.num_kv_heads, strides_.head},
             {shape_.channels / x_.value(), strides_.group},
             {shape_.page_size, strides_.token},
             {x_.value(), 1}}};
  }

 private:
  FixedDivisor x_;
  SplitXStrides strides_;
};
static_assert(KvLayout<PagedSplitXLayout>);

/// @brief The order of dimensions within a page: N tokens, H heads, D channels.
/// @par Source  flashinfer-ai/flashinfer, docs/tutorials/kv_layout.rst
enum class PageOrder {
  nhd,  ///< [page_size, num_kv_heads, head_dim]
  hnd   ///< [num_kv_heads, page_size, head_dim]
};

namespace detail {

/// Strides of pages that lie back to back.
[[nodiscard]] inline PagedStrides page_strides(PagedShape const& shape, PageOrder order) {
  constexpr auto where = "paged layout";
  std::int64_t const page = elements(where, {shape.page_size, shape.num_kv_heads, shape.channels});
  if (order == PageOrder::nhd) {
    std::int64_t const token = elements(where, {shape.num_kv_heads, shape.channels});
    return {.page = page, .head = shape.channels, .token = token, .channel = 1};
  }
  std::int64_t const head = elements(where, {shape.page_size, shape.channels});
  return {.page = page, .head = head, .token = shape.channels, .channel = 1};
}

}  // namespace detail

/// @brief `[num_pages, page_size, num_kv_heads, head_dim]` or `[num_pages, num_kv_heads, page_size, head_dim]`,
/// contiguous; keys and values in tensors of their own.
/// @throws ArgumentError as `PagedLayout`
[[nodiscard]] inline PagedLayout paged_layout(PageTable const& table, PagedShape const& shape, PageOrder order) {
  return {table, shape, detail::page_strides(shape, order)};
}

HEADAWARE_NAMESPACE_END
