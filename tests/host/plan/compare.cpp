// Uniform tables, blends, evaluation of any table, summaries, and plans as classifications.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/planned_statistics.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/plan/classifications.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/summary.hpp>

#include <cmath>
#include <cstdint>
#include <string>

namespace ha = headaware;
using namespace headaware_test;
using Policy = ha::AnyPolicy<>;

namespace {

std::int64_t tokens_of(ha::PolicyTable const& table, std::int64_t context, std::int64_t page = 1) {
  std::int64_t sum = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t kv = 0; kv < table.num_kv_heads(); ++kv) {
      sum += ha::held_tokens(table.at(layer, kv), context, page);
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("uniform windows of a budget", "[plan]") {
  CHECK(ha::uniform_table(2, 3, ha::Budget::tokens(512), 2048) == ha::PolicyTable(2, 3, ha::SinkWindow{4, 508}));
  CHECK(ha::uniform_table(2, 3, ha::Budget::share(1), 2048) == ha::PolicyTable(2, 3, ha::Full{}));
  CHECK(ha::uniform_table(2, 3, ha::Budget::tokens(100.9), 2048, 16) == ha::PolicyTable(2, 3, ha::SinkWindow{4, 92}));
  check_error<ha::ArgumentError>([] { (void)ha::uniform_table(1, 1, ha::Budget::tokens(4), 64); },
                                 {"budget", "more than 4", "4", "uniform_table"});
}

TEST_CASE("blends keep the budget", "[plan]") {
  auto const errors = errors_of(random_statistics(6, 5, 5, ha::RetentionGrid::up_to(512), 31));
  for (std::int64_t const page : {1, 16}) {
    ha::PlanOptions options;
    options.page_size = page;
    auto const budget = ha::Budget::tokens(128);
    auto plan = ha::plan_policies(errors, budget, 512, options).table;
    plan.set(0, 0, ha::Prune{});
    plan.set(5, 4, ha::Full{});
    auto const uniform = ha::uniform_table(6, 5, budget, 512, page);
    CHECK(ha::blend(uniform, plan, 0, 512, page) == uniform);
    CHECK(ha::blend(uniform, plan, 1, 512, page) == plan);
    for (double const share : {0.1, 0.25, 0.3, 0.5, 0.7, 0.999}) {
      auto const mixed = ha::blend(uniform, plan, share, 512, page);
      auto const from = double(tokens_of(uniform, 512, page));
      auto const to = double(tokens_of(plan, 512, page));
      double const exact = (1 - share) * from + share * to;
      auto const held = double(tokens_of(mixed, 512, page));
      CHECK(held <= exact + 1e-6);
      CHECK(held > exact - double(page));
      for (std::int32_t layer = 0; layer < 6; ++layer) {
        for (std::int32_t kv = 0; kv < 5; ++kv) {
          auto const a = double(ha::held_tokens(uniform.at(layer, kv), 512, page));
          auto const b = double(ha::held_tokens(plan.at(layer, kv), 512, page));
          auto const m = double(ha::held_tokens(mixed.at(layer, kv), 512, page));
          REQUIRE(std::abs(m - ((1 - share) * a + share * b)) <= double(page));
        }
      }
    }
    CHECK(ha::blend(uniform, plan, 0.5, 512, page).at(0, 0) == Policy(ha::SinkWindow{4, 60}));
    CHECK(ha::blend(uniform, plan, 0.5, 512, page).at(5, 4).is<ha::SinkWindow>());
  }
  ha::PolicyTable const small(1, 1, ha::SinkWindow{4, 4});
  check_error<ha::ArgumentError>([&] { (void)ha::blend(small, small, 1.5, 64); }, {"share", "[0, 1]", "1.5", "blend"});
  check_error<ha::ArgumentError>([&] { (void)ha::blend(small, ha::PolicyTable(1, 2), 0.5, 64); },
                                 {"KV heads", "1", "2", "blend"});
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::blend(small, ha::PolicyTable(1, 1, ha::KeepList{nullptr, 0}), 0.5, 64);
      },
      {"policy", "sink_window", "keep_list", "blend"});
}

TEST_CASE("a table made elsewhere is accounted for like a plan", "[plan]") {
  auto const errors = errors_of(random_statistics(4, 6, 3, ha::RetentionGrid::up_to(512), 41));
  ha::PlanOptions options;
  options.use_remainder = false;
  auto const plan = ha::plan_policies(errors, ha::Budget::tokens(100), 512, options);
  auto const same = ha::evaluate_table(plan.table, errors, 512, options);
  CHECK(same.table == plan.table);
  CHECK(same.heads == plan.heads);
  CHECK(same.predicted_error == plan.predicted_error);
  CHECK(same.left() == 0);
  // What is left makes windows wider, and predictions no worse than the planner's.
  auto const filled = ha::plan_policies(errors, ha::Budget::tokens(100), 512);
  CHECK(ha::evaluate_table(filled.table, errors, 512).predicted_error <= filled.predicted_error * 1.2);
  auto const uniform = ha::evaluate_table(ha::uniform_table(4, 3, ha::Budget::tokens(100), 512), errors, 512, {},
                                          ha::Budget::tokens(100));
  CHECK(uniform.planned_tokens == 1200);
  CHECK(plan.predicted_error < uniform.predicted_error);
  CHECK(ha::evaluate_table(ha::PolicyTable(4, 3), errors, 512).predicted_error == 0);
  check_error<ha::ArgumentError>(
      [&] { (void)ha::evaluate_table(ha::PolicyTable(4, 3), errors, 512, {}, ha::Budget::tokens(10)); },
      {"tokens of the table", "at most the budget, 120", "6144", "evaluate_table"});
  check_error<ha::ArgumentError>([&] { (void)ha::evaluate_table(ha::PolicyTable(4, 2), errors, 512); },
                                 {"table's KV heads", "3", "2", "evaluate_table"});
}

TEST_CASE("a summary a person can read", "[plan]") {
  auto const errors = errors_of(random_statistics(4, 6, 3, ha::RetentionGrid::up_to(512), 41));
  auto plan = ha::plan_policies(errors, ha::Budget::tokens(200), 512);
  std::string const text = ha::plan_summary(plan);
  INFO(text);
  for (char const* const part : {"512 tokens of context: 4 layers x 3 KV heads, 6 query heads", "budget 2400 tokens",
                                 "planned 2400 (200.0 per KV head, 39.1% of its cache), left 0", "measure output",
                                 "group sum", "floor 50", "policies:", "sinks:", "windows:", "predicted error"}) {
    CHECK(text.find(part) != std::string::npos);
  }
}

TEST_CASE("plans as classifications load as the same policies", "[plan]") {
  ha::ModelConfig const model{3, 6, 3, 64};
  ha::PolicyTable table(3, 3, ha::Full{});
  table.set(0, 0, ha::SinkWindow{4, 60});
  table.set(0, 1, ha::SinkWindow{16, 1000});
  table.set(0, 2, ha::WindowOnly{33});
  table.set(1, 0, ha::Prune{});
  table.set(1, 1, ha::SinkWindow{0, 7});
  table.set(2, 2, ha::SinkWindow{64, 1});
  auto const heads = ha::classifications_from_table(table, model);
  REQUIRE(heads.size() == 18);
  CHECK(heads[2].sink_size == 16);
  CHECK(heads[3] == [&] {
    auto c = heads[2];
    c.head_idx = 3;
    return c;
  }());
  CHECK(ha::table_from_classifications(heads, model) == table);
  // As readers do that know no sinks of their own.
  auto types = ha::TypePolicies::conservative();
  types.use_sink_size = false;
  CHECK(ha::table_from_classifications(heads, model, types).at(0, 1) == Policy(ha::SinkWindow{4, 1000}));
  table.set(0, 0, ha::SinkWindow{4, 0});
  check_error<ha::ArgumentError>([&] { (void)ha::classifications_from_table(table, model); },
                                 {"window", "> 0", "0", "classifications_from_table"});
  table.set(0, 0, ha::KeepList{nullptr, 0});
  check_error<ha::ArgumentError>([&] { (void)ha::classifications_from_table(table, model); },
                                 {"policy", "sink_window", "keep_list", "classifications_from_table"});
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::classifications_from_table(table, ha::ModelConfig{3, 6, 2, 64});
      },
      {"table's KV heads", "2", "3", "classifications_from_table"});
}
