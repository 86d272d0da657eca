#pragma once

/// @file
/// Caches whose heads hold different numbers of tokens, as attention reads them: the rows that a head of a sequence
/// holds, and where each of them lies.

#include <headaware/config.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Positions of queries: from `begin` on, before `end`.
struct QueryRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// @brief The rows of one KV head of one sequence: `int64_t rows() const`, and
/// `int64_t offset(int64_t row, int64_t channels) const`, the element at which row `row` begins in a tensor of
/// rows of `channels` channels each, from the base pointer that keys (or values) have. A row's channels lie side by
/// side. Rows may come in any order: positions are already inside rotated keys.
///
/// Optional: `int64_t position(int64_t row) const`, the token that the row holds, for causal masks; and with it
/// `bool sees(int64_t position, int64_t query) const`, whether a query at position `query` sees that token, where that
/// is not all up to its own: a window. Once it does not, no later query may. And with that
/// `QueryRange queries_of(int64_t position) const`, where a query may see a token that an earlier one, after the token,
/// does not: the queries that see it, which follow each other.
template <class S>
concept KeptRows = requires(S const rows, std::int64_t i) {
  { rows.rows() } -> std::same_as<std::int64_t>;
  { rows.offset(i, i) } -> std::same_as<std::int64_t>;
};

/// @brief A cache as attention reads it: a trivially copyable type with
/// `head(int64_t sequence, int64_t kv_head) const`, a `KeptRows`; both marked `HEADAWARE_HOST_DEVICE`. It holds
/// pointers to lengths and tables, host or device, where the back end runs, and reads them when attention runs.
///
/// Optional: `int64_t row_run(int64_t channels) const`, host: all row offsets are multiples of this many elements.
/// It decides how wide a load may be; without it every element is loaded by itself on CUDA. And
/// `void check(AttentionShape const&, AttentionOptions const&) const`, host, which throws ArgumentError on a call that
/// the view is not for. And `void check_tables(AttentionShape const&) const`, host, which throws ArgumentError where
/// tables in host memory name rows that are not there: the CPU back end asks before it reads (`validate_tables`).
template <class V>
concept KeptView = std::is_trivially_copyable_v<V> && requires(V const view, std::int64_t i) {
  { view.head(i, i) } -> KeptRows;
};

/// @brief Explains in plain sentences why a type is no view, one compile-time error per mistake.
template <class V>
consteval bool check_kept_view() {
  constexpr bool copyable = std::is_trivially_copyable_v<V>;
  static_assert(copyable, "headaware: a view of a cache must be trivially copyable, because kernels take it by value");
  constexpr bool has_head = requires(V const view, std::int64_t i) { view.head(i, i); };
  static_assert(has_head, "headaware: a view of a cache needs 'head(int64_t sequence, int64_t kv_head) const', "
                          "marked HEADAWARE_HOST_DEVICE");
  if constexpr (has_head) {
    constexpr bool rows = requires(V const view, std::int64_t i) {
      { view.head(i, i) } -> KeptRows;
    };
    static_assert(rows, "headaware: a view's head needs 'int64_t rows() const' and 'int64_t offset(int64_t row, "
                        "int64_t channels) const', marked HEADAWARE_HOST_DEVICE");
  }
  // Always true: what is wrong has been said above, and a false would add an error that says nothing.
  return true;
}

namespace detail {

template <class View>
using RowsOf = decltype(std::declval<View const&>().head(std::int64_t{}, std::int64_t{}));

template <class View>
inline constexpr bool has_positions = requires(RowsOf<View> const rows, std::int64_t i) {
  { rows.position(i) } -> std::same_as<std::int64_t>;
};

/// Whether a query at position `query` sees a row that holds token `position`.
/// @param window  of the call, `attention_window`
template <class Rows>
HEADAWARE_HOST_DEVICE constexpr bool is_seen(Rows const& rows, std::int64_t position, std::int64_t query,
                                             std::int64_t window) {
  bool const in_window = position <= query && query - position < window;
  if constexpr (requires { rows.sees(position, query); }) {
    return in_window && rows.sees(position, query);
  } else {
    return in_window;
  }
}

template <class Rows>
inline constexpr bool has_query_ranges = requires(Rows const rows, std::int64_t i) {
  { rows.queries_of(i) } -> std::same_as<QueryRange>;
};

/// Whether any query from `first` to `last` sees a row: the first one after it does, if any, or what the row says.
template <class Rows>
HEADAWARE_HOST_DEVICE constexpr bool is_seen_by_any(Rows const& rows, std::int64_t position, std::int64_t first,
                                                    std::int64_t last, std::int64_t window) {
  if constexpr (has_query_ranges<Rows>) {
    if (position > last) return false;
    QueryRange const queries = rows.queries_of(position);
    std::int64_t const seen = queries.begin > first ? queries.begin : first;
    return seen <= last && seen < queries.end && seen - position < window;
  } else {
    return position <= last && is_seen(rows, position, position > first ? position : first, window);
  }
}

/// Elements in which a view's rows are aligned; 1 if it does not say.
template <class View>
std::int64_t row_run(View const& view, std::int64_t channels) {
  if constexpr (requires { view.row_run(channels); }) {
    return view.row_run(channels);
  } else {
    return 1;
  }
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
