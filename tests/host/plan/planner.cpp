// The planner's properties: exact accounting, optimality against brute force, monotony, ties.

#include "support/planner_checks.hpp"

#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using Policy = ha::AnyPolicy<>;

namespace {

ha::PlanOptions free_options() {
  ha::PlanOptions options;
  options.floor = 0;
  options.use_remainder = false;
  return options;
}

ha::PolicyPlan plan_tokens(ha::KvErrors const& errors, std::int64_t total, ha::PlanOptions const& options) {
  return ha::plan_policies(errors, ha::Budget::tokens(double(total) / double(errors.size())), context, options);
}

/// Least error of all combinations of sizes within `total`, by dynamic programming over tokens.
std::vector<double> best_errors(std::vector<std::vector<std::pair<std::int64_t, double>>> const& heads,
                                std::int64_t total) {
  constexpr double never = std::numeric_limits<double>::infinity();
  std::vector<double> best(static_cast<std::size_t>(total) + 1, 0);
  for (auto const& sizes : heads) {
    std::vector<double> next(best.size(), never);
    for (auto const& [tokens, error] : sizes) {
      for (std::int64_t t = tokens; t <= total; ++t) {
        auto const at = static_cast<std::size_t>(t);
        next[at] = std::min(next[at], best[static_cast<std::size_t>(t - tokens)] + error);
      }
    }
    best = next;
  }
  return best;
}

}  // namespace

TEST_CASE("plans against brute force", "[plan]") {
  ha::RetentionGrid const grid{.sinks = {0, 1, 4}, .windows = {8, 16, 32, 64, 128, 256}};
  for (unsigned const seed : {1U, 2U, 3U}) {
    CAPTURE(seed);
    auto const errors = errors_of(random_statistics(2, 4, 2, grid, seed, 0.6));
    std::vector<std::vector<std::pair<std::int64_t, double>>> all(errors.size());
    std::vector<std::vector<std::pair<std::int64_t, double>>> on_hull(errors.size());
    auto const sizes = ha::detail::candidates(grid, context, 1);
    double steepest = 0;
    for (std::size_t head = 0; head < errors.size(); ++head) {
      for (auto const& size : sizes) all[head].emplace_back(size.tokens, errors.of(head)[size.cell]);
      all[head].emplace_back(context, 0);
      std::vector<ha::detail::HullPoint> hull;
      ha::detail::append_hull(sizes, errors.of(head), 0, context, hull);
      for (auto const& point : hull) on_hull[head].emplace_back(point.tokens, point.error);
      for (std::size_t i = 1; i < hull.size(); ++i) {
        steepest = std::max(steepest, hull[i - 1].error - hull[i].error);
      }
    }
    std::int64_t const whole = context * std::int64_t(errors.size());
    auto const best = best_errors(all, whole);
    auto const best_on_hull = best_errors(on_hull, whole);
    auto last = std::numeric_limits<double>::infinity();
    std::int64_t exact = 0;
    for (std::int64_t total = 32; total <= whole; ++total) {
      auto const plan = plan_tokens(errors, total, free_options());
      REQUIRE(plan.budget_tokens == total);
      check_accounting(plan);
      // Never worse with more.
      REQUIRE(plan.predicted_error <= last * (1 + 1e-12));
      last = plan.predicted_error;
      auto const at = static_cast<std::size_t>(total);
      double const gap = plan.predicted_error - best[at];
      REQUIRE(gap >= -1e-9);
      REQUIRE(gap <= steepest);
      // At sizes where greedy has just taken a step, no combination of any sizes is better.
      auto const used = static_cast<std::size_t>(plan.planned_tokens);
      if (plan.left() == 0 && plan.predicted_error <= best_on_hull[used] * (1 + 1e-12)) ++exact;
    }
    CHECK(last == 0);
    CHECK(exact > 0);
  }
}

TEST_CASE("on the hull greedy is optimal, of all sizes", "[plan]") {
  ha::RetentionGrid const grid{.sinks = {0, 4, 16}, .windows = {8, 24, 48, 96, 192, 384}};
  auto const errors = errors_of(random_statistics(3, 2, 1, grid, 5, 0.5));
  auto const sizes = ha::detail::candidates(grid, context, 1);
  std::vector<std::vector<std::pair<std::int64_t, double>>> all(errors.size());
  auto const costs = ha::detail::cache_costs(errors, nullptr, context);
  ha::detail::Hulls const hulls = ha::detail::all_hulls(errors, costs, std::vector<bool>(errors.size()), 0, 1, false);
  for (std::size_t head = 0; head < errors.size(); ++head) {
    for (auto const& size : sizes) all[head].emplace_back(size.tokens, errors.of(head)[size.cell]);
    all[head].emplace_back(context, 0);
  }
  auto const best = best_errors(all, context * std::int64_t(errors.size()));
  // The budgets that greedy's steps use up.
  std::int64_t total = ha::detail::least_total(hulls);
  ha::detail::take_steps(hulls, [&](ha::detail::HullStep const& step) {
    total += hulls.points[step.to].tokens - hulls.points[step.to - 1].tokens;
    auto const plan = plan_tokens(errors, total, free_options());
    REQUIRE(plan.left() == 0);
    REQUIRE(std::abs(plan.predicted_error - best[static_cast<std::size_t>(total)]) <= 1e-9);
    return true;
  });
  CHECK(total == context * std::int64_t(errors.size()));
}

TEST_CASE("what is left is less than a step, or than a page", "[plan]") {
  ha::RetentionGrid const grid = ha::RetentionGrid::up_to(context);
  auto const errors = errors_of(random_statistics(5, 4, 4, grid, 9));
  for (std::int64_t const page : {1, 16}) {
    auto const costs = ha::detail::cache_costs(errors, nullptr, context);
    auto const hulls = ha::detail::all_hulls(errors, costs, std::vector<bool>(errors.size()), 0, page, false);
    std::int64_t longest = 0;
    ha::detail::take_steps(hulls, [&](ha::detail::HullStep const& step) {
      longest = std::max(longest, hulls.points[step.to].tokens - hulls.points[step.to - 1].tokens);
      return true;
    });
    for (std::int64_t total = 700; total < context * 20; total += 37) {
      auto options = free_options();
      options.page_size = page;
      auto const plan = plan_tokens(errors, total, options);
      check_accounting(plan);
      REQUIRE(plan.left() < longest + page);
      options.use_remainder = true;
      auto const filled = plan_tokens(errors, total, options);
      check_accounting(filled);
      REQUIRE(filled.left() < page);
      REQUIRE(filled.predicted_error == plan.predicted_error);
      int widened = 0;
      for (std::size_t i = 0; i < plan.heads.size(); ++i) {
        widened += filled.heads[i].tokens > plan.heads[i].tokens ? 1 : 0;
      }
      REQUIRE(widened <= 1);
    }
    CHECK(plan_tokens(errors, context * 30, free_options()).planned_tokens == context * 20);
    CHECK(plan_tokens(errors, context * 30, free_options()).table == ha::PolicyTable(5, 4, ha::Full{}));
  }
}

TEST_CASE("the same plan every time; ties go to the lower layer and head", "[plan]") {
  ha::RetentionGrid const grid{.sinks = {0}, .windows = {16, 32, 64}};
  ha::RetentionSums sums(grid);
  sums.rows = sums.value_rows = 1;
  sums.error_squared = {4, 2, 1};
  sums.output_squared = 1;
  ha::RetentionStatistics statistics{{2, 2, 2, 0, 1, true, false, grid}, {sums, sums, sums, sums}};
  auto const errors = errors_of(statistics);
  auto const plan = plan_tokens(errors, 4 * 16 + 2 * 16 + 5, free_options());
  CHECK(plan.table.at(0, 0) == Policy(ha::WindowOnly{32}));
  CHECK(plan.table.at(0, 1) == Policy(ha::WindowOnly{32}));
  CHECK(plan.table.at(1, 0) == Policy(ha::WindowOnly{16}));
  CHECK(plan.left() == 5);
  CHECK(plan.predicted_error == 12);
  auto options = free_options();
  options.use_remainder = true;
  auto const filled = plan_tokens(errors, 4 * 16 + 2 * 16 + 5, options);
  CHECK(filled.table.at(1, 0) == Policy(ha::WindowOnly{21}));
  CHECK(filled.left() == 0);
  CHECK(plan_tokens(errors, 101, free_options()) == plan_tokens(errors, 101, free_options()));
}

TEST_CASE("rates that rounding lets rise do not put a step before its predecessor", "[plan]") {
  // By much more than rounding, so that it shows.
  auto const point = [](std::int64_t cost, double error) { return ha::detail::HullPoint{cost, error, 0, 0, cost}; };
  ha::detail::Hulls const hulls{{point(0, 3), point(10, 2), point(20, 0.5), point(0, 1.2), point(10, 0)}, {0, 3, 5}};
  std::vector<std::size_t> order;
  std::vector<double> rates;
  ha::detail::take_steps(hulls, [&](ha::detail::HullStep const& step) {
    order.push_back(step.to);
    rates.push_back(step.rate);
    return true;
  });
  CHECK(order == std::vector<std::size_t>{4, 1, 2});
  CHECK(rates == std::vector<double>{0.12, 0.1, 0.1});
}
