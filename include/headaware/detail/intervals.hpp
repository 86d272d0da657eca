#pragma once

// Stretches of memory, to tell whether buffers overlap.

#include <headaware/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A stretch of memory, for overlap checks.
struct Interval {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
};

template <class T>
Interval interval(T const* data, std::int64_t elements) {
  auto const begin = reinterpret_cast<std::uintptr_t>(data);
  return {begin, begin + static_cast<std::uintptr_t>(elements) * sizeof(T)};
}

/// Drops empty intervals and sorts the others by where they begin.
inline void sort_intervals(std::vector<Interval>& intervals) {
  std::erase_if(intervals, [](Interval const& i) { return i.begin >= i.end; });
  std::sort(intervals.begin(), intervals.end(), [](auto const& x, auto const& y) { return x.begin < y.begin; });
}

/// Whether any interval of `a` meets any of `b`. O(n log n).
inline bool overlap(std::vector<Interval> a, std::vector<Interval> b) {
  sort_intervals(a);
  sort_intervals(b);
  std::size_t j = 0;
  std::uintptr_t reach = 0;  // the furthest end among the intervals of b that begin before a[i] ends
  for (Interval const& each : a) {
    for (; j < b.size() && b[j].begin < each.end; ++j) reach = std::max(reach, b[j].end);
    if (reach > each.begin) return true;
  }
  return false;
}

/// Whether two of the intervals meet. O(n log n).
inline bool overlap_among(std::vector<Interval> intervals) {
  sort_intervals(intervals);
  return std::adjacent_find(intervals.begin(), intervals.end(),
                            [](auto const& x, auto const& y) { return y.begin < x.end; }) != intervals.end();
}

template <class Layout>
inline constexpr bool has_required_span_size = requires(Layout const layout) {
  layout.required_span_size();
};

/// Adds the interval of a tensor; nothing if its layout does not say how far it reaches.
template <class Layout, class T>
void add_extent(std::vector<Interval>& intervals, Layout const& layout, T const* data) {
  if constexpr (has_required_span_size<Layout>) intervals.push_back(interval(data, layout.required_span_size()));
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
