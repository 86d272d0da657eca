// Plans whose windows and scored slots are chosen together, by errors that were measured of both.

#include "support/byte_plan_checks.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/planned_statistics.hpp"
#include "support/planner_checks.hpp"
#include "support/rounded_statistics.hpp"

#include <headaware/io/plan.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/token_bytes.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t context = 512;
ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 16, 32, 64, 128, 256}};
ha::ScoredGrid const slots{.sink = 4, .windows = {16, 32, 64}, .slots = {8, 16, 32, 64, 128}};

/// Adds errors of scored slots: as those of windows of the same size, times a factor of the head.
ha::RetentionStatistics with_slots(ha::RetentionStatistics statistics, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> unit(0, 1);
  statistics.info.scored = slots;
  statistics.info.scores = "hash";
  for (ha::RetentionSums& sums : statistics.heads) {
    sums.scored = ha::ScoredSums(slots);
    sums.scored.rows = sums.scored.metric_rows = 7;
    double const factor = std::exp(3 * unit(random) - 2);
    for (std::size_t w = 0; w < slots.windows.size(); ++w) {
      for (std::size_t s = 0; s < slots.slots.size(); ++s) {
        double const size = slots.windows[w] + slots.slots[s];
        double const error = factor * sums.output_squared / static_cast<double>(sums.rows) / size;
        sums.scored.error_squared[slots.cell(w, s)] = 7 * error;
        sums.scored.metric_error_squared[slots.cell(w, s)] = 14 * error;
      }
    }
  }
  return statistics;
}

ha::PlanOptions scored_options() {
  ha::PlanOptions options;
  options.scored_slots = true;
  return options;
}

}  // namespace

TEST_CASE("windows and scored slots are chosen together", "[plan][scored]") {
  for (unsigned seed = 1; seed < 6; ++seed) {
    auto const errors = errors_of(with_slots(random_statistics(4, 4, 2, grid, seed), seed));
    for (std::int64_t const page : {1, 16}) {
      CAPTURE(seed, page);
      auto options = scored_options();
      options.page_size = page;
      auto const plan = ha::plan_policies(errors, ha::Budget::tokens(64), context, options);
      check_accounting(plan);
      CHECK(plan.planned_tokens <= plan.budget_tokens);
      CHECK(ha::has_scored_heads(plan.table));
      CHECK(plan.scores == "hash");
      CHECK(ha::parse_plan(ha::format_plan(plan), "plan.json") == plan);
      // No worse than without, of which all sizes are candidates, too; but for a last step.
      options.scored_slots = false;
      auto const windows = ha::plan_policies(errors, ha::Budget::tokens(64), context, options);
      CHECK_FALSE(ha::has_scored_heads(windows.table));
      CHECK(windows.scores.empty());
      CHECK(plan.predicted_error < windows.predicted_error);
      // The error of the table is that of the plan, or less where pages left room.
      CHECK(ha::evaluate_table(plan.table, errors, context, options).predicted_error <= plan.predicted_error * 1.0001);
    }
  }
}

TEST_CASE("a head has slots where they are worth more than a window", "[plan][scored]") {
  auto statistics = with_slots(random_statistics(1, 2, 2, grid, 1, 0), 1);
  for (double& error : statistics.heads[0].scored.error_squared) error = 0.001;
  for (double& error : statistics.heads[1].scored.error_squared) error = 1e9;
  auto const errors = errors_of(statistics);
  auto const plan = ha::plan_policies(errors, ha::Budget::tokens(60), context, scored_options());
  CHECK(plan.table.at(0, 0) == ha::AnyPolicy<>(ha::SinkWindowScored{.sink = 4, .window = 16, .scored = 16}));
  CHECK_FALSE(plan.table.at(0, 1).is<ha::SinkWindowScored>());
  CHECK(errors.scored_at(0, {4, 20, 17}, context) == errors.scored_of(0)[slots.cell(0, 1)]);
  CHECK(errors.scored_at(0, {4, 400, 200}, context) == 0);
  CHECK(errors.scored_at(1, {4, 16, 8}, context) == errors.at(1, 4, 16, context));
  CHECK(errors.scored_at(1, {0, 16, 8}, context) == errors.at(1, 0, 16, context));
}

TEST_CASE("slots of formats are chosen with what their records take", "[plan][scored]") {
  std::vector<std::string> const formats{"packed6", "packed4"};
  for (unsigned seed = 1; seed < 6; ++seed) {
    CAPTURE(seed);
    auto const errors =
        errors_of(with_slots(with_rounding(random_statistics(4, 4, 2, grid, seed), formats, seed), seed));
    auto options = any_format(errors);
    options.scored_slots = true;
    auto const plan = ha::plan_policies(errors, ha::Budget::tokens(40), context, options);
    check_bytes(plan, ha::ModelConfig{4, 4, 2, 64});
    CHECK(ha::has_scored_heads(plan.table));
    CHECK(plan.planned_bytes() + ha::record_bytes(plan.table) <= plan.budget_bytes());
    CHECK(ha::parse_plan(ha::format_plan(plan), "plan.json") == plan);
  }
}

TEST_CASE("plans with slots keep shares of ranks and layers, floors, and whole pages of rows in formats",
          "[plan][scored]") {
  std::vector<std::string> const formats{"packed6", "packed4"};
  for (unsigned seed = 1; seed < 4; ++seed) {
    CAPTURE(seed);
    auto const statistics = with_slots(with_rounding(random_statistics(4, 4, 2, grid, seed), formats, seed), seed);
    auto const errors = errors_of(statistics);
    auto options = scored_options();
    options.ranks = 2;
    auto const ranked = ha::plan_policies(errors, ha::Budget::tokens(64), context, options);
    std::array<std::int64_t, 2> of_rank{};
    for (std::size_t head = 0; head < ranked.heads.size(); ++head) of_rank[head % 2] += ranked.heads[head].tokens;
    CHECK(of_rank[0] <= 4 * 64);
    CHECK(of_rank[1] <= 4 * 64);
    options.ranks = 1;
    options.layer_shares = true;
    options.floor = 40;
    auto const shared = ha::plan_policies(errors, ha::Budget::tokens(64), context, options);
    for (std::size_t head = 0; head < shared.heads.size(); ++head) {
      CHECK(shared.heads[head].tokens >= 40);
      if (head % 2 == 0) CHECK(shared.heads[head].tokens + shared.heads[head + 1].tokens <= 2 * 64);
    }
    auto paged = any_format(errors);
    paged.scored_slots = true;
    paged.page_size = 16;
    auto const plan = ha::plan_policies(errors, ha::Budget::tokens(48), context, paged);
    check_bytes(plan, ha::ModelConfig{4, 4, 2, 64});
    CHECK(plan.planned_bytes() + ha::record_bytes(plan.table) <= plan.budget_bytes());
    CHECK(ha::parse_plan(ha::format_plan(plan), "plan.json") == plan);
    // Records count where a table is held against a budget.
    auto const again = [&](std::int64_t bytes) {
      return ha::evaluate_table(plan.table, plan.formats, errors, context, paged,
                                ha::Budget::bytes(bytes, ha::TokenBytes::of(64, 2)));
    };
    std::int64_t const held = plan.planned_bytes() + ha::record_bytes(plan.table);
    CHECK(again(held).planned_tokens == plan.planned_tokens);
    if (ha::has_scored_heads(plan.table)) CHECK_THROWS_AS(again(held - 1), ha::ArgumentError);
  }
}

TEST_CASE("heads that were not sampled have no slots for nothing", "[plan][scored]") {
  auto statistics = with_slots(random_statistics(2, 4, 2, grid, 1), 1);
  statistics.heads[5].scored = ha::ScoredSums(slots);
  check_error<ha::ArgumentError>([&] { (void)errors_of(statistics); },
                                 {"rows sampled of scored slots", "> 0", "0", "layer 1, query head 1"});
  auto const errors = errors_of(with_slots(random_statistics(2, 4, 2, grid, 1), 1));
  CHECK(errors.scored_at(0, {0, 400, 200}, context) == 0);
}

TEST_CASE("errors of scored slots add up over texts, heads and skipped layers", "[plan][scored]") {
  auto const text = with_slots(random_statistics(3, 4, 2, grid, 1), 1);
  auto const probe = with_slots(random_statistics(3, 4, 2, grid, 2), 2);
  std::array<ha::WeightedStatistics, 2> const texts{{{&text, {}, 1}, {&probe, {}, 0.5}}};
  auto const errors = ha::weighted_errors(texts, ha::ErrorMeasure::output);
  REQUIRE(errors.scored == slots);
  auto const mean = [&](ha::RetentionStatistics const& of, std::size_t head, std::size_t cell) {
    return of.heads[head].scored.error_squared[cell] / 7;
  };
  CHECK_THAT(errors.scored_of(1)[3],
             Catch::Matchers::WithinRel(
                 mean(text, 2, 3) + mean(text, 3, 3) + 0.5 * (mean(probe, 2, 3) + mean(probe, 3, 3)), 1e-12));
  std::vector<std::int32_t> const last{2};
  CHECK(errors.select_layers(last).scored_of(0)[5] == errors.scored_of(4)[5]);
  auto options = scored_options();
  options.skip_layers = {1};
  auto const plan = ha::plan_policies(errors, ha::Budget::tokens(64), context, options);
  CHECK(plan.table.at(1, 0).is<ha::Full>());
  CHECK(plan.scores == "hash");

  // Of other scores, or of one text alone, they are not known.
  auto other = probe;
  other.info.scores = "another";
  std::array<ha::WeightedStatistics, 2> const mixed{{{&text, {}, 1}, {&other, {}, 0.5}}};
  auto const without = ha::weighted_errors(mixed, ha::ErrorMeasure::output);
  CHECK_FALSE(without.scored);
  CHECK(without.scores.empty());
  check_error<ha::ArgumentError>(
      [&] { (void)ha::plan_policies(without, ha::Budget::tokens(64), context, scored_options()); },
      {"errors of scored slots", "observe_scored", "0", "plan_policies"});
}
