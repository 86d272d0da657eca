// The lower hull of a head's errors.

#include "support/catch.hpp"
#include "support/planned_statistics.hpp"

#include <headaware/plan/detail/lower_hull.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

std::vector<ha::detail::HullPoint> hull_of(ha::RetentionGrid const& grid, std::vector<double> const& errors,
                                           std::int64_t floor, std::int64_t full, std::int64_t page = 1) {
  std::vector<ha::detail::HullPoint> hull;
  ha::detail::append_hull(ha::detail::candidates(grid, full, page), errors, floor, full, hull);
  return hull;
}

}  // namespace

TEST_CASE("hulls are convex, below every size's error, and touch measured ones", "[plan]") {
  ha::RetentionGrid const grid = ha::RetentionGrid::up_to(512);
  auto const statistics = random_statistics(6, 10, 10, grid, 11, 0.8);
  auto const errors = errors_of(statistics);
  for (std::int64_t const page : {1, 16}) {
    for (std::int64_t const floor : {0, 40}) {
      std::int64_t const full = ha::detail::whole_pages(500, page);
      auto const sizes = ha::detail::candidates(grid, full, page);
      REQUIRE(std::is_sorted(sizes.begin(), sizes.end(), [](auto& a, auto& b) { return a.tokens < b.tokens; }));
      for (std::size_t head = 0; head < errors.size(); ++head) {
        std::vector<ha::detail::HullPoint> hull;
        ha::detail::append_hull(sizes, errors.of(head), floor, full, hull);
        REQUIRE(hull.back().tokens == full);
        REQUIRE(hull.back().error == 0);
        REQUIRE(hull.back().sink == -1);
        for (std::size_t i = 1; i < hull.size(); ++i) {
          REQUIRE(hull[i].tokens > hull[i - 1].tokens);
          REQUIRE(hull[i].error < hull[i - 1].error);
          if (i < 2) continue;
          double const before =
              (hull[i - 2].error - hull[i - 1].error) / double(hull[i - 1].tokens - hull[i - 2].tokens);
          double const after = (hull[i - 1].error - hull[i].error) / double(hull[i].tokens - hull[i - 1].tokens);
          REQUIRE(after <= before * (1 + 1e-12));
        }
        for (auto const& size : sizes) {
          if (size.tokens < floor) continue;
          REQUIRE(size.tokens % page == 0);
          auto const above = std::find_if(hull.begin(), hull.end(), [&](auto& p) { return p.tokens >= size.tokens; });
          double line = above->error;
          if (above != hull.begin() && above->tokens > size.tokens) {
            auto const below = above - 1;
            double const part = double(size.tokens - below->tokens) / double(above->tokens - below->tokens);
            line = below->error + part * (above->error - below->error);
          }
          REQUIRE(errors.of(head)[size.cell] >= line * (1 - 1e-9));
        }
      }
    }
  }
}

TEST_CASE("small hulls by hand", "[plan]") {
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {4, 8, 16}};
  // sizes        0+4  0+8  0+16  4+4  4+8  4+16
  auto hull = hull_of(grid, {10, 6, 5, 6, 1, 2}, 0, 32);
  REQUIRE(hull.size() == 3);
  CHECK(hull[0].tokens == 4);
  CHECK(hull[1].tokens == 12);
  CHECK(hull[1].sink == 4);
  CHECK(hull[1].error == 1);
  CHECK(hull[2].sink == -1);
  // Equal size and error: the fewer sinks.
  hull = hull_of(grid, {10, 2, 2, 2, 2, 2}, 0, 32);
  REQUIRE(hull.size() == 3);
  CHECK(hull[1].tokens == 8);
  CHECK(hull[1].sink == 0);
  // No error left: the smaller size, and no Full.
  hull = hull_of(grid, {3, 3, 0, 3, 0, 0}, 0, 32);
  REQUIRE(hull.size() == 2);
  CHECK(hull[1].tokens == 12);
  CHECK(hull[1].sink == 4);
  // Points on a line stay.
  hull = hull_of(grid, {28, 24, 16, 24, 20, 12}, 0, 32);
  CHECK(hull.size() == 6);
  // A floor, and one that leaves Full alone.
  CHECK(hull_of(grid, {10, 6, 5, 6, 1, 2}, 13, 32).front().tokens == 16);
  CHECK(hull_of(grid, {10, 6, 5, 6, 1, 2}, 21, 32).size() == 1);
  // Sizes that reach the context are Full.
  CHECK(hull_of(grid, {10, 6, 5, 6, 1, 2}, 0, 12).size() == 2);
  CHECK(hull_of(grid, {10, 6, 5, 6, 1, 2}, 0, 12)[1].sink == -1);
  CHECK(hull_of(grid, {10, 6, 5, 6, 0, 2}, 0, 12).back().sink == -1);  // even if nothing was lost there
  // Pages.
  for (auto const& point : hull_of(grid, {10, 6, 5, 6, 1, 2}, 0, 40, 10)) CHECK(point.tokens % 10 == 0);
}
