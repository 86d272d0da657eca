#pragma once

#include <headaware/config.hpp>
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
    return pages[page] * stride + page_size.remainder(row) * token;
  }
  /// Token of a row, for heads that hold all tokens.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const { return row; }
};

HEADAWARE_NAMESPACE_END
