#pragma once

/// @file
/// Rows of a cache with scored slots (`SinkWindowScored`) as attention reads them.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/window_rule.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Rows of one head of one sequence: sinks and window, oldest token first, then the scored slots that may show
/// something. The position of a scored row is -1 less its slot's number, before all queries; its record says which of
/// them see it. A slot that none sees, which nothing may have been written to yet, is read as the newest row.
/// @tparam Window  `RollingRows` or `HeadPagesRows`
template <class Window>
struct BasicScoredRows {
  Window window;
  ScoredRecord const* records = nullptr;
  std::int32_t first_scored = 0;  ///< the first one's slot
  std::int32_t scored = 0;        ///< scored rows
  std::int32_t first_length = 0;  ///< of the sequence at the first query; 0: all scored rows are seen

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return window.rows() + scored; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    std::int64_t const newest = window.rows() - 1;
    if (row <= newest) return window.offset(row, channels);
    std::int64_t const slot = row - newest - 1;
    if (first_length > 0 && newest >= 0) {
      ScoredRecord const& found = record(-1 - slot);
      if (found.enter > window.tokens.length || found.leave <= first_length) return window.offset(newest, channels);
    }
    return window.slot_offset(first_scored + slot, channels);
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const {
    std::int64_t const slot = row - window.rows();
    return slot < 0 ? window.position(row) : -1 - slot;
  }
  /// Whether a query sees the row at `position`; one after the newest token sees what that sees.
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool sees(std::int64_t position, std::int64_t query) const {
    if (position >= 0) return window.sees(position, query);
    std::int64_t const length = window.tokens.length;
    return record(position).is_shown(query < length ? query + 1 : length);
  }
  /// The queries that see the row at `position`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE QueryRange queries_of(std::int64_t position) const {
    std::int64_t const length = window.tokens.length;
    if (position >= 0) {
      WindowRule const rule = window.window_rule();
      return {position, rule.keeps(position, length) ? INT64_MAX : position + rule.window};
    }
    ScoredRecord const found = record(position);
    return {std::int64_t{found.enter} - 1, found.leave > length ? INT64_MAX : std::int64_t{found.leave} - 1};
  }
  /// Adds the scored slots of a sequence of `length` tokens, of which the queries are the last `tokens`.
  HEADAWARE_HOST_DEVICE void show(RollingHead const& head, ScoredRecord const* of, std::int64_t length,
                                  std::int64_t tokens, std::int32_t slack) {
    records = of;
    scored = static_cast<std::int32_t>(head.scored_used(length));
    if (slack > 0 || tokens > 1) first_length = static_cast<std::int32_t>(length < tokens ? 1 : length - tokens + 1);
  }

 private:
  [[nodiscard]] HEADAWARE_HOST_DEVICE ScoredRecord const& record(std::int64_t position) const {
    return detail::global_pointer(records)[-1 - position];
  }
};

namespace detail {

/// Throws unless a call tells which scored slots its queries see.
inline void check_scored_call(std::int32_t max_scored, std::int32_t slack, AttentionShape const& shape,
                              AttentionOptions const& options, char const* where) {
  bool const one_length = max_scored == 0 || (slack == 0 && shape.query_tokens == 1);
  require(one_length || options.first_positions != nullptr, "first_positions",
          "a pointer, as scored slots of a cache with slack are shown by position", "nullptr", where);
  require(max_scored == 0 || options.window == 0, "window", "0: scored tokens lie before any", options.window, where);
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
