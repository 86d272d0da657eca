#pragma once

// The hulls of all heads, and the order in which a planner goes along them.

#include <headaware/config.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/plan/detail/cache_costs.hpp>
#include <headaware/plan/detail/lower_hull.hpp>
#include <headaware/plan/detail/scored_candidates.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The hulls of all heads; pruned heads have none.
struct Hulls {
  std::vector<HullPoint> points;
  std::vector<std::size_t> first;  ///< [heads + 1]
};

/// Candidates of heads that see `visible` tokens. @param slides  whether a window of the layer's own bounds them
[[nodiscard]] inline std::vector<Candidate> head_candidates(RetentionGrid const& grid, std::int64_t visible,
                                                            bool slides, std::int64_t page_size) {
  return slides ? window_candidates(grid, visible, page_size)
                : candidates(grid, whole_pages(visible, page_size), page_size);
}

/// The hulls where every head has 16 bits. @param scored  whether heads may have scored slots
[[nodiscard]] inline Hulls all_hulls(KvErrors const& errors, CacheCosts const& costs, std::vector<bool> const& pruned,
                                     std::int64_t floor, std::int64_t page_size, bool scored) {
  Hulls hulls;
  hulls.first.reserve(pruned.size() + 1);
  std::vector<Candidate> sizes;
  std::vector<ScoredCandidate> with_slots;
  std::vector<HullPoint> hull;
  std::vector<HullPoint> points;
  std::vector<HullPoint> next;
  std::int64_t sizes_of = -1;  // tokens that a head sees, and whether its layer slides
  std::size_t head = 0;
  for (std::int32_t layer = 0; layer < costs.heads().num_layers; ++layer) {
    std::int64_t const visible = costs.visible(layer);
    std::int64_t const slides = costs.window(layer) != 0 ? 1 : 0;  // past its sinks
    if (sizes_of != 2 * visible + slides) sizes = head_candidates(errors.grid, visible, slides != 0, page_size);
    sizes_of = 2 * visible + slides;
    if (scored && slides == 0) {
      with_slots = scored_candidates(*errors.scored, visible, {page_size, page_size * costs.row(layer)}, false);
    }
    for (std::int32_t i = 0; i < costs.heads().count(layer); ++i, ++head) {
      hulls.first.push_back(hulls.points.size());
      if (pruned[head]) continue;
      hull.clear();
      append_hull(sizes, errors.of(head), floor, whole_pages(visible, page_size), hull);
      for (HullPoint& point : hull) point.cost *= costs.row(layer);
      if (scored && slides == 0) {
        scored_points(with_slots, errors.scored_of(head), floor, 0, 0, points);
        merge_into_hull(hull, points, next);
      }
      hulls.points.insert(hulls.points.end(), hull.begin(), hull.end());
    }
  }
  hulls.first.push_back(hulls.points.size());
  return hulls;
}

/// The step from one point of a hull to the next.
struct HullStep {
  double rate = 0;  ///< error saved per cost: per token, channel or byte
  std::size_t head = 0;
  std::size_t to = 0;  ///< point
};

/// The step to a point. @param most  rate of the step before it: rates descend along a hull but for rounding, which
/// must not put a step before the one that it follows
[[nodiscard]] inline HullStep step_to(Hulls const& hulls, std::size_t head, std::size_t to,
                                      double most = std::numeric_limits<double>::infinity()) {
  HullPoint const& from = hulls.points[to - 1];
  HullPoint const& point = hulls.points[to];
  double const rate = (from.error - point.error) / static_cast<double>(point.cost - from.cost);
  return {std::min(rate, most), head, to};
}

/// Goes through the steps in the order in which they are taken: what saves most per token first; of equals the lower
/// layer, then the lower KV head. The next steps of all heads wait in a heap, since small budgets take few of all.
/// @param take  (HullStep) to whether it is taken: else the head's later ones are left out
template <class Take>
void take_steps(Hulls const& hulls, Take const& take) {
  auto const later = [](HullStep const& a, HullStep const& b) {
    if (a.rate != b.rate) return a.rate < b.rate;
    return a.to > b.to;  // points lie head by head
  };
  std::vector<HullStep> next;
  for (std::size_t head = 0; head + 1 < hulls.first.size(); ++head) {
    if (hulls.first[head] + 1 < hulls.first[head + 1]) next.push_back(step_to(hulls, head, hulls.first[head] + 1));
  }
  std::make_heap(next.begin(), next.end(), later);
  while (!next.empty()) {
    std::pop_heap(next.begin(), next.end(), later);
    HullStep const step = next.back();
    next.pop_back();
    if (!take(step) || step.to + 1 == hulls.first[step.head + 1]) continue;
    next.push_back(step_to(hulls, step.head, step.to + 1, step.rate));
    std::push_heap(next.begin(), next.end(), later);
  }
}

/// What the smallest sizes of all heads cost.
[[nodiscard]] inline std::int64_t least_total(Hulls const& hulls) {
  std::int64_t total = 0;
  for (std::size_t head = 0; head + 1 < hulls.first.size(); ++head) {
    if (hulls.first[head] < hulls.first[head + 1]) total += hulls.points[hulls.first[head]].cost;
  }
  return total;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
