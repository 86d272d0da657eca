// Plans by bytes: windows and formats chosen together, against brute force and against plans by tokens.

#include "support/byte_plan_checks.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/planned_statistics.hpp"
#include "support/rounded_statistics.hpp"

#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/uniform_plan.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

std::vector<std::string> const some_formats{"int8", "packed6", "packed5", "packed4"};

ha::KvErrors rounded_errors(std::int32_t layers, std::int32_t kv_heads, ha::RetentionGrid const& grid, unsigned seed,
                            double noise = 0.3) {
  return errors_of(
      with_rounding(random_statistics(layers, 2 * kv_heads, kv_heads, grid, seed, noise), some_formats, seed + 100));
}

std::int64_t row_bytes(ha::HeadFormats const& formats, std::int64_t head_dim = 64, std::int64_t value_dim = 64) {
  return 16 * formats.row_units(head_dim, value_dim);
}

/// Every size of a head in every pair: bytes and error.
std::vector<std::pair<std::int64_t, double>> all_sizes(ha::KvErrors const& errors, std::size_t head,
                                                       std::int64_t context, ha::FormatChoice const& choice) {
  std::vector<std::pair<std::int64_t, double>> sizes;
  for (ha::HeadFormats const& pair : choice.pairs) {
    double const rounding = errors.rounding_error(head, pair);
    for (auto const& size : ha::detail::candidates(errors.grid, context, 1)) {
      sizes.emplace_back(size.tokens * row_bytes(pair), errors.of(head)[size.cell] + rounding);
    }
    sizes.emplace_back(context * row_bytes(pair), rounding);
  }
  return sizes;
}

/// Least error of all combinations within each budget, in units of 16 bytes, by dynamic programming.
std::vector<double> best_errors(std::vector<std::vector<std::pair<std::int64_t, double>>> const& heads,
                                std::int64_t units) {
  std::vector<double> best(static_cast<std::size_t>(units) + 1, 0);
  for (auto const& sizes : heads) {
    std::vector<double> next(best.size(), std::numeric_limits<double>::infinity());
    for (auto const& [bytes, error] : sizes) {
      auto const size = static_cast<std::size_t>(bytes / 16);
      for (std::size_t at = size; at < best.size(); ++at) next[at] = std::min(next[at], best[at - size] + error);
    }
    best = next;
  }
  return best;
}

ha::ModelShape uniform_shape(ha::KvErrors const& errors) {
  return ha::ModelConfig{errors.num_layers, errors.num_heads, errors.num_kv_heads, 64};
}

}  // namespace

TEST_CASE("plans of windows and formats against brute force", "[plan]") {
  constexpr std::int64_t tokens = 96;
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {4, 8, 16, 32, 64}};
  for (unsigned const seed : {1U, 2U, 3U}) {
    CAPTURE(seed);
    auto const errors = rounded_errors(2, 2, grid, seed);
    auto options = any_format(errors);
    options.floor = 0;
    options.use_remainder = false;
    REQUIRE(options.formats.pairs.size() == 25);
    std::vector<std::vector<std::pair<std::int64_t, double>>> all;
    for (std::size_t head = 0; head < errors.size(); ++head) {
      all.push_back(all_sizes(errors, head, tokens, options.formats));
    }
    auto const costs = ha::detail::cache_costs(errors, nullptr, tokens, options.formats);
    auto const channels = ha::detail::known_channels(errors.layers, 2, 64, "test");
    auto const hulls =
        ha::detail::all_hulls(errors, costs, std::vector<bool>(4), 0, 1, false, options.formats, channels);
    double steepest = 0;
    for (std::size_t head = 0; head < 4; ++head) {
      for (std::size_t i = hulls.first[head]; i < hulls.first[head + 1]; ++i) {
        auto const& point = hulls.points[i];
        // A size that there is.
        REQUIRE(std::any_of(all[head].begin(), all[head].end(), [&](auto const& size) {
          return size.first == point.cost && std::abs(size.second - point.error) <= 1e-12 * (1 + size.second);
        }));
        if (i > hulls.first[head]) {
          REQUIRE(point.cost > hulls.points[i - 1].cost);
          steepest = std::max(steepest, hulls.points[i - 1].error - point.error);
        }
      }
      CHECK(hulls.points[hulls.first[head + 1] - 1].error == 0);
    }
    std::int64_t const whole = 4 * tokens * 256;
    auto const best = best_errors(all, whole / 16);
    ha::ModelShape const shape = uniform_shape(errors);
    auto const plan_of = [&](std::int64_t bytes) {
      return ha::plan_policies(errors, ha::Budget::bytes(bytes, ha::TokenBytes::of(64, 2)), tokens, options);
    };
    auto last = std::numeric_limits<double>::infinity();
    for (std::int64_t bytes = 2000; bytes <= whole + 100; bytes += 171) {
      auto const plan = plan_of(bytes);
      REQUIRE(plan.budget_bytes() == bytes);
      check_bytes(plan, shape);
      REQUIRE(plan.predicted_error <= last * (1 + 1e-12));
      last = plan.predicted_error;
      double const gap = plan.predicted_error - best[static_cast<std::size_t>(std::min(bytes, whole) / 16)];
      REQUIRE(gap >= -1e-9);
      REQUIRE(gap <= steepest);
    }
    // Where a step has just been taken, no combination is better.
    std::int64_t total = ha::detail::least_total(hulls);
    ha::detail::take_steps(hulls, [&](ha::detail::HullStep const& step) {
      total += hulls.points[step.to].cost - hulls.points[step.to - 1].cost;
      auto const plan = plan_of(total);
      REQUIRE(plan.left() == 0);
      REQUIRE(std::abs(plan.predicted_error - best[static_cast<std::size_t>(total / 16)]) <= 1e-9);
      return true;
    });
    CHECK(total == whole);
    CHECK(plan_of(whole).table == ha::PolicyTable(2, 2, ha::Full{}));
    CHECK(plan_of(whole).formats == ha::FormatTable(2, 2));
    CHECK(plan_of(whole).share_held() == 1);
  }
}

TEST_CASE("16 bits alone by bytes plan what they plan by tokens", "[plan]") {
  constexpr std::int64_t tokens = 512;
  auto const errors = rounded_errors(4, 3, ha::RetentionGrid::up_to(tokens), 7);
  for (std::int64_t const page : {1, 16}) {
    for (double const mean : {40.0, 100.5, 333.3, 512.0}) {
      for (ha::Budget const& budget :
           {ha::Budget::tokens(mean), ha::Budget::share(mean / 512),
            ha::Budget::bytes(static_cast<std::int64_t>(mean * 12) * 256, ha::TokenBytes::of(64, 2))}) {
        ha::PlanOptions options;
        options.page_size = page;
        options.skip_layers = page == 1 ? std::vector<std::int32_t>{2} : std::vector<std::int32_t>{};
        auto const by_tokens = ha::plan_policies(errors, budget, tokens, options);
        CHECK_FALSE(by_tokens.by_bytes());
        CHECK(by_tokens.planned_bytes() == 0);
        options.formats = {.pairs = {{}}, .head_dim = 64};
        auto const by_bytes = ha::plan_policies(errors, budget, tokens, options);
        check_bytes(by_bytes, uniform_shape(errors));
        CHECK(by_bytes.table == by_tokens.table);
        CHECK(by_bytes.predicted_error == by_tokens.predicted_error);
        CHECK(by_bytes.floor == by_tokens.floor);
        CHECK(by_bytes.planned_bytes() == by_tokens.planned_tokens * 256);
        CHECK(by_bytes.mean_tokens() == by_tokens.mean_tokens());
        CHECK(by_bytes.share_held() == by_tokens.share_held());
        CHECK(by_bytes.budget_bytes() / 256 == by_tokens.budget_tokens);
        CHECK(by_bytes.budget_tokens == by_tokens.budget_tokens);
      }
    }
  }
}

TEST_CASE("budgets of plans by bytes are shares of 16 bits", "[plan]") {
  constexpr std::int64_t tokens = 512;
  auto const errors = rounded_errors(4, 3, ha::RetentionGrid::up_to(tokens), 7);
  auto const options = any_format(errors);
  std::int64_t const full = 12 * tokens * 256;
  CHECK(ha::plan_policies(errors, ha::Budget::share(0.0625), tokens, options).budget_bytes() == full / 16);
  CHECK(ha::plan_policies(errors, ha::Budget::tokens(32.5), tokens, options).budget_bytes() == 12 * 256 * 65 / 2);
  auto const odd = ha::plan_policies(errors, ha::Budget::bytes(100001, ha::TokenBytes::of(64, 4)), tokens, options);
  CHECK(odd.budget_bytes() == 100001);
  CHECK(odd.left() >= 0);
  CHECK(odd.left() < 256);  // the remainder goes to a window
  for (double const share : {0.03125, 0.0625, 0.125, 0.25}) {
    ha::Budget const budget = ha::Budget::share(share);
    auto const mixed = ha::plan_policies(errors, budget, tokens, options);
    check_bytes(mixed, uniform_shape(errors));
    CHECK(mixed.share_held() <= share);
    CHECK(mixed.mean_tokens() > share * tokens);
    CHECK(ha::plan_policies(errors, budget, tokens, {}).predicted_error > mixed.predicted_error);
    std::int64_t heads = 0;
    for (auto const& [pair, count] : mixed.format_counts()) heads += count;
    CHECK(heads == 12);
    // A pair alone is no better, whichever it is; but for a step that does not fit.
    for (auto const& pair : options.formats.pairs) {
      auto fixed = options;
      fixed.formats.pairs = {pair};
      auto const plan = ha::plan_policies(errors, budget, tokens, fixed);
      check_bytes(plan, uniform_shape(errors));
      CHECK(plan.format_counts() == std::vector<ha::FormatCount>{{pair, 12}});
      CHECK(mixed.predicted_error <= plan.predicted_error * 1.02);
      auto const uniform = ha::uniform_plan(errors, budget, tokens, options, pair);
      check_bytes(uniform, uniform_shape(errors));
      CHECK(uniform.left() < 12 * row_bytes(pair));
      CHECK(uniform.budget_bytes() == mixed.budget_bytes());
      CHECK(plan.predicted_error < uniform.predicted_error);
      CHECK(uniform.formats == ha::FormatTable(4, 3, pair));
      CHECK(ha::uniform_table(uniform_shape(errors), uniform.formats, uniform.budget_bytes(), tokens) == uniform.table);
    }
  }
  auto const sixteen = ha::uniform_plan(errors, ha::Budget::tokens(100), tokens, options, {});
  CHECK(sixteen.table == ha::uniform_table(4, 3, ha::Budget::tokens(100), tokens));
  CHECK(ha::uniform_plan(errors, ha::Budget::share(1), tokens, options, {}).table == ha::PolicyTable(4, 3));
  // Eight times the rows in an eighth of the bytes: all of them, rounded.
  auto const everything =
      ha::uniform_plan(errors, ha::Budget::share(0.5), tokens, options, ha::format_pair("packed5", "packed4"));
  CHECK(everything.table == ha::PolicyTable(4, 3));
  CHECK(everything.share_held() == 80.0 / 256);
  CHECK(everything.predicted_error > 0);
  check_error<ha::ArgumentError>(
      [&] { (void)ha::uniform_plan(errors, ha::Budget::tokens(4), tokens, options, ha::HeadFormats{}); },
      {"budget", "more than 4", "4", "uniform_plan"});
  check_error<ha::ArgumentError>(
      [&] { (void)ha::uniform_table(uniform_shape(errors), ha::FormatTable(4, 3), 12'288, tokens); },
      {"bytes", "more than 4", "12288", "uniform_table"});
}

TEST_CASE("a head whose errors of rounding are large keeps more bits", "[plan]") {
  constexpr std::int64_t tokens = 512;
  auto statistics = with_rounding(random_statistics(2, 1, 1, ha::RetentionGrid::up_to(tokens), 5), some_formats, 9);
  statistics.heads[1] = statistics.heads[0];
  for (auto* sums :
       {&statistics.heads[1].rounding.key_error_squared, &statistics.heads[1].rounding.value_error_squared}) {
    for (double& error : *sums) error *= 1e4;
  }
  auto const errors = errors_of(statistics);
  auto const plan = ha::plan_policies(errors, ha::Budget::share(0.25), tokens, any_format(errors));
  CHECK(row_bytes(plan.formats.at(1, 0)) > row_bytes(plan.formats.at(0, 0)));
  CHECK(plan.heads[1].tokens < plan.heads[0].tokens);
  // The floor is of tokens, in whichever format.
  auto options = any_format(errors);
  options.floor = 200;
  for (auto const& head : ha::plan_policies(errors, ha::Budget::share(0.3), tokens, options).heads) {
    CHECK(head.tokens >= 200);
  }
  options.formats.pairs = {ha::HeadFormats{}};
  check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(errors, ha::Budget::share(0.3), tokens, options); },
                                 {"budget", "bytes, what the heads' smallest sizes take", "78643", "plan_policies"});
}
