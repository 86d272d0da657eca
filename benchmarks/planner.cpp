// The planner: 10,000 KV heads, 80 (sink, window) pairs each; from summed statistics to a table, and from errors that
// have been folded and weighted before (a grid of budgets, ranks); windows alone, and together with 16 pairs of
// formats. One thread.

#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/planner.hpp>

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t layers = 100;
constexpr std::int64_t context = 2100;
std::vector<std::string> const measured_formats{"int8", "packed5", "packed4"};

/// Errors that fall with the window and the sinks, and stray by a tenth.
ha::RetentionStatistics made_up(std::int32_t heads, std::int32_t num_kv_heads) {
  ha::RetentionGrid const grid;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> unit(0, 1);
  ha::RetentionStatistics statistics;
  statistics.info = {layers, heads, num_kv_heads, 0, 1, true, true, grid, measured_formats};
  for (std::int32_t i = 0; i < layers * heads; ++i) {
    ha::RetentionSums sums(grid, measured_formats.size());
    sums.rows = sums.value_rows = sums.metric_rows = 1000;
    double const size = std::exp(6 * unit(random));
    double const power = 0.2 + 1.5 * unit(random);
    sums.output_squared = sums.output_metric_squared = size;
    for (std::size_t s = 0; s < grid.sinks.size(); ++s) {
      for (std::size_t w = 0; w < grid.windows.size(); ++w) {
        double const error = size * std::pow(grid.windows[w], -power) / (1.0 + static_cast<double>(s));
        sums.metric_error_squared[grid.cell(s, w)] = error * (0.95 + 0.1 * unit(random));
      }
    }
    double const rounding = 0.5 * size * std::exp(2 * unit(random) - 1);
    for (std::size_t f = 0; f < measured_formats.size(); ++f) {
      double const codes = f == 0 ? 255 : f == 1 ? 31 : 15;
      sums.rounding.key_metric_error_squared[f] = 5 * rounding / (codes * codes) * (0.95 + 0.1 * unit(random));
      sums.rounding.value_metric_error_squared[f] = rounding / (codes * codes) * (0.95 + 0.1 * unit(random));
    }
    sums.rounding.rows = sums.rounding.metric_rows = 1000;
    statistics.heads.push_back(sums);
  }
  return statistics;
}

void report(benchmark::State& state, ha::KvErrors const& errors, ha::PolicyPlan const& plan) {
  state.counters["kv_heads"] = static_cast<double>(errors.size());
  state.counters["pairs"] = static_cast<double>(errors.grid.size());
  state.counters["left"] = static_cast<double>(plan.left());
}

/// @param state  range 0: query heads that share a KV head; 1: per cent of the context
void plan_from_statistics(benchmark::State& state) {
  auto const group = static_cast<std::int32_t>(state.range(0));
  ha::RetentionStatistics const statistics = made_up(100 * group, 100);
  ha::WeightedStatistics const text{&statistics};
  auto const budget = ha::Budget::share(static_cast<double>(state.range(1)) / 100);
  ha::PolicyPlan plan;
  for (auto _ : state) {
    plan = ha::plan_policies(std::span(&text, 1), budget, context);
    benchmark::DoNotOptimize(plan.planned_tokens);
  }
  report(state, ha::weighted_errors(std::span(&text, 1)), plan);
}

void plan_from_errors(benchmark::State& state) {
  ha::RetentionStatistics const statistics = made_up(100, 100);
  ha::WeightedStatistics const text{&statistics};
  ha::KvErrors const errors = ha::weighted_errors(std::span(&text, 1));
  auto const budget = ha::Budget::share(static_cast<double>(state.range(1)) / 100);
  ha::PlanOptions options;
  options.page_size = state.range(0);
  ha::PolicyPlan plan;
  for (auto _ : state) {
    plan = ha::plan_policies(errors, budget, context, options);
    benchmark::DoNotOptimize(plan.planned_tokens);
  }
  report(state, errors, plan);
}

/// @param state  range 0: tokens of 16 bits per page; 1: tenths of a per cent of the cache's bytes in 16 bits
void plan_windows_and_formats(benchmark::State& state) {
  ha::RetentionStatistics const statistics = made_up(100, 100);
  ha::WeightedStatistics const text{&statistics};
  ha::KvErrors const errors = ha::weighted_errors(std::span(&text, 1));
  auto const budget = ha::Budget::share(static_cast<double>(state.range(1)) / 1000);
  ha::PlanOptions options;
  options.page_size = state.range(0);
  options.formats = {.pairs = ha::all_format_pairs(errors.formats), .head_dim = 64};
  ha::PolicyPlan plan;
  for (auto _ : state) {
    plan = ha::plan_policies(errors, budget, context, options);
    benchmark::DoNotOptimize(plan.planned_tokens);
  }
  report(state, errors, plan);
  state.counters["format_pairs"] = static_cast<double>(options.formats.pairs.size());
  state.counters["pairs_used"] = static_cast<double>(plan.format_counts().size());
  state.counters["mean_tokens"] = plan.mean_tokens();
}

BENCHMARK(plan_from_statistics)
    ->ArgNames({"group", "percent"})
    ->ArgsProduct({{1, 4}, {6, 25, 50}})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(plan_from_errors)
    ->ArgNames({"page", "percent"})
    ->ArgsProduct({{1, 16}, {6, 25, 50}})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(plan_windows_and_formats)
    ->ArgNames({"page", "per_mille"})
    ->ArgsProduct({{1, 16}, {31, 62, 250, 500}})
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
