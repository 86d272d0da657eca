// Head budgets: interpolated, floored, and summing up to what was asked for.

#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/score/budgets.hpp>

#include <cstdint>
#include <numeric>
#include <vector>

namespace ha = headaware;
using headaware_test::check_error;

namespace {

ha::ReconstructionBudgets some() { return {{0.125, 0.5}, {{0.25, 0.125, 0.125, 0}, {0.875, 0.5, 0.375, 0.25}}}; }

std::int64_t sum(std::vector<std::int64_t> const& tokens) {
  return std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0});
}

}  // namespace

TEST_CASE("budgets are what was measured, between that interpolated", "[score]") {
  auto const budgets = some();
  CHECK(budgets.tokens(128, 1024, 0) == std::vector<std::int64_t>{256, 128, 128, 0});
  CHECK(budgets.tokens(512, 1024, 0) == std::vector<std::int64_t>{896, 512, 384, 256});
  CHECK(budgets.tokens(320, 1024, 0) == std::vector<std::int64_t>{576, 320, 256, 128});
  // Below the least share in proportion, above the largest towards everything.
  CHECK(budgets.tokens(64, 1024, 0) == std::vector<std::int64_t>{128, 64, 64, 0});
  CHECK(budgets.tokens(768, 1024, 0) == std::vector<std::int64_t>{960, 768, 704, 640});
  CHECK(budgets.tokens(1024, 1024) == std::vector<std::int64_t>{1024, 1024, 1024, 1024});
  CHECK(budgets.tokens(0, 0, 0) == std::vector<std::int64_t>{0, 0, 0, 0});
}

TEST_CASE("floors and lengths hold, and the sum is as asked", "[score]") {
  auto const budgets = some();
  for (double const mean : {8.0, 8.3, 17.0, 100.0, 127.7, 333.0, 900.0, 1023.9}) {
    auto const tokens = budgets.tokens(mean, 1024);
    INFO(mean);
    CHECK(sum(tokens) == static_cast<std::int64_t>(4 * mean + 1e-6));
    for (std::int64_t const each : tokens) {
      CHECK(each >= 8);
      CHECK(each <= 1024);
    }
    for (std::size_t i = 1; i < tokens.size(); ++i) CHECK(tokens[i] <= tokens[i - 1]);
  }
  // A head that never had a share gets the floor; where the others are full, it gets what is left.
  ha::ReconstructionBudgets const one{{0.5}, {{1, 0}}};
  CHECK(one.tokens(50, 100) == std::vector<std::int64_t>{92, 8});
  CHECK(ha::ReconstructionBudgets{{0.25, 0.5}, {{0.5, 0}, {1, 0}}}.tokens(56, 100) ==
        std::vector<std::int64_t>{100, 12});
}

TEST_CASE("budgets that make no sense are refused", "[score]") {
  constexpr auto where = "ReconstructionBudgets::tokens";
  auto const refused = [&](ha::ReconstructionBudgets const& budgets, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>([&] { (void)budgets.tokens(20, 100); }, parts);
  };
  refused({}, {"budgets", "at least one", "none", where});
  refused({{0.5}, {}}, {"budgets", "1 shares", "0", where});
  refused({{0.5, 0.25}, {{1}, {1}}}, {"share", "ascending", "0.25", where});
  refused({{0.5, 1}, {{1}, {1}}}, {"share", "in (0, 1)", "1.0", where});
  refused({{0.25, 0.5}, {{1}, {1, 0}}}, {"KV heads of a budget", "as many", "2", where});
  refused({{0.5}, {{1.5}}}, {"share of a KV head", "[0, 1]", "1.5", where});
  check_error<ha::ArgumentError>([&] { (void)some().tokens(7, 100); }, {"mean tokens", "[8, 100]", "7", where});
  check_error<ha::ArgumentError>([&] { (void)some().tokens(101, 100); }, {"mean tokens", "[8, 100]", "101", where});
  check_error<ha::ArgumentError>([&] { (void)some().tokens(20, 100, -1); }, {"least tokens", ">= 0", "-1", where});
}
