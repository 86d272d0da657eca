#pragma once

/// @file
/// Rows in pages of one KV head each, found through a block table.

#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/fixed_divisor.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Rows of a head in pages of its own, found through its row of a block table.
struct PagedRows {
  std::int32_t const* pages = nullptr;  ///< page numbers
  std::int64_t held = 0;
  FixedDivisor page_size;
  std::int64_t page_stride = 0;   ///< elements; 0: pages back to back
  std::int64_t token_stride = 0;  ///< elements; 0: rows back to back

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return held; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    std::int64_t const page = page_size.quotient(row);
    std::int64_t const token = token_stride != 0 ? token_stride : channels;
    std::int64_t const stride = page_stride != 0 ? page_stride : page_size.value() * token;
    return detail::global_pointer(pages)[page] * stride + page_size.remainder(row) * token;
  }
  /// Token of a row, for heads that hold all tokens.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const { return row; }
};

/// @brief Paged per head: pages of one KV head, `[page_size, head_dim]` each, found through a block
/// table with one row per (layer, sequence, KV head). Rows of a layer are of one width, as pages hold one number of
/// tokens: heads whose rows are encoded in formats of their own have pages by `packed_pages`.
struct PagedForm {
  static constexpr bool needs_group = false;
  std::int32_t const* block_table = nullptr;  ///< page numbers, where the back end runs
  std::int32_t const* indptr = nullptr;       ///< [segments + 1]: first entry of each row; nullptr: dense rows
  std::int64_t table_stride = 0;              ///< entries per row of a dense block table
  FixedDivisor page_size = 0;                 ///< tokens per page, of layers that have none of their own
  std::int64_t page_stride = 0;               ///< elements from one page to the next; 0: page_size * channels

  /// Tokens per page of a layer.
  [[nodiscard]] HEADAWARE_HOST_DEVICE FixedDivisor page_size_of(LayerCapacity const& capacity) const {
    return capacity.page_size == 0 ? page_size : FixedDivisor(capacity.page_size);
  }
  /// First entry of a row of the table.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t entry(std::int64_t index) const {
    return indptr != nullptr ? detail::global_pointer(indptr)[index] : index * table_stride;
  }
  /// The first `held` rows in the pages of a row of the table.
  [[nodiscard]] HEADAWARE_HOST_DEVICE PagedRows rows(std::int64_t index, std::int64_t held) const {
    return {block_table + entry(index), held, page_size, page_stride};
  }
  /// Rows that a head's pages hold.
  HEADAWARE_HOST_DEVICE std::int64_t head_capacity(Segment const& segment, LayerCapacity const& capacity) const {
    if (indptr == nullptr) return capacity.head_rows;
    std::int64_t const tokens = capacity.page_size == 0 ? page_size.value() : capacity.page_size;
    return (indptr[segment.index + 1] - indptr[segment.index]) * tokens;
  }
  HEADAWARE_HOST_DEVICE PagedRows rows(Segment const& segment, LayerCapacity const& capacity) const {
    return {block_table + entry(segment.index), segment.kept, page_size_of(capacity), page_stride};
  }
};

HEADAWARE_NAMESPACE_END
