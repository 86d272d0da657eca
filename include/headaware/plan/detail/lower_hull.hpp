#pragma once

/// @file
/// The sizes worth planning with: the lower convex hull of a head's error over its size.

#include <headaware/config.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A (sink, window) pair of the grid as a size that a head may have.
struct Candidate {
  std::int64_t tokens = 0;  ///< of the cache, whole pages
  std::int32_t sink = 0;
  std::size_t cell = 0;  ///< of the grid
};

/// The grid's pairs that are smaller than a full head, by size; of the same size, by sinks.
/// @param sinks  whether pairs with sinks are among them
[[nodiscard]] inline std::vector<Candidate> candidates(RetentionGrid const& grid, std::int64_t full,
                                                       std::int64_t page_size, bool sinks = true) {
  std::vector<Candidate> result;
  for (std::size_t s = 0; s < grid.sinks.size(); ++s) {
    if (!sinks && grid.sinks[s] != 0) continue;
    for (std::size_t w = 0; w < grid.windows.size(); ++w) {
      std::int64_t const tokens = whole_pages(std::int64_t{grid.sinks[s]} + grid.windows[w], page_size);
      if (tokens < full) result.push_back({tokens, grid.sinks[s], grid.cell(s, w)});
    }
  }
  std::stable_sort(result.begin(), result.end(), [](auto const& a, auto const& b) { return a.tokens < b.tokens; });
  return result;
}

/// Size and error of a head.
struct HullPoint {
  std::int64_t tokens = 0;
  double error = 0;
  std::int32_t sink = -1;  ///< -1: Full
};

/// @brief Appends the lower convex hull of one head's running minimum: sizes ascend strictly, errors descend strictly,
/// and the gain per token never grows. The last point is Full, without error, unless a smaller size has none either.
/// @param candidates  by size
/// @param errors      of the head, by grid cell
/// @param floor       smaller sizes are left out
/// @param full        size of a full head
/// @return points appended, at least one. Points on a straight line stay: more sizes to stop at
inline std::size_t append_hull(std::span<Candidate const> candidates, std::span<double const> errors,
                               std::int64_t floor, std::int64_t full, std::vector<HullPoint>& hull) {
  std::size_t const begin = hull.size();
  double least = 0;
  auto const add = [&](HullPoint const& point) {
    if (hull.size() > begin) {
      if (point.error >= least) return;
      if (hull.back().tokens == point.tokens) hull.pop_back();
    }
    least = point.error;
    while (hull.size() >= begin + 2) {
      HullPoint const& a = hull[hull.size() - 2];
      HullPoint const& b = hull.back();
      // Does b lie above the line from a to the new point?
      double const before = (a.error - b.error) * static_cast<double>(point.tokens - b.tokens);
      double const after = (b.error - point.error) * static_cast<double>(b.tokens - a.tokens);
      if (before >= after) break;
      hull.pop_back();
    }
    hull.push_back(point);
  };
  for (Candidate const& candidate : candidates) {
    if (candidate.tokens >= floor) add({candidate.tokens, errors[candidate.cell], candidate.sink});
  }
  add({full, 0, -1});
  return hull.size() - begin;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
