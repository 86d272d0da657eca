// Plans of models whose layers differ: errors of all readers of a cache, windows that nothing is spent beyond, rows
// that cost what they hold.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_statistics.hpp"

#include <headaware/detail/model_heads.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/measured_sensitivity.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/refine.hpp>
#include <headaware/plan/replanned_sensitivity.hpp>
#include <headaware/plan/summary.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

using Policy = ha::AnyPolicy<>;
constexpr std::int64_t context = 512;

ha::KvErrors mixed_errors(unsigned seed = 3) {
  return errors_of(mixed_statistics(planned_shape(), ha::RetentionGrid::up_to(context), seed));
}

/// Bytes that a plan holds, from its table alone.
std::int64_t bytes_of(ha::PolicyTable const& table, ha::ModelShape const& shape, std::int64_t page = 1) {
  std::int64_t bytes = 0;
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      bytes += ha::held_tokens(table.at(layer, head), context, page) * shape.layer(layer).token_bytes(2).total();
    }
  }
  return bytes;
}

/// What holds of every plan of such a model.
void check_plan(ha::PolicyPlan const& plan, ha::ModelShape const& shape) {
  std::size_t number = 0;
  std::int64_t tokens = 0;
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    std::int64_t const window = shape.layer(layer).window;
    for (std::int32_t head = 0; head < plan.table.num_kv_heads(layer); ++head, ++number) {
      Policy const& policy = plan.table.at(layer, head);
      REQUIRE(plan.heads[number].tokens == ha::held_tokens(policy, context, plan.options.page_size));
      tokens += plan.heads[number].tokens;
      if (window == 0) continue;
      bool const within =
          policy.is<ha::Prune>() || (policy.is<ha::WindowOnly>() && policy.get<ha::WindowOnly>().window <= window);
      REQUIRE(within);
      REQUIRE(plan.heads[number].tokens <= plan.full_tokens(layer));
      if (plan.keeps_all(layer, head)) REQUIRE(plan.heads[number].predicted_error == 0);
    }
  }
  REQUIRE(number == plan.heads.size());
  REQUIRE(tokens == plan.planned_tokens);
  REQUIRE(plan.left() >= 0);
}

}  // namespace

TEST_CASE("errors of all readers of a cache are added to its KV heads", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const statistics = mixed_statistics(shape, ha::RetentionGrid::up_to(context), 3);
  REQUIRE(statistics.heads.size() == 36);
  CHECK(statistics.info.shape() == shape);
  auto const errors = errors_of(statistics);
  REQUIRE(errors.size() == 13);
  CHECK(errors.num_kv_heads == 4);
  CHECK(errors.shape() == shape);
  auto const mean = [&](std::size_t query, std::size_t cell) {
    auto const& sums = statistics.heads[query];
    return sums.error_squared[cell] * (1 / static_cast<double>(sums.value_rows));
  };
  for (std::size_t const cell : {0U, 17U, 40U}) {
    for (std::size_t kv = 0; kv < 2; ++kv) {  // 4 query heads of layer 0, then 2 of layer 4, which begin at 24
      double sum = 0;
      for (std::size_t i = 0; i < 4; ++i) sum += mean(kv * 4 + i, cell);
      for (std::size_t i = 0; i < 2; ++i) sum += mean(24 + kv * 2 + i, cell);
      CHECK(std::abs(errors.of(kv)[cell] - sum) <= 1e-12 * sum);
    }
    double latent = 0;
    for (std::size_t i = 16; i < 24; ++i) latent += mean(i, cell);
    CHECK(std::abs(errors.of(6)[cell] - latent) <= 1e-12 * latent);
    CHECK(errors.of(7)[cell] == mean(28, cell));  // layer 5
  }
  // The factor of a reader is that of the cache's layer.
  std::vector<double> factors{3, 1, 7, 1, 5, 1, 1};
  ha::WeightedStatistics const text{&statistics, ha::Sensitivities::per_layer(factors)};
  auto const scaled = ha::weighted_errors(std::span(&text, 1), ha::ErrorMeasure::output);
  CHECK(std::abs(scaled.of(0)[9] - 3 * errors.of(0)[9]) <= 1e-12 * scaled.of(0)[9]);
  CHECK(scaled.of(2)[9] == errors.of(2)[9]);
  // In a layer that slides, sinks are window, and the whole window loses nothing.
  CHECK(errors.at(2, 0, 96, context) == 0);
  CHECK(errors.at(2, 4, 92, 10 * context) == 0);
  CHECK(errors.at(2, 4, 60, context) == errors.at(2, 0, 64, context));
  CHECK(errors.at(2, 0, 64, context) > 0);
  CHECK(errors.at(0, 0, 96, context) > 0);

  auto other = statistics;
  std::vector<ha::LayerShape> layers(shape.layers().begin(), shape.layers().end());
  layers[6].window = 64;
  other.info.set_shape(ha::ModelShape(layers));
  std::vector<ha::WeightedStatistics> const two{{&statistics}, {&other}};
  check_error<ha::ArgumentError>([&] { (void)ha::weighted_errors(two); },
                                 {"window of statistics", "48", "64", "weighted_errors, layer 6"});
  other = statistics;
  other.info.num_heads = 4;
  check_error<ha::ArgumentError>([&] { (void)errors_of(other); }, {"layers", "counts", "others", "weighted_errors"});
}

TEST_CASE("plans of layers that differ hold their budget, and windows nothing beyond", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const errors = mixed_errors();
  ha::LayerBytes const row(shape, 2);
  std::int64_t const full = shape.bytes(context, 2);
  double before = 1e300;
  for (std::int64_t const page : {1, 16}) {
    for (std::int64_t held = full / 12; held <= full + 5000; held += full / 23) {
      ha::PlanOptions options;
      options.page_size = page;
      options.floor = 8;
      auto const plan = ha::plan_policies(errors, ha::Budget::bytes(held, row), context, options);
      check_plan(plan, shape);
      CHECK(plan.budget_cost == held);
      CHECK(plan.planned_cost() == bytes_of(plan.table, shape, page));
      CHECK(plan.planned_cost() <= held);
      CHECK(plan.row_costs == std::vector<std::int64_t>{256, 128, 0, 144, 0, 96, 256});
      if (page == 1) {
        CHECK(plan.predicted_error <= before);
        before = plan.predicted_error;
      }
    }
    before = 1e300;
  }
  auto const whole = ha::plan_policies(errors, ha::Budget::bytes(full, row), context);
  CHECK(whole.table == ha::PolicyTable(shape, ha::Full{}));
  CHECK(whole.predicted_error == 0);
  CHECK(whole.left() == 0);
  CHECK(ha::plan_policies(errors, ha::Budget::share(1), context).table == whole.table);
  CHECK(ha::plan_policies(errors, ha::Budget::bytes(10 * full, row), context).planned_cost() == full);

  // Without bytes, channels: so many tokens in every head, or so much of the whole cache.
  auto const tokens = ha::plan_policies(errors, ha::Budget::tokens(64), context);
  check_plan(tokens, shape);
  CHECK(tokens.budget_cost == bytes_of(ha::PolicyTable(shape, ha::WindowOnly{64}), shape) / 2 + 2 * 16 * 128);
  CHECK(tokens.budget_tokens == 64 * 13);
  auto const quarter = ha::plan_policies(errors, ha::Budget::share(0.25), context);
  CHECK(quarter.budget_cost == full / 2 / 4);
  CHECK(2 * quarter.planned_cost() == bytes_of(quarter.table, shape));
  CHECK(quarter.left() < 128);

  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::bytes(1000, row), context); },
                                 {"budget", "bytes, what the heads' smallest sizes take", "1000", "plan_policies"});
  ha::ModelShape const uniform = ha::ModelConfig{3, 4, 2, 64};
  check_error<ha::ArgumentError>(
      [&] {
        std::vector<ha::TokenBytes> bytes{{2, 2}, {3, 3}};
        (void)ha::plan_policies(errors, ha::Budget::bytes(100000, ha::LayerBytes(bytes)), context);
      },
      {"layers of the budget's bytes", "7", "2", "plan_policies"});
  CHECK(ha::Budget::bytes(1024, {uniform, 2}) == ha::Budget::bytes(1024, ha::TokenBytes::of(64, 2)));
}

TEST_CASE("a layer without a cache changes nothing of a plan", "[plan]") {
  auto const plain = random_statistics(3, 4, 2, ha::RetentionGrid::up_to(context), 11);
  auto beside = plain;
  ha::LayerShape const layer{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 64, .value_dim = 64};
  beside.info.set_shape(
      ha::ModelShape({{.kind = ha::LayerKind::none}, layer, layer, {.kind = ha::LayerKind::none}, layer}));
  ha::WeightedStatistics const text{&beside};
  auto const errors = ha::weighted_errors(std::span(&text, 1));
  CHECK(errors.cells == ha::weighted_errors(std::vector<ha::WeightedStatistics>{{&plain}}).cells);
  for (double const mean : {40.0, 100.0, 333.3}) {
    for (ha::Budget const& budget : {ha::Budget::tokens(mean), ha::Budget::share(mean / 512)}) {
      auto const a = ha::plan_policies(plain, budget, context);
      auto const b = ha::plan_policies(beside, budget, context);
      CHECK(a.heads == b.heads);
      CHECK(a.budget_tokens == b.budget_tokens);
      CHECK(a.predicted_error == b.predicted_error);
      CHECK(b.row_costs.empty());
      CHECK(b.table.select_layers(std::vector<std::int32_t>{1, 2, 4}) == a.table);
      auto const c = ha::uniform_table(errors, budget, context, {});
      CHECK(c.at(4, 1) == ha::uniform_table(3, 2, budget, context).at(2, 1));
    }
  }
}

TEST_CASE("a wide row costs more", "[plan]") {
  ha::RetentionGrid const grid = ha::RetentionGrid::up_to(context);
  auto statistics = random_statistics(2, 1, 1, grid, 5);
  statistics.heads[1] = statistics.heads[0];
  ha::LayerShape const narrow{.num_query_heads = 1, .num_kv_heads = 1, .head_dim = 64, .value_dim = 64};
  ha::LayerShape wide = narrow;
  wide.head_dim = wide.value_dim = 256;
  statistics.info.set_shape(ha::ModelShape({wide, narrow}));
  for (double const mean : {64.0, 128.0, 256.0}) {
    auto const plan = ha::plan_policies(statistics, ha::Budget::tokens(mean), context);
    CHECK(plan.heads[1].tokens > plan.heads[0].tokens);
    CHECK(plan.planned_cost() == 512 * plan.heads[0].tokens + 128 * plan.heads[1].tokens);
    CHECK(plan.planned_cost() <= static_cast<std::int64_t>(mean) * 640);
  }
}

TEST_CASE("every rank of a model whose layers differ holds its share", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const errors = mixed_errors();
  for (std::int32_t const ranks : {2, 4, 8}) {
    for (double const share : {0.2, 0.5, 0.9}) {
      ha::PlanOptions options;
      options.ranks = ranks;
      auto const plan = ha::plan_policies(errors, ha::Budget::share(share), context, options);
      check_plan(plan, shape);
      for (std::int32_t rank = 0; rank < ranks; ++rank) {
        // Of the whole of what this rank holds, the budget's share.
        auto const slice = plan.table.slice(rank, ranks);
        std::int64_t held = 0;
        std::int64_t whole = 0;
        for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
          std::int64_t const cost = shape.layer(layer).token_bytes(1).total();
          whole += slice.num_kv_heads(layer) * shape.layer(layer).visible(context) * cost;
          for (std::int32_t head = 0; head < slice.num_kv_heads(layer); ++head) {
            held += ha::held_tokens(slice.at(layer, head), context) * cost;
          }
        }
        CHECK(static_cast<double>(held) <= share * static_cast<double>(whole) * (1 + 1e-9));
      }
    }
  }
  ha::PlanOptions three;
  three.ranks = 3;
  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::share(0.5), context, three); },
                                 {"ranks", "a divisor or a multiple of 2", "3", "plan_policies"});
  ha::PlanOptions each;
  each.layer_shares = true;
  auto const plan = ha::plan_policies(errors, ha::Budget::share(0.5), context, each);
  check_plan(plan, shape);
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    std::int64_t held = 0;
    for (std::int32_t head = 0; head < plan.table.num_kv_heads(layer); ++head) {
      held += ha::held_tokens(plan.table.at(layer, head), context);
    }
    CHECK(2 * held <= plan.table.num_kv_heads(layer) * shape.layer(layer).visible(context));
  }
}

TEST_CASE("skipped layers hold what they see, beyond the budget", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const errors = mixed_errors();
  ha::PlanOptions options;
  options.skip_layers = {1, 2, 5};
  auto const plan = ha::plan_policies(errors, ha::Budget::share(0.3), context, options);
  check_plan(plan, shape);
  CHECK(plan.table.at(1, 3) == Policy(ha::WindowOnly{96}));
  CHECK(plan.table.at(5, 0) == Policy(ha::Full{}));
  CHECK(plan.planned_heads() == 5);
  CHECK(plan.skipped_tokens() == 4 * 96 + 4 * context);
  std::int64_t const beyond = 4 * 96 * 64 + 4 * context * 48;
  std::int64_t const all = shape.bytes(context, 1);
  CHECK(plan.budget_cost == beyond + static_cast<std::int64_t>(0.3 * static_cast<double>(all - beyond)));
  CHECK(plan.planned_cost() <= plan.budget_cost);
  auto const again = ha::evaluate_table(plan.table, errors, context, options, ha::Budget::share(0.3));
  CHECK(again.budget_cost == plan.budget_cost);
  CHECK(again.planned_tokens == plan.planned_tokens);
  options.skip_layers = {0, 1, 3, 5, 6};
  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::share(0.3), context, options); },
                                 {"layers that are not skipped", "one with a cache", "none", "plan_policies"});
  auto const some = errors.select_layers(std::vector<std::int32_t>{6, 4, 0});
  CHECK(some.size() == 4);
  CHECK(some.layers.layer(1).kind == ha::LayerKind::none);
  CHECK(some.of(0)[3] == errors.of(11)[3]);
  CHECK(some.of(2)[3] == errors.of(0)[3]);
}

TEST_CASE("uniform windows, blends and refinements of layers that differ keep the budget", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const errors = mixed_errors();
  ha::Budget const budget = ha::Budget::bytes(shape.bytes(context, 2) / 4, {shape, 2});
  auto const plan = ha::plan_policies(errors, budget, context);
  auto const uniform = ha::uniform_table(errors, budget, context, {});
  CHECK(uniform == ha::uniform_table(shape, budget, context));
  CHECK(uniform.at(6, 0) == Policy(ha::WindowOnly{48}));
  CHECK(uniform.at(0, 0).is<ha::SinkWindow>());
  auto const evaluated = ha::evaluate_table(uniform, errors, context, {}, budget);
  check_plan(evaluated, shape);
  CHECK(evaluated.planned_cost() == bytes_of(uniform, shape));
  CHECK(evaluated.left() >= 0);
  CHECK(evaluated.left() < 13 * 256);
  CHECK(plan.predicted_error < evaluated.predicted_error);
  CHECK(ha::evaluate_table(plan.table, errors, context).predicted_error <= plan.predicted_error * (1 + 1e-9));
  CHECK(ha::uniform_table(shape, ha::Budget::share(1), context) == ha::PolicyTable(shape, ha::Full{}));
  for (double const share : {0.25, 0.5, 0.75}) {
    auto const mixed = ha::blend(uniform, plan.table, share, context);
    check_plan(ha::evaluate_table(mixed, errors, context, {}, budget), shape);
  }
  CHECK(ha::blend(ha::PolicyTable(shape), ha::PolicyTable(shape), 0.5, context) == ha::PolicyTable(shape));
  check_error<ha::ArgumentError>([&] { (void)ha::blend(uniform, ha::PolicyTable(7, 4), 0.5, context); },
                                 {"KV heads", "2", "4", "blend"});

  std::vector<double> tilt;
  for (std::size_t head = 0; head < errors.size(); ++head) tilt.push_back(head < 7 ? 8 : 0.125);
  auto const refined =
      ha::refine_plan(ha::scaled_errors(errors, tilt), budget, context, {}, {}, [&](ha::PolicyTable const& table) {
        return std::vector<double>{ha::evaluate_table(table, errors, context).predicted_error};
      });
  CHECK(refined.loss < refined.first_loss);
  CHECK(refined.plan.planned_cost() <= shape.bytes(context, 2) / 4);
  auto const cuts = ha::detail::head_cuts(ha::detail::kv_head_counts(errors).view(), 9);
  REQUIRE(cuts.size() == 12);
  CHECK(cuts[0].middle == 6);  // layers 0 and 1, and the three others
  CHECK(ha::plan_summary(plan).find("13 KV heads in 5 of 7 layers, of which 2 slide") != std::string::npos);
}

TEST_CASE("sensitivities of layers that differ", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const statistics = mixed_statistics(shape, ha::RetentionGrid::up_to(context), 3);
  auto const errors = errors_of(statistics);
  ha::SensitivityOptions options;
  options.measure = ha::ErrorMeasure::output;
  std::vector<double> const losses{1, 2, 0, 3, 0, 4, 5};
  auto const factors = ha::sensitivities_from_losses(statistics, losses, options);
  REQUIRE(factors.num_layers() == 7);
  CHECK(factors.num_kv_heads() == 0);
  double const latent = errors.at(6, 4, 60, 1 << 30);
  CHECK(std::abs(factors.at(3, 0) - 3 / latent) <= 1e-12 / latent);
  // The window of layer 6 is shorter than the cut: nothing is lost, so nothing is told.
  CHECK(factors.at(6, 0) == factors.at(2, 0));
  std::vector<double> of_heads(13, 1.0);
  auto const by_head = ha::sensitivities_from_losses(statistics, of_heads, options);
  CHECK(by_head.num_kv_heads() == 4);
  CHECK(std::abs(by_head.at(5, 1) - 1 / errors.at(8, 4, 60, 1 << 30)) <= 1e-12 * by_head.at(5, 1));
  auto const given = ha::Sensitivities::per_head(shape, of_heads);
  CHECK(given.at(6, 1) == 1);
  CHECK_THROWS_AS(ha::Sensitivities::per_head(shape, {1, 2}), ha::ArgumentError);
  std::vector<ha::WeightedStatistics> const wrong{
      {&statistics, ha::Sensitivities::per_head(7, 4, std::vector<double>(28, 1))}};
  check_error<ha::ArgumentError>([&] { (void)ha::weighted_errors(wrong); },
                                 {"sensitivities' KV heads", "2", "4", "weighted_errors, layer 0"});

  auto const plan = ha::plan_policies(errors, ha::Budget::share(0.2), context);
  std::vector<double> gains(7, 0.1);
  auto const replanned = ha::sensitivities_at_plan(statistics, {}, plan, gains, 0.5);
  CHECK(replanned.num_kv_heads() == 0);
  CHECK(replanned.values().size() == 7);
  CHECK(ha::sensitivities_at_plan(statistics, {}, plan, std::vector<double>(13, 0.1), 0.5).values().size() == 13);
  CHECK(ha::sensitivities_at_plan(statistics, given, plan, gains, 0.5).values().size() == 13);
}
