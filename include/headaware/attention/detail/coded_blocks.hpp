#pragma once

#include <headaware/attention/detail/row_kernels.hpp>
#include <headaware/config.hpp>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Where the rows of a block lie, and those of the next one, which are fetched while this one is worked on.
class CodedBlocks {
 public:
  /// [attend_block]; those beyond the end are the last one again.
  [[nodiscard]] unsigned char const* const* rows() const { return rows_[now_]; }
  [[nodiscard]] unsigned char const* next(std::int64_t row) const { return rows_[1 - now_][row]; }
  [[nodiscard]] std::int64_t next_count() const { return next_count_; }
  void forget() { next_first_ = -1; }

  /// Goes to the block of rows from `first` on. @param row  (number of the row) to its first byte @param end  of rows
  template <class Row>
  void go(std::int64_t first, std::int64_t end, Row const& row) {
    now_ = 1 - now_;
    if (next_first_ != first) next_count_ = find(first, end, row, rows_[now_]);
    std::fill(rows_[now_] + next_count_, rows_[now_] + attend_block, rows_[now_][next_count_ - 1]);
    next_first_ = first + attend_block;
    next_count_ = find(next_first_, end, row, rows_[1 - now_]);
  }

 private:
  template <class Row>
  static std::int64_t find(std::int64_t first, std::int64_t end, Row const& row, unsigned char const** to) {
    std::int64_t const count = std::clamp<std::int64_t>(end - first, 0, attend_block);
    for (std::int64_t k = 0; k < count; ++k) to[k] = row(first + k);
    return count;
  }

  unsigned char const* rows_[2][attend_block];
  int now_ = 0;
  std::int64_t next_first_ = -1;  ///< -1: not known
  std::int64_t next_count_ = 0;
};

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
