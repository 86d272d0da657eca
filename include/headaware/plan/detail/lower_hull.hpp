#pragma once

/// @file
/// The sizes worth planning with: the lower convex hull of a head's error over its size.

#include <headaware/config.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/detail/window_part.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A (sink, window) pair as a size that a head may have: one of the grid, or between two of them.
struct Candidate {
  static constexpr std::size_t full_cell = static_cast<std::size_t>(-1);
  std::int64_t tokens = 0;  ///< of the cache, whole pages
  std::int32_t sink = 0;
  std::size_t cell = 0;  ///< of the grid
  std::size_t next = 0;  ///< the cell beyond; `full_cell`: everything, without error
  double part = 0;       ///< of the way to the error there; 0: the cell's own error

  [[nodiscard]] double error(std::span<double const> errors) const {
    if (part == 0) return errors[cell];
    double const far = next == full_cell ? 0 : errors[next];
    return errors[cell] + (far - errors[cell]) * part;
  }
};

/// The grid's pairs that are smaller than a full head, by size; of the same size, by sinks.
[[nodiscard]] inline std::vector<Candidate> candidates(RetentionGrid const& grid, std::int64_t full,
                                                       std::int64_t page_size) {
  std::vector<Candidate> result;
  for (std::size_t s = 0; s < grid.sinks.size(); ++s) {
    for (std::size_t w = 0; w < grid.windows.size(); ++w) {
      std::int64_t const tokens = whole_pages(std::int64_t{grid.sinks[s]} + grid.windows[w], page_size);
      if (tokens < full) result.push_back({tokens, grid.sinks[s], grid.cell(s, w)});
    }
  }
  std::stable_sort(result.begin(), result.end(), [](auto const& a, auto const& b) { return a.tokens < b.tokens; });
  return result;
}

/// The same of a layer that slides: of the grid the windows without sinks, which it soon loses sight of; and since few
/// of them are within a small window, up to seven between two of them and between the last and the layer's own, with
/// errors as `KvErrors::at` has them: linear in the logarithm of the window.
/// @param visible  tokens of the layer's window that there are
[[nodiscard]] inline std::vector<Candidate> window_candidates(RetentionGrid const& grid, std::int64_t visible,
                                                              std::int64_t page_size) {
  std::vector<Candidate> result;
  if (grid.sinks.front() != 0) return result;
  std::int64_t const full = whole_pages(visible, page_size);
  for (std::size_t w = 0; w < grid.windows.size() && grid.windows[w] < visible; ++w) {
    std::int64_t const low = grid.windows[w];
    bool const known = w + 1 < grid.windows.size() && grid.windows[w + 1] < visible;
    std::int64_t const high = known ? grid.windows[w + 1] : visible;
    std::size_t const next = known ? grid.cell(0, w + 1) : Candidate::full_cell;
    if (whole_pages(low, page_size) < full) result.push_back({whole_pages(low, page_size), 0, grid.cell(0, w)});
    std::int64_t const step = whole_pages((high - low + 7) / 8, page_size);
    for (std::int64_t tokens = whole_pages(low + step, page_size); tokens < high; tokens += step) {
      result.push_back({tokens, 0, grid.cell(0, w), next, window_part(tokens, low, high)});
    }
  }
  return result;
}

/// Size and error of a head.
struct HullPoint {
  std::int64_t tokens = 0;
  double error = 0;
  std::int32_t sink = -1;  ///< -1: Full
  std::int32_t pair = 0;   ///< of formats
  std::int64_t cost = 0;   ///< in tokens, channels or bytes
  std::int32_t slots = 0;  ///< of the tokens, those kept by scores
};

/// @brief Adds a point to a lower convex hull: costs ascend strictly, errors descend strictly, and the gain per cost
/// never grows. Points on a straight line stay: more sizes to stop at.
/// @param hull   from `begin` on
/// @param point  costs no less than those before; of the same cost and error the first counts
inline void add_to_hull(std::vector<HullPoint>& hull, std::size_t begin, HullPoint const& point) {
  if (hull.size() > begin) {
    if (point.error >= hull.back().error) return;
    if (hull.back().cost == point.cost) hull.pop_back();
  }
  while (hull.size() >= begin + 2) {
    HullPoint const& a = hull[hull.size() - 2];
    HullPoint const& b = hull.back();
    // Does b lie above the line from a to the new point?
    double const before = (a.error - b.error) * static_cast<double>(point.cost - b.cost);
    double const after = (b.error - point.error) * static_cast<double>(b.cost - a.cost);
    if (before >= after) break;
    hull.pop_back();
  }
  hull.push_back(point);
}

/// @brief Appends the lower convex hull of one head's running minimum, costs being tokens. The last point is Full,
/// without error, unless a smaller size has none either.
/// @param candidates  by size
/// @param errors      of the head, by grid cell
/// @param floor       smaller sizes are left out
/// @param full        size of a full head
/// @return points appended, at least one
inline std::size_t append_hull(std::span<Candidate const> candidates, std::span<double const> errors,
                               std::int64_t floor, std::int64_t full, std::vector<HullPoint>& hull) {
  std::size_t const begin = hull.size();
  auto const add = [&](std::int64_t tokens, double error, std::int32_t sink) {
    add_to_hull(hull, begin, {.tokens = tokens, .error = error, .sink = sink, .cost = tokens});
  };
  for (Candidate const& candidate : candidates) {
    if (candidate.tokens >= floor) add(candidate.tokens, candidate.error(errors), candidate.sink);
  }
  add(full, 0, -1);
  return hull.size() - begin;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
