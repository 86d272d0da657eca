// Refining: a plan of wrong errors, tried against what heads really lose, comes close to the plan of the right ones.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/planned_statistics.hpp"

#include <headaware/plan/compare.hpp>
#include <headaware/plan/refine.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t context = 512;
ha::Budget const budget = ha::Budget::tokens(96);

ha::KvErrors true_errors(std::int32_t layers = 12, unsigned seed = 7) {
  return errors_of(random_statistics(layers, 4, 2, ha::RetentionGrid::up_to(context), seed));
}

/// Errors as a calibration gets them wrong: early layers too large, late ones too small, up to 8 times.
ha::KvErrors tilted(ha::KvErrors const& errors) {
  std::vector<double> factors;
  for (std::size_t head = 0; head < errors.size(); ++head) {
    factors.push_back(std::exp2(3 - 6 * static_cast<double>(head) / static_cast<double>(errors.size())));
  }
  return ha::scaled_errors(errors, factors);
}

double lost(ha::PolicyTable const& table, ha::KvErrors const& errors) {
  return ha::evaluate_table(table, errors, context).predicted_error;
}

/// What a table really loses, token by token: the same noise in every run, and some that differs.
auto trial_of(ha::KvErrors const& errors, double noise = 0) {
  return [&errors, noise](ha::PolicyTable const& table) {
    double const loss = lost(table, errors);
    std::mt19937 random(static_cast<unsigned>(ha::held_tokens(table, context)) + static_cast<unsigned>(1000 * loss));
    std::normal_distribution<double> normal(0, 1);
    std::vector<double> losses;
    for (int i = 0; i < 400; ++i) losses.push_back(loss * (1 + 0.5 * std::sin(i)) + noise * normal(random));
    return losses;
  };
}

}  // namespace

TEST_CASE("heads are cut in halves from coarse to fine, between layers first", "[plan]") {
  auto const cuts = ha::detail::head_cuts(5, 3, 9);
  REQUIRE(cuts.size() == 14);  // a tree over 15 heads
  CHECK(cuts[0].begin == 0);
  CHECK(cuts[0].middle == 6);
  CHECK(cuts[0].end == 15);
  for (auto const& cut : cuts) {
    CHECK(cut.begin < cut.middle);
    CHECK(cut.middle < cut.end);
    bool const between = cut.end - cut.begin > 3;
    if (between) CHECK((cut.begin % 3 == 0 && cut.middle % 3 == 0 && cut.end % 3 == 0));
  }
  CHECK(ha::detail::head_cuts(5, 3, 1).size() == 1);
  CHECK(ha::detail::head_cuts(5, 3, 2).size() == 3);
  CHECK(ha::detail::head_cuts(4, 2, 2).size() == 3);  // down to single layers
  CHECK(ha::detail::head_cuts(1, 1, 9).empty());
}

TEST_CASE("refining wrong errors closes most of what they cost, at the same budget", "[plan]") {
  ha::PlanOptions const options;
  for (std::int32_t const levels : {3, 9}) {  // 12 layers: threes of them, and single heads
    double closed = 0;
    constexpr int models = 8;
    for (unsigned seed = 1; seed <= models; ++seed) {
      CAPTURE(levels, seed);
      ha::KvErrors const truth = true_errors(12, seed);
      ha::KvErrors const wrong = tilted(truth);
      double const before = lost(ha::plan_policies(wrong, budget, context, options).table, truth);
      double const best = lost(ha::plan_policies(truth, budget, context, options).table, truth);
      auto const refined =
          ha::refine_plan(wrong, budget, context, options, {.steps = {2, 1, 0.5}, .levels = levels}, trial_of(truth));
      double const after = lost(refined.plan.table, truth);
      CHECK(after < before);
      closed += (before - after) / (before - best) / models;
      CHECK(refined.plan.planned_tokens <= budget.total(24, context));
      CHECK(refined.loss < refined.first_loss);
      CHECK(refined.taken > 0);
      CHECK(refined.trials > refined.taken);
      // The plan is that of the scaled errors, which are those given times the factors.
      CHECK(ha::plan_policies(refined.errors, budget, context, options) == refined.plan);
      for (std::size_t head = 0; head < wrong.size(); ++head) {
        CHECK(refined.errors.of(head)[3] == wrong.of(head)[3] * refined.factors[head]);
        bool const layers_alone = refined.factors[head] == refined.factors[head / 2 * 2];
        if (levels == 3) CHECK(layers_alone);
      }
    }
    INFO("closed " << closed);
    CHECK(closed > 0.75);
  }
}

TEST_CASE("refining does not follow noise", "[plan]") {
  ha::KvErrors const truth = true_errors();
  ha::PlanOptions const options;
  double const best = lost(ha::plan_policies(truth, budget, context, options).table, truth);
  // Of the right errors there is nothing to find; what differs from trial to trial must not lead far.
  auto const refined =
      ha::refine_plan(truth, budget, context, options, {.steps = {2}, .least_gain = 3}, trial_of(truth, 0.3 * best));
  CHECK(refined.taken <= 1);
  CHECK(lost(refined.plan.table, truth) < 1.05 * best);
}

TEST_CASE("a gain, its standard error, and how many of them a trial has to gain", "[plan]") {
  std::vector<double> const before{1, 2, 3, 4};
  std::vector<double> const after{0, 2, 2, 2};
  auto const gain = ha::paired_gain(before, after);  // 1, 0, 1, 2
  CHECK(gain.mean == 1);
  CHECK(std::abs(gain.standard_error - std::sqrt(0.5 / 4)) < 1e-15);
  auto const taken = [&](double least_gain) {
    int calls = 0;
    auto const trial = [&](ha::PolicyTable const&) { return calls++ == 0 ? before : after; };
    return ha::refine_plan(tilted(true_errors(4)), budget, context, {},
                           {.steps = {2}, .levels = 1, .least_gain = least_gain}, trial)
        .taken;
  };
  double const errors = std::sqrt(8.0);  // 1 / sqrt(0.5 / 4)
  CHECK(taken(0.99 * errors) == 1);
  CHECK(taken(1.01 * errors) == 0);
}

TEST_CASE("refining is bounded, repeatable, tries no table twice and hands exceptions on", "[plan]") {
  ha::KvErrors const truth = true_errors();
  ha::KvErrors const wrong = tilted(truth);
  int calls = 0;
  auto const counted = [&](ha::PolicyTable const& table) {
    ++calls;
    return trial_of(truth)(table);
  };
  auto const five = ha::refine_plan(wrong, budget, context, {}, {.most_trials = 5}, counted);
  CHECK(calls == 5);
  CHECK(five.trials == 5);
  CHECK(five.limited);
  auto const again = ha::refine_plan(wrong, budget, context, {}, {.most_trials = 5}, counted);
  CHECK(again.plan == five.plan);
  CHECK(again.factors == five.factors);

  calls = 0;
  auto const only = ha::refine_plan(wrong, budget, context, {}, {.steps = {}}, counted);
  CHECK(calls == 1);
  CHECK(only.plan == ha::plan_policies(wrong, budget, context));
  CHECK(only.loss == only.first_loss);

  // Everything fits: all plans are one, and one is tried.
  calls = 0;
  (void)ha::refine_plan(wrong, ha::Budget::share(1), context, {}, {}, counted);
  CHECK(calls == 1);

  // Skipped layers stay whole, and cuts are between the others: one between halves of two layers.
  ha::PlanOptions two;
  for (std::int32_t layer = 1; layer < wrong.num_layers - 1; ++layer) two.skip_layers.push_back(layer);
  std::vector<ha::PolicyTable> seen;
  auto const once = [&](ha::PolicyTable const& table) {
    CHECK(std::find(seen.begin(), seen.end(), table) == seen.end());
    seen.push_back(table);
    return trial_of(truth)(table);
  };
  auto const halves = ha::refine_plan(wrong, budget, context, two, {.levels = 1}, once);
  CHECK_FALSE(halves.limited);
  auto const last = static_cast<std::size_t>(wrong.size()) - 1;
  CHECK(halves.factors[0] * halves.factors[last] == 1);
  CHECK(halves.factors[0] != 1);
  auto const middle = std::span(halves.factors).subspan(2, halves.factors.size() - 4);
  CHECK(std::all_of(middle.begin(), middle.end(), [](double factor) { return factor == 1; }));
  ha::PlanOptions skipping;
  skipping.skip_layers = {0, 5};
  auto const skipped = ha::refine_plan(wrong, budget, context, skipping, {.steps = {2}}, counted);
  CHECK(skipped.plan.table.at(5, 1).is<ha::Full>());
  CHECK(skipped.loss < skipped.first_loss);

  auto const failing = [&](ha::PolicyTable const&) -> std::vector<double> { throw std::runtime_error("stop"); };
  CHECK_THROWS_AS(ha::refine_plan(wrong, budget, context, {}, {}, failing), std::runtime_error);
}

TEST_CASE("refining refuses losses that tell nothing, and options that make no sense", "[plan]") {
  ha::KvErrors const truth = true_errors(4);
  auto const refine = [&](ha::RefineOptions const& options, auto const& trial) {
    (void)ha::refine_plan(tilted(truth), budget, context, {}, options, trial);
  };
  auto const none = [](ha::PolicyTable const&) { return std::vector<double>{}; };
  auto const nan = [](ha::PolicyTable const&) {
    return std::vector<double>{1, std::numeric_limits<double>::quiet_NaN()};
  };
  std::size_t count = 1;
  auto const growing = [&](ha::PolicyTable const&) { return std::vector<double>(count++, 1.0); };
  check_error<ha::ArgumentError>([&] { refine({}, none); }, {"losses of a trial", "at least one", "none", "refine"});
  check_error<ha::ArgumentError>([&] { refine({}, nan); }, {"loss of a trial", "finite", "nan", "refine"});
  check_error<ha::ArgumentError>([&] { refine({}, growing); }, {"losses of a trial", "1", "2", "refine"});
  auto const trial = trial_of(truth);
  check_error<ha::ArgumentError>([&] { refine({.steps = {0}}, trial); }, {"step", "(0, 10]", "0", "RefineOptions"});
  check_error<ha::ArgumentError>([&] { refine({.levels = 0}, trial); }, {"levels", "> 0", "0", "RefineOptions"});
  check_error<ha::ArgumentError>([&] { refine({.least_gain = -1}, trial); },
                                 {"least_gain", ">= 0", "-1", "RefineOptions"});
  check_error<ha::ArgumentError>([&] { refine({.most_trials = 0}, trial); }, {"most_trials", "> 0", "0", ""});
  check_error<ha::ArgumentError>([&] { (void)ha::scaled_errors(truth, std::vector<double>(7, 1.0)); },
                                 {"factors", "8", "7", "scaled_errors"});
  check_error<ha::ArgumentError>([&] { (void)ha::scaled_errors(truth, std::vector<double>(8, -1.0)); },
                                 {"factor", ">= 0", "-1", "scaled_errors"});
}
