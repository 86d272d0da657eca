// Plans with scored slots: what windows leave of a budget, by reconstruction budgets.

#include "support/byte_plan_checks.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/planned_statistics.hpp"
#include "support/planner_checks.hpp"
#include "support/rounded_statistics.hpp"

#include <headaware/io/plan.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/scored_plan.hpp>
#include <headaware/plan/summary.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 16, 32, 64, 128, 256}};

ha::KvErrors errors_with_formats(unsigned seed) {
  std::vector<std::string> const formats{"packed6", "packed4"};
  return errors_of(with_rounding(random_statistics(4, 4, 2, grid, seed, 0.3), formats, seed + 100));
}

/// Budgets at two mean shares, of heads that differ; a head's share ascends with the mean's.
ha::ReconstructionBudgets random_budgets(std::size_t heads, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> unit(0.05, 1);
  ha::ReconstructionBudgets result{.shares = {0.125, 0.5}, .heads = {{}, {}}};
  double sum = 0;
  for (std::size_t i = 0; i < heads; ++i) sum += result.heads[0].emplace_back(unit(random));
  for (double& share : result.heads[0]) {
    share = std::min(1.0, share * 0.125 * static_cast<double>(heads) / sum);
    result.heads[1].push_back(std::min(1.0, 4 * share));
  }
  return result;
}

ha::SinkWindowScored scored_of(ha::PolicyPlan const& plan, std::size_t head) {
  auto const layer = static_cast<std::int32_t>(head) / plan.num_kv_heads;
  auto const& policy = plan.table.at(layer, static_cast<std::int32_t>(head) % plan.num_kv_heads);
  return policy.is<ha::SinkWindowScored>() ? policy.get<ha::SinkWindowScored>() : ha::SinkWindowScored{0, 0, 0};
}

}  // namespace

TEST_CASE("scored slots take what windows leave of the budget, to the token", "[plan][scored]") {
  for (unsigned seed = 1; seed < 5; ++seed) {
    auto const errors = errors_of(random_statistics(4, 4, 2, grid, seed, 0.3));
    auto const budgets = random_budgets(errors.size(), seed);
    for (std::int64_t const page : {1, 16}) {
      ha::PlanOptions options;
      options.page_size = page;
      auto const whole = ha::plan_policies(errors, ha::Budget::tokens(128), context, options);
      for (double const share : {0.25, 0.5, 0.75}) {
        CAPTURE(seed, page, share);
        auto const windows = ha::plan_policies(errors, ha::Budget::tokens(128 * share), context, options);
        auto const plan = ha::scored_plan(windows, whole, budgets, "0123456789abcdef");
        check_accounting(plan);
        CHECK(plan.budget_tokens == whole.budget_tokens);
        CHECK(plan.left() < page);
        CHECK(ha::has_scored_heads(plan.table));
        CHECK(plan.scores == "0123456789abcdef");
        CHECK_FALSE(ha::has_scored_heads(windows.table));
        for (std::size_t head = 0; head < plan.heads.size(); ++head) {
          CHECK(plan.heads[head].tokens >= windows.heads[head].tokens);
          CHECK(plan.heads[head].tokens <= context);
        }
        // As it is in a file.
        CHECK(ha::parse_plan(ha::format_plan(plan), "plan.json") == plan);
      }
    }
  }
}

TEST_CASE("slots are a head's reconstruction budget of the tokens beyond its windows", "[plan][scored]") {
  auto const errors = errors_of(random_statistics(2, 4, 2, grid, 3));
  ha::PlanOptions const options;
  auto const evaluated = [&](ha::PolicyTable const& table) {
    return ha::evaluate_table(table, errors, context, options);
  };
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 4, .window = 16});
  auto const whole = evaluated(ha::PolicyTable(2, 2, ha::SinkWindow{.sink = 4, .window = 124}));
  // Shares of 3 m, m, 0, 0 at a mean of m up to 1/8. Of the 492 tokens beyond the windows 183 + 61 are what 324 leave.
  ha::ReconstructionBudgets const budgets{.shares = {0.125, 0.5}, .heads = {{0.375, 0.125, 0, 0}, {1, 1, 0, 0}}};
  auto const at_mean = evaluated(ha::PolicyTable(2, 2, ha::SinkWindow{.sink = 4, .window = 77}));  // 324
  auto const plan = ha::scored_plan(evaluated(table), at_mean, budgets);
  CHECK(plan.heads[0].tokens == 203);
  CHECK(plan.heads[1].tokens == 81);
  CHECK(plan.heads[2].tokens == 20);
  CHECK(plan.table.at(0, 0) == ha::AnyPolicy<>(ha::SinkWindowScored{.sink = 4, .window = 16, .scored = 183}));
  CHECK(plan.table.at(0, 1) == ha::AnyPolicy<>(ha::SinkWindowScored{.sink = 4, .window = 16, .scored = 61}));
  CHECK(plan.table.at(1, 1) == ha::AnyPolicy<>(ha::SinkWindow{.sink = 4, .window = 16}));

  // Heads that keep everything or nothing do so still.
  table.set(0, 0, ha::Full{});
  table.set(0, 1, ha::Prune{});
  auto const larger = evaluated(ha::PolicyTable(2, 2, ha::SinkWindow{.sink = 4, .window = 200}));
  auto const kept = ha::scored_plan(evaluated(table), larger, budgets);
  CHECK(kept.table.at(0, 0).is<ha::Full>());
  CHECK(kept.table.at(0, 1).is<ha::Prune>());
  CHECK(kept.planned_tokens == kept.budget_tokens);
  // And a budget for everything is taken as everything.
  auto const all = evaluated(ha::PolicyTable(2, 2, ha::Full{}));
  table.set(0, 0, ha::SinkWindow{.sink = 4, .window = 16});
  table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 16});
  auto const full = ha::scored_plan(evaluated(table), all, budgets, "hash");
  CHECK(full.planned_tokens == 4 * context);
  CHECK(full.table.at(1, 1).is<ha::Full>());
  CHECK(full.scores.empty());
  // Windows as large as the budget leave nothing.
  auto const none = ha::scored_plan(whole, whole, budgets);
  CHECK(none.table == whole.table);
}

TEST_CASE("scored slots of formats cost their rows and records in bytes", "[plan][scored]") {
  for (unsigned seed = 1; seed < 5; ++seed) {
    auto const errors = errors_with_formats(seed);
    auto const budgets = random_budgets(errors.size(), seed);
    ha::PlanOptions options;
    options.formats.pairs = ha::all_format_pairs(errors.formats);
    options.formats.head_dim = 64;
    auto const whole = ha::plan_policies(errors, ha::Budget::tokens(64), context, options);
    auto const windows = ha::plan_policies(errors, ha::Budget::tokens(24), context, options);
    auto const plan = ha::scored_plan(windows, whole, budgets, "hash");
    CAPTURE(seed);
    check_bytes(plan, ha::ModelConfig{4, 4, 2, 64});
    CHECK(plan.formats == windows.formats);
    std::int64_t records = 0;
    std::int64_t dearest = 0;
    for (std::size_t head = 0; head < plan.heads.size(); ++head) {
      auto const policy = scored_of(plan, head);
      records += policy.record_bytes();
      if (policy.scored > 0) dearest = std::max(dearest, plan.heads[head].bytes / plan.heads[head].tokens + 16);
    }
    CHECK(records > 0);
    CHECK(ha::record_bytes(plan.table) == records);
    CHECK(plan.planned_bytes() + records <= plan.budget_bytes());
    CHECK(plan.planned_bytes() + records > plan.budget_bytes() - dearest);
    CHECK(ha::parse_plan(ha::format_plan(plan), "plan.json") == plan);
  }
}

TEST_CASE("cheap rows take more slots of equal budgets", "[plan][scored]") {
  auto const errors = errors_with_formats(2);
  ha::PlanOptions options;
  options.formats.pairs = ha::all_format_pairs(errors.formats);
  options.formats.head_dim = 64;
  ha::FormatTable formats(errors.shape());
  for (std::int32_t layer = 0; layer < 4; ++layer) formats.set(layer, 1, ha::format_pair("packed4", "packed4"));
  ha::PolicyTable const table(errors.shape(), ha::SinkWindow{.sink = 4, .window = 16});
  auto const windows = ha::evaluate_table(table, formats, errors, context, options);
  auto const whole = ha::plan_policies(errors, ha::Budget::tokens(64), context, options);
  ha::ReconstructionBudgets const alike{.shares = {0.5}, .heads = {std::vector<double>(8, 0.5)}};
  auto const plan = ha::scored_plan(windows, whole, alike);
  for (std::size_t head = 0; head < plan.heads.size(); head += 2) {
    CHECK(plan.heads[head + 1].tokens > 2 * plan.heads[head].tokens);
  }
}

TEST_CASE("scored plans refuse what does not belong together", "[plan][scored]") {
  auto const errors = errors_of(random_statistics(2, 4, 2, grid, 3));
  auto const whole = ha::plan_policies(errors, ha::Budget::tokens(128), context);
  auto const windows = ha::plan_policies(errors, ha::Budget::tokens(64), context);
  auto const budgets = random_budgets(4, 1);
  check_error<ha::ArgumentError>([&] { (void)ha::scored_plan(whole, windows, budgets); },
                                 {"cost of the windows", "at most the budget, 256", "512", "scored_plan"});
  check_error<ha::ArgumentError>([&] { (void)ha::scored_plan(windows, whole, random_budgets(5, 1)); },
                                 {"KV heads of the budgets", "4", "5", "scored_plan"});
  check_error<ha::ArgumentError>([&] { (void)ha::scored_plan(windows, whole, {}); },
                                 {"budgets", "at least one share", "none", "scored_plan"});
  auto const longer = ha::plan_policies(errors, ha::Budget::tokens(128), context - 1);
  check_error<ha::ArgumentError>([&] { (void)ha::scored_plan(windows, longer, budgets); },
                                 {"context", "511", "512", "scored_plan"});
  auto ranked = windows;
  ranked.options.ranks = 2;
  check_error<ha::ArgumentError>([&] { (void)ha::scored_plan(ranked, whole, budgets); },
                                 {"shares of ranks or layers", "none", "some", "scored_plan"});
  auto const scored = ha::scored_plan(windows, whole, budgets);
  check_error<ha::ArgumentError>([&] { (void)ha::scored_plan(scored, whole, budgets); },
                                 {"policy", "sink_window or window_only", "sink_window_scored", "scored_plan"});
}
