#pragma once

// Policies with scored slots as sizes that a head may have, beside its windows.

#include <headaware/config.hpp>
#include <headaware/plan/detail/lower_hull.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/policy/sink_window_scored.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A pair of window and slots; what a last page has left are slots, too.
struct ScoredCandidate {
  HullPoint point{};     ///< without its error
  std::size_t cell = 0;  ///< of the grid
};

/// @brief The grid's pairs that are smaller than a full head, by cost.
/// @param visible  tokens that the head sees
/// @param records  whether scores and records of slots cost bytes, too
[[nodiscard]] inline std::vector<ScoredCandidate> scored_candidates(ScoredGrid const& grid, std::int64_t visible,
                                                                    RowPages const& pages, bool records) {
  std::vector<ScoredCandidate> result;
  std::int64_t const full = whole_pages(visible, pages.rows);
  for (std::size_t w = 0; w < grid.windows.size(); ++w) {
    for (std::size_t s = 0; s < grid.slots.size(); ++s) {
      std::int64_t const beside = std::int64_t{grid.sink} + grid.windows[w];
      std::int64_t const tokens = whole_pages(beside + grid.slots[s], pages.rows);
      if (tokens >= full) continue;
      auto const slots = static_cast<std::int32_t>(tokens - beside);
      std::int64_t const record = SinkWindowScored{grid.sink, grid.windows[w], slots}.record_bytes();
      result.push_back({{.tokens = tokens,
                         .sink = grid.sink,
                         .cost = pages.bytes_of(tokens) + (records ? record : 0),
                         .slots = slots},
                        grid.cell(w, s)});
    }
  }
  std::stable_sort(result.begin(), result.end(),
                   [](auto const& a, auto const& b) { return a.point.cost < b.point.cost; });
  return result;
}

/// Adds points to a hull. @param more  by cost @param next  memory for the result, which is swapped in
inline void merge_into_hull(std::vector<HullPoint>& hull, std::span<HullPoint const> more,
                            std::vector<HullPoint>& next) {
  next.clear();
  auto at = hull.begin();
  for (HullPoint const& point : more) {
    for (; at != hull.end() && at->cost <= point.cost; ++at) add_to_hull(next, 0, *at);
    add_to_hull(next, 0, point);
  }
  for (; at != hull.end(); ++at) add_to_hull(next, 0, *at);
  std::swap(hull, next);
}

/// The candidates with a head's errors. @param errors  of the head, by cell @param rounding  that adds to them
inline void scored_points(std::span<ScoredCandidate const> candidates, std::span<double const> errors,
                          std::int64_t floor, double rounding, std::int32_t pair, std::vector<HullPoint>& points) {
  points.clear();
  for (ScoredCandidate const& candidate : candidates) {
    if (candidate.point.tokens < floor) continue;
    HullPoint& point = points.emplace_back(candidate.point);
    point.error = errors[candidate.cell] + rounding;
    point.pair = pair;
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
