// What the planner is asked for: floors, budgets, pages, shares of ranks and layers, skipped layers.

#include "support/errors.hpp"
#include "support/planner_checks.hpp"

#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("floors", "[plan]") {
  ha::RetentionGrid const grid = ha::RetentionGrid::up_to(context);
  auto const errors = errors_of(random_statistics(4, 3, 3, grid, 3));
  auto const least = [](ha::PolicyPlan const& plan) {
    return std::min_element(plan.heads.begin(), plan.heads.end(), [](auto& a, auto& b) { return a.tokens < b.tokens; })
        ->tokens;
  };
  ha::PlanOptions options;
  CHECK(ha::plan_policies(errors, ha::Budget::tokens(300), context, options).floor == 75);
  CHECK(least(ha::plan_policies(errors, ha::Budget::tokens(300), context, options)) >= 75);
  CHECK(ha::plan_policies(errors, ha::Budget::tokens(64), context, options).floor == 32);
  // More than there is to keep is no reason for a floor above the context.
  auto const everything = ha::plan_policies(errors, ha::Budget::tokens(1e6), context, options);
  CHECK(everything.floor == context);
  CHECK(everything.planned_tokens == context * static_cast<std::int64_t>(errors.size()));
  // The default gives way where the budget does not allow it; one that was asked for does not.
  auto const tight = ha::plan_policies(errors, ha::Budget::tokens(20), context, options);
  check_accounting(tight);
  CHECK(tight.floor == 10);
  for (std::int64_t const floor : {0, 10, 64, 100}) {
    options.floor = floor;
    CHECK(least(ha::plan_policies(errors, ha::Budget::tokens(128), context, options)) >= floor);
  }
  options.floor = 200;
  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::tokens(128), context, options); },
                                 {"budget", "at least", "1536", "plan_policies"});
  options.floor = 0;
  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::tokens(7), context, options); },
                                 {"budget", "at least 96 tokens", "84", "plan_policies"});
  // A context so short that nothing but Full is left.
  auto const short_plan = ha::plan_policies(errors, ha::Budget::share(1), 8, {});
  CHECK(short_plan.table == ha::PolicyTable(4, 3, ha::Full{}));
  CHECK(short_plan.left() == 0);
}

TEST_CASE("budgets as tokens, share and bytes", "[plan]") {
  CHECK(ha::Budget::tokens(2.5).total(4, 100) == 10);
  CHECK(ha::Budget::share(0.1).total(20, 100) == 200);
  CHECK(ha::Budget::share(0.3).total(3, 7) == 6);
  CHECK(ha::Budget::bytes(1023, ha::TokenBytes::of(64, 2)).total(20, 100) == 3);
  CHECK_THROWS_AS(ha::Budget::tokens(0), ha::ArgumentError);
  CHECK_THROWS_AS(ha::Budget::share(1.01), ha::ArgumentError);
  CHECK_THROWS_AS(ha::Budget::share(std::numeric_limits<double>::quiet_NaN()), ha::ArgumentError);
  CHECK_THROWS_AS(ha::Budget::bytes(0, ha::TokenBytes::of(64, 2)), ha::ArgumentError);
  CHECK_THROWS_AS(ha::Budget::bytes(10, ha::TokenBytes{}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::Budget::tokens(1e300).total(10, 10), ha::ArgumentError);
}

TEST_CASE("pages are whole, windows fill them", "[plan]") {
  auto const errors = errors_of(random_statistics(4, 3, 3, ha::RetentionGrid::up_to(500), 8));
  ha::PlanOptions options;
  options.page_size = 32;
  for (double const budget : {64.0, 100.0, 333.3, 499.0}) {
    auto const plan = ha::plan_policies(errors, ha::Budget::tokens(budget), 500, options);
    check_accounting(plan);
    for (std::int32_t layer = 0; layer < 4; ++layer) {
      for (std::int32_t kv = 0; kv < 3; ++kv) {
        auto const& policy = plan.table.at(layer, kv);
        auto const& head = plan.heads[static_cast<std::size_t>(layer * 3 + kv)];
        if (policy.is<ha::Full>()) {
          CHECK(head.tokens == 512);
        } else {
          CHECK(ha::held_tokens(policy, 500) == head.tokens);  // no slot of a page is empty
        }
      }
    }
  }
}

TEST_CASE("equal shares a tensor-parallel rank and a layer", "[plan]") {
  auto const errors = errors_of(random_statistics(4, 8, 8, ha::RetentionGrid::up_to(context), 21));
  auto const tokens_of = [](ha::PolicyPlan const& plan, auto const& part) {
    std::map<std::int32_t, std::int64_t> sums;
    for (std::int32_t layer = 0; layer < 4; ++layer) {
      for (std::int32_t kv = 0; kv < 8; ++kv) {
        sums[part(layer, kv)] += plan.heads[static_cast<std::size_t>(layer * 8 + kv)].tokens;
      }
    }
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    std::int64_t most = 0;
    for (auto const& [p, sum] : sums) {
      least = std::min(least, sum);
      most = std::max(most, sum);
    }
    return std::pair(sums.size(), most - least);
  };
  for (std::int64_t const page : {1, 16}) {
    for (std::int32_t const ranks : {1, 2, 4, 8, 16}) {
      ha::PlanOptions options;
      options.ranks = ranks;
      options.page_size = page;
      auto const heads = 8 / std::min(ranks, 8);
      auto const plan = ha::plan_policies(errors, ha::Budget::tokens(133.7), context, options);
      check_accounting(plan);
      auto const [count, apart] = tokens_of(plan, [&](std::int32_t, std::int32_t kv) { return kv / heads; });
      CHECK(count == static_cast<std::size_t>(std::min(ranks, 8)));
      CHECK(apart <= page);
      // What a rank holds, as it holds it.
      if (ranks <= 8) {
        std::int64_t sum = 0;
        auto const slice = plan.table.slice(ranks - 1, ranks);
        for (std::int32_t layer = 0; layer < 4; ++layer) {
          for (std::int32_t kv = 0; kv < heads; ++kv) sum += ha::held_tokens(slice.at(layer, kv), context, page);
        }
        CHECK(sum * std::min(ranks, 8) <= plan.budget_tokens + page * 8);
      }
      options.layer_shares = true;
      auto const layered = ha::plan_policies(errors, ha::Budget::tokens(133.7), context, options);
      check_accounting(layered);
      CHECK(tokens_of(layered, [&](std::int32_t layer, std::int32_t kv) { return layer * 8 + kv / heads; }).second <=
            page);
      CHECK(layered.predicted_error >= plan.predicted_error * (1 - 1e-9));
    }
  }
  ha::PlanOptions options;
  options.ranks = 3;
  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::tokens(99), context, options); },
                                 {"ranks", "8 KV heads", "3", "plan_policies"});
}

TEST_CASE("heads without output are pruned, and only they", "[plan]") {
  auto statistics = random_statistics(3, 4, 2, ha::RetentionGrid::up_to(context), 4);
  auto const silence = [&](std::size_t head, double factor) {
    statistics.heads[head].output_squared *= factor;
    statistics.heads[head].output_metric_squared *= factor;
  };
  silence(0, 0);  // one of a group: the group stays
  silence(6, 1e-9);
  silence(7, 1e-9);  // a whole group: layer 1, KV head 1
  auto const plan = ha::plan_policies(statistics, ha::Budget::tokens(100), context);
  check_accounting(plan);
  CHECK(plan.options.measure == ha::ErrorMeasure::output_metric);
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    for (std::int32_t kv = 0; kv < 2; ++kv) {
      CHECK(plan.table.at(layer, kv).is<ha::Prune>() == (layer == 1 && kv == 1));
    }
  }
  CHECK(plan.heads[3].tokens == 0);
  CHECK(plan.heads[3].predicted_error > 0);
  CHECK(plan.left() == 0);
  ha::PlanOptions options;
  options.negligible_output = 0;
  CHECK_FALSE(ha::plan_policies(statistics, ha::Budget::tokens(100), context, options).table.at(1, 1).is<ha::Prune>());
  // A share that is the limit itself is negligible.
  options.negligible_output = errors_of(statistics, ha::ErrorMeasure::output_metric).output_share[3];
  CHECK(options.negligible_output > 0);
  CHECK(ha::plan_policies(statistics, ha::Budget::tokens(100), context, options).table.at(1, 1).is<ha::Prune>());
  // One text in which the head speaks is enough.
  auto const loud = random_statistics(3, 4, 2, ha::RetentionGrid::up_to(context), 5);
  std::vector<ha::WeightedStatistics> const texts{{&statistics}, {&loud, {}, 0.3}};
  CHECK_FALSE(ha::plan_policies(texts, ha::Budget::tokens(100), context).table.at(1, 1).is<ha::Prune>());
  // Where both are known, the error after the projection counts.
  auto projected = loud;
  projected.heads[6].output_metric_squared *= 1e-9;
  projected.heads[7].output_metric_squared *= 1e-9;
  CHECK(ha::plan_policies(projected, ha::Budget::tokens(100), context).table.at(1, 1).is<ha::Prune>());
  // Of masses alone nothing is known of the output.
  statistics.info.with_values = statistics.info.with_output_metric = false;
  CHECK_FALSE(ha::plan_policies(statistics, ha::Budget::tokens(100), context).table.at(1, 1).is<ha::Prune>());
}

TEST_CASE("skipped layers keep everything, beyond the budget", "[plan]") {
  auto const errors = errors_of(random_statistics(5, 4, 2, ha::RetentionGrid::up_to(context), 31));
  auto const others = errors.select_layers(std::vector<std::int32_t>{0, 2, 3});
  CHECK(others.num_layers == 3);
  CHECK(others.at(2, 4, 60, context) == errors.at(4, 4, 60, context));
  for (bool const layered : {false, true}) {
    ha::PlanOptions options;
    options.page_size = 16;
    options.layer_shares = layered;
    auto const alone = ha::plan_policies(others, ha::Budget::tokens(100), context, options);
    options.skip_layers = {1, 4};
    auto const plan = ha::plan_policies(errors, ha::Budget::tokens(100), context, options);
    check_accounting(plan);
    CHECK(plan.options == [&] {
      auto asked = options;
      asked.measure = errors.measure;
      return asked;
    }());
    CHECK(plan.planned_heads() == 6);
    CHECK(plan.skipped_tokens() == 4 * context);
    CHECK(plan.budget_tokens == alone.budget_tokens + 4 * context);
    CHECK(plan.mean_tokens() == alone.mean_tokens());
    CHECK(plan.mean_budget() == 100);
    CHECK(plan.floor == alone.floor);
    CHECK(plan.predicted_error == alone.predicted_error);
    CHECK(plan.table.select_layers(std::vector<std::int32_t>{0, 2, 3}) == alone.table);
    for (std::int32_t const layer : options.skip_layers) {
      for (std::int32_t kv = 0; kv < 2; ++kv) CHECK(plan.table.at(layer, kv).is<ha::Full>());
    }
    // Uniform windows beside it, at its size.
    auto const uniform = ha::uniform_table(errors, ha::Budget::tokens(100), context, options);
    CHECK(uniform.at(1, 0).is<ha::Full>());
    CHECK(uniform.at(0, 0).get<ha::SinkWindow>() == ha::SinkWindow{4, 92});
    auto const evaluated = ha::evaluate_table(uniform, errors, context, options, ha::Budget::tokens(100));
    CHECK(evaluated.budget_tokens == plan.budget_tokens);
    CHECK(evaluated.mean_tokens() == 96);
  }
  auto const refused = [&](std::vector<std::int32_t> layers, ha::ErrorDetail const& parts) {
    ha::PlanOptions options;
    options.skip_layers = std::move(layers);
    check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::tokens(100), context, options); },
                                   parts);
  };
  refused({0, 1, 2, 3, 4}, {"layers that are not skipped", "one", "none", "plan_policies"});
  refused({5}, {"skipped layer", "", "5", "plan_policies"});
  refused({-1}, {"skip_layers", "ascending", "-1", "PlanOptions"});
  refused({2, 2}, {"skip_layers", "ascending", "2", "PlanOptions"});
  check_error<ha::ArgumentError>([&] { (void)errors.select_layers({}); }, {"layers", "one", "none", "select_layers"});
  check_error<ha::ArgumentError>([&] { (void)errors.select_layers(std::vector<std::int32_t>{5}); },
                                 {"layer", "", "5", "select_layers"});
}

TEST_CASE("options that make no sense are refused", "[plan]") {
  auto const errors = errors_of(random_statistics(1, 1, 1, ha::RetentionGrid::up_to(64), 4));
  auto const refused = [&](auto const& change, ha::ErrorDetail const& parts, std::int64_t tokens = 64) {
    ha::PlanOptions options;
    change(options);
    check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::tokens(40), tokens, options); },
                                   parts);
  };
  refused([](auto& o) { o.page_size = 0; }, {"page_size", "[1, ", "0", "PlanOptions"});
  refused([](auto& o) { o.ranks = 0; }, {"ranks", "> 0", "0", "PlanOptions"});
  refused([](auto& o) { o.floor = -1; }, {"floor", "[0, context]", "-1", "PlanOptions"});
  refused([](auto& o) { o.floor = 65; }, {"floor", "[0, context]", "65", "PlanOptions"});
  refused([](auto& o) { o.negligible_output = -1; }, {"negligible_output", ">= 0", "-1", "PlanOptions"});
  refused([](auto&) {}, {"context", "tokens", "0", "PlanOptions"}, 0);
  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(ha::KvErrors{}, ha::Budget::tokens(40), 10); },
                                 {"errors", "", "0", "plan_policies"});
}
