// Errors of KV heads: weights, folds, grids in common, interpolation, and sensitivities.

#include "support/errors.hpp"

#include "support/catch.hpp"
#include "support/planned_statistics.hpp"

#include <headaware/plan/compare.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/measured_sensitivity.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/replanned_sensitivity.hpp>
#include <headaware/plan/weighted_errors.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

bool near(double a, double b) { return std::abs(a - b) <= 1e-12 * std::max({1.0, std::abs(a), std::abs(b)}); }

/// Of the three query heads of a KV head: what `value` says of them, by row.
template <class Value>
double fold_of(ha::GroupFold fold, ha::RetentionStatistics const& of, std::size_t head, Value const& value) {
  double sum = 0;
  double most = 0;
  for (std::size_t member = 0; member < 3; ++member) {
    auto const& sums = of.heads[head * 3 + member];
    double const mean = value(sums) / double(sums.rows);
    sum += mean;
    most = std::max(most, mean);
  }
  return fold == ha::GroupFold::sum ? sum : most;
}

}  // namespace

TEST_CASE("errors are the weighted sum over texts of folded means", "[plan]") {
  ha::RetentionGrid const text_grid{.sinks = {0, 1, 4}, .windows = {8, 16, 64, 128}};
  ha::RetentionGrid const probe_grid{.sinks = {1, 4, 16}, .windows = {16, 32, 128, 256}};
  auto const text = random_statistics(3, 6, 2, text_grid, 1);
  auto const probe = random_statistics(3, 6, 2, probe_grid, 2);
  auto const layers = ha::Sensitivities::per_layer({1, 2, 0.5});
  auto const heads = ha::Sensitivities::per_head(3, 2, {1, 2, 3, 4, 5, 6});
  std::vector<ha::WeightedStatistics> const texts{{&text, layers, 1}, {&probe, heads, 0.3}};
  for (auto const fold : {ha::GroupFold::sum, ha::GroupFold::maximum}) {
    for (auto const measure : {ha::ErrorMeasure::mass, ha::ErrorMeasure::output, ha::ErrorMeasure::output_metric}) {
      auto const errors = ha::weighted_errors(texts, measure, fold);
      REQUIRE(errors.grid == ha::RetentionGrid{.sinks = {1, 4}, .windows = {16, 128}});
      REQUIRE(errors.size() == 6);
      for (std::size_t head = 0; head < 6; ++head) {
        for (std::size_t s = 0; s < 2; ++s) {
          for (std::size_t w = 0; w < 2; ++w) {
            auto const value = [&](ha::RetentionSums const& sums, std::size_t cell) {
              return (measure == ha::ErrorMeasure::mass     ? sums.mass
                      : measure == ha::ErrorMeasure::output ? sums.error_squared
                                                            : sums.metric_error_squared)[cell];
            };
            auto const folded = [&](ha::RetentionStatistics const& of, std::size_t cell) {
              return fold_of(fold, of, head, [&](ha::RetentionSums const& sums) { return value(sums, cell); });
            };
            double const expected = layers.at(std::int32_t(head / 2), std::int32_t(head % 2)) *
                                        folded(text, text_grid.cell(s + 1, w == 0 ? 1 : 3)) +
                                    0.3 * double(head + 1) * folded(probe, probe_grid.cell(s, w == 0 ? 0 : 2));
            REQUIRE(near(errors.of(head)[errors.grid.cell(s, w)], expected));
          }
        }
        auto const dropped = [&](ha::RetentionStatistics const& of) {
          return fold_of(fold, of, head, [&](ha::RetentionSums const& sums) {
            return measure == ha::ErrorMeasure::mass     ? double(sums.rows)
                   : measure == ha::ErrorMeasure::output ? sums.output_squared
                                                         : sums.output_metric_squared;
          });
        };
        double const factor = layers.at(std::int32_t(head / 2), std::int32_t(head % 2));
        REQUIRE(near(errors.dropped[head], factor * dropped(text) + 0.3 * double(head + 1) * dropped(probe)));
      }
    }
  }
  CHECK(ha::best_measure(texts) == ha::ErrorMeasure::output_metric);
  auto plain = probe;
  plain.info.with_output_metric = false;
  std::vector<ha::WeightedStatistics> const mixed{{&text}, {&plain}};
  CHECK(ha::best_measure(mixed) == ha::ErrorMeasure::output);
  CHECK(ha::weighted_errors(mixed).measure == ha::ErrorMeasure::output);
}

TEST_CASE("statistics that do not go together are refused", "[plan]") {
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 16}};
  auto const text = random_statistics(2, 4, 2, grid, 1);
  auto const refused = [&](std::vector<ha::WeightedStatistics> const& texts, ha::ErrorDetail const& parts,
                           std::optional<ha::ErrorMeasure> measure = {}) {
    check_error<ha::ArgumentError>([&] { (void)ha::weighted_errors(texts, measure); }, parts);
  };
  refused({}, {"statistics", "at least one", "none", ""});
  refused({ha::WeightedStatistics{}}, {"statistics", "a pointer", "nullptr", ""});
  refused({{&text, {}, -1}}, {"weight", ">= 0", "-1", "weighted_errors"});
  refused({{&text, ha::Sensitivities::per_layer({1, 1, 1}), 1}}, {"sensitivities' layers", "2", "3", ""});
  refused({{&text, ha::Sensitivities::per_head(2, 1, {1, 1}), 1}}, {"sensitivities' KV heads", "2", "1", ""});
  auto const other = random_statistics(2, 4, 4, grid, 1);
  refused({{&text}, {&other}}, {"model of the statistics", "the same shape", "another", ""});
  auto const apart = random_statistics(2, 4, 2, {.sinks = {1}, .windows = {8}}, 1);
  refused({{&text}, {&apart}}, {"(sink, window) pairs", "at least one", "none", ""});
  auto masses = text;
  masses.info.with_values = masses.info.with_output_metric = false;
  refused({{&masses}}, {"error measure", "values", "masses", ""}, ha::ErrorMeasure::output);
  refused({{&masses}}, {"error measure", "projection", "", ""}, ha::ErrorMeasure::output_metric);
  auto broken = text;
  broken.heads[5].metric_rows = 0;
  refused({{&broken}}, {"rows observed", "> 0", "0", "layer 1, query head 1"});
  broken = text;
  broken.heads[5].metric_error_squared.pop_back();
  refused({{&broken}}, {"sums", "4", "3", "layer 1, query head 1"});
  broken = text;
  broken.heads[5].metric_error_squared[0] = std::numeric_limits<double>::quiet_NaN();
  refused({{&broken}}, {"error of a KV head", "finite", "nan", ""});
  broken = text;
  broken.heads.pop_back();
  refused({{&broken}}, {"heads of the statistics", "8", "7", ""});
  CHECK_THROWS_AS(ha::Sensitivities::per_layer({}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::Sensitivities::per_layer({1, -1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::Sensitivities::per_head(2, 2, {1, 1, 1}), ha::ArgumentError);
}

TEST_CASE("errors between and beyond the grid's pairs", "[plan]") {
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 32, 128}};
  auto errors = errors_of(random_statistics(1, 1, 1, grid, 1));
  errors.cells = {8, 6, 4, 4, 3, 2};
  CHECK(errors.at(0, 0, 32, 1000) == 6);
  CHECK(near(errors.at(0, 0, 16, 1000), 7));  // half way from 8 to 32, in doublings
  CHECK(errors.at(0, 0, 3, 1000) == 8);
  CHECK(near(errors.at(0, 1, 32, 1000), 5.25));
  CHECK(near(errors.at(0, 2, 32, 1000), 4.5));
  CHECK(near(errors.at(0, 3, 32, 1000), 3.75));
  CHECK(errors.at(0, 9, 32, 1000) == 3);
  CHECK(near(errors.at(0, 0, 256, 512), 2));  // half way from 128 to all of 512
  CHECK(errors.at(0, 0, 512, 512) == 0);
  CHECK(errors.at(0, 4, 508, 512) == 0);
  CHECK(errors.at(0, 4, 8, 12) == 0);  // the pair is all there is, whatever was measured of longer texts
  CHECK(errors.at(0, 4, 8, 13) == 4);
  CHECK(errors.at(0, 0, 128, 100) == 0);
  CHECK(near(errors.at(0, 0, 64, 128), 3));  // all 128 is no window of it
}

TEST_CASE("sensitivities make measured losses of errors", "[plan]") {
  auto const text = random_statistics(3, 4, 2, ha::RetentionGrid::up_to(512), 6);
  auto const errors = errors_of(text, ha::ErrorMeasure::output_metric);
  auto const cut = [&](std::size_t head) { return errors.at(head, 4, 60, 512); };
  // A decrease counts as the least increase.
  auto const c = ha::sensitivities_from_losses(text, std::vector<double>{0.5, -0.1, 0.02});
  REQUIRE(c.num_kv_heads() == 0);
  CHECK(near(c.at(0, 1) * (cut(0) + cut(1)), 0.5));
  CHECK(near(c.at(1, 0) * (cut(2) + cut(3)), 1e-4));
  CHECK(near(c.at(2, 0) * (cut(4) + cut(5)), 0.02));
  auto const h = ha::sensitivities_from_losses(text, std::vector<double>{1, 2, 3, 4, 5, 6}, {.least_increase = 0});
  REQUIRE(h.num_kv_heads() == 2);
  for (std::size_t head = 0; head < 6; ++head) {
    CHECK(near(h.at(std::int32_t(head / 2), std::int32_t(head % 2)) * cut(head), double(head + 1)));
  }
  // (4, 60) lies between (4, 48) and (4, 64).
  CHECK(cut(0) > errors.at(0, 4, 64, 512));
  CHECK(cut(0) < errors.at(0, 4, 48, 512));
  // A layer that loses nothing at the cut gets the mean of the others.
  auto silent = text;
  for (std::size_t i = 0; i < 4; ++i) silent.heads[i].metric_error_squared.assign(silent.info.grid.size(), 0);
  auto const s = ha::sensitivities_from_losses(silent, std::vector<double>{0.5, 0.1, 0.02});
  CHECK(near(s.at(0, 0), (s.at(1, 0) + s.at(2, 0)) / 2));
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::sensitivities_from_losses(text, std::vector<double>{1, 2});
      },
      {"losses", "one per layer", "2", "sensitivities_from_losses"});
  double const nan = std::numeric_limits<double>::quiet_NaN();
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::sensitivities_from_losses(text, std::vector<double>{1, nan, 1});
      },
      {"loss increase", "finite", "nan", ""});
}

TEST_CASE("sensitivities at a plan follow what giving a layer back gains", "[plan]") {
  auto const statistics = random_statistics(4, 6, 2, ha::RetentionGrid::up_to(512), 7);
  auto const before = ha::Sensitivities::per_layer({1, 0.5, 2, 3});
  ha::WeightedStatistics const text{&statistics, before};
  ha::PlanOptions options;
  options.skip_layers = {3};
  auto const plan = ha::plan_policies(std::span(&text, 1), ha::Budget::tokens(64), 512, options);
  std::vector<double> predicted(4);
  for (std::size_t head = 0; head < 8; ++head) predicted[head / 2] += plan.heads[head].predicted_error;
  REQUIRE(predicted[3] == 0);

  // Gains in the ratios of what is predicted: the same sensitivities, at the scale of the gains.
  std::vector<double> gains;
  for (double const loss : predicted) gains.push_back(0.01 * loss);
  for (double const step : {0.0, 0.5, 1.0}) {
    auto const same = ha::sensitivities_at_plan(statistics, before, plan, gains, step);
    for (std::int32_t layer = 0; layer < 4; ++layer) {
      CHECK(std::abs(same.at(layer, 0) / (0.01 * before.at(layer, 0)) - 1) < 0.05);  // what a remainder widened aside
    }
  }
  // Twice that in one layer, nothing in another: further, as far as the step goes, and no further than 4.
  gains[0] *= 2;
  gains[1] = -1;
  auto const half = ha::sensitivities_at_plan(statistics, before, plan, gains, 0.5);
  auto const whole = ha::sensitivities_at_plan(statistics, before, plan, gains, 1);
  auto const scale = whole.at(3, 0) / before.at(3, 0);
  CHECK(near(half.at(3, 0), whole.at(3, 0)));
  CHECK(near(whole.at(1, 0), scale * before.at(1, 0) / 4));
  CHECK(near(half.at(1, 0), scale * before.at(1, 0) / 2));
  double const ratio = whole.at(0, 0) / (scale * before.at(0, 0));
  CHECK(ratio > 1);
  CHECK(near(half.at(0, 0), scale * before.at(0, 0) * std::sqrt(ratio)));

  // Heads keep their proportions.
  auto const heads = ha::Sensitivities::per_head(4, 2, {1, 2, 3, 4, 5, 6, 7, 8});
  auto const by_head = ha::sensitivities_at_plan(statistics, heads, plan, gains, 0.5);
  REQUIRE(by_head.num_kv_heads() == 2);
  for (std::int32_t layer = 0; layer < 4; ++layer) {
    CHECK(near(by_head.at(layer, 1) / by_head.at(layer, 0), heads.at(layer, 1) / heads.at(layer, 0)));
  }

  // Gains of heads change what heads of a layer have in common: here one gains nothing, and the others what is
  // predicted.
  auto const errors = ha::weighted_errors(std::span(&text, 1), plan.options.measure, plan.options.fold);
  auto const evaluated = ha::evaluate_table(plan.table, errors, 512, plan.options);
  std::vector<double> head_gains;
  for (auto const& head : evaluated.heads) head_gains.push_back(head.predicted_error);
  head_gains[3] = 0;
  auto const of_heads = ha::sensitivities_at_plan(statistics, before, plan, head_gains, 1);
  REQUIRE(of_heads.num_kv_heads() == 2);
  double const others = evaluated.predicted_error / (evaluated.predicted_error - evaluated.heads[3].predicted_error);
  CHECK(near(of_heads.at(1, 1) / of_heads.at(1, 0), 0.25 / others));
  CHECK(near(of_heads.at(2, 0), of_heads.at(2, 1)));

  auto const refused = [&](std::vector<double> const& values, double step, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>([&] { (void)ha::sensitivities_at_plan(statistics, before, plan, values, step); },
                                   parts);
  };
  refused({1, 2, 3}, 0.5, {"gains", "4 (layers) or 8 (KV heads)", "3", "sensitivities_at_plan"});
  refused(gains, 1.5, {"step", "[0, 1]", "1.5", "sensitivities_at_plan"});
  refused({1, 2, std::numeric_limits<double>::quiet_NaN(), 3}, 1, {"gain", "finite", "nan", "sensitivities_at_plan"});
  refused({-1, -2, -1, 0}, 1, {"gains", "above 0", "none", "sensitivities_at_plan"});
}
