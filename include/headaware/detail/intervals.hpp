#pragma once

// Stretches of memory, to tell whether buffers overlap.

#include <headaware/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
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

/// Sorts intervals by where they begin. @return those that are not empty
template <class = void>
std::span<Interval> sort_intervals(std::span<Interval> intervals) {
  auto const end =
      std::partition(intervals.begin(), intervals.end(), [](Interval const& i) { return i.begin < i.end; });
  std::sort(intervals.begin(), end, [](Interval const& x, Interval const& y) { return x.begin < y.begin; });
  return {intervals.begin(), end};
}

/// Tells whether any interval of `a` meets any of `b`; sorts both. O(n log n).
template <class = void>
bool sort_and_overlap(std::span<Interval> a, std::span<Interval> b) {
  a = sort_intervals(a);
  b = sort_intervals(b);
  std::size_t j = 0;
  std::uintptr_t reach = 0;  // the furthest end among the intervals of b that begin before a[i] ends
  for (Interval const& each : a) {
    for (; j < b.size() && b[j].begin < each.end; ++j) reach = std::max(reach, b[j].end);
    if (reach > each.begin) return true;
  }
  return false;
}

/// Tells whether two of the intervals meet; sorts them. O(n log n).
template <class = void>
bool sort_and_overlap(std::span<Interval> intervals) {
  intervals = sort_intervals(intervals);
  return std::adjacent_find(intervals.begin(), intervals.end(),
                            [](Interval const& x, Interval const& y) { return y.begin < x.end; }) != intervals.end();
}

/// The memory that a call reads and writes.
struct Memory {
  std::vector<Interval> sources;
  std::vector<Interval> paged_sources;       ///< whose pages a table tells apart
  std::vector<Interval> destinations;        ///< of cache layouts whose layers must lie apart
  std::vector<Interval> paged_destinations;  ///< pages of one pool are told apart by the block table
};

/// Memory in which this thread notes what a call touches: kept, so that later calls allocate nothing.
inline Memory& thread_memory() {
  thread_local Memory memory;
  memory.sources.clear();
  memory.destinations.clear();
  return memory;
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
