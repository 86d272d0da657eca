// The blocked pass against plain double-precision loops over the formulas.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"

#include <headaware/stats/observe.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace ha = headaware;
using headaware_test::naive;
using headaware_test::Problem;

namespace {

void require_close(double got, double expected, double tolerance) {
  REQUIRE(std::abs(got - expected) <= tolerance * (1 + std::abs(expected)));
}

void compare(Problem const& problem, ha::AttentionScore const& score, ha::ObserverParameters const& parameters,
             double tolerance = 2e-5) {
  auto const got = ha::observe_chunk(problem.layer(parameters.retention.has_value()), score, parameters);
  REQUIRE(got.size() == static_cast<std::size_t>(problem.query_heads));
  for (std::int32_t head = 0; head < problem.query_heads; ++head) {
    INFO("head " << head << ", tokens " << problem.tokens << ", head_dim " << problem.head_dim);
    auto const expected = naive(problem, head, score, parameters);
    auto const& g = got[static_cast<std::size_t>(head)];
    REQUIRE(g.chunk.rows == expected.chunk.rows);
    REQUIRE(g.chunk.invalid_rows == 0);
    REQUIRE(g.chunk.uniformity_rows == expected.chunk.uniformity_rows);
    require_close(g.chunk.entropy, expected.chunk.entropy, tolerance);
    require_close(g.chunk.max_attention, expected.chunk.max_attention, tolerance);
    require_close(g.chunk.sink, expected.chunk.sink, tolerance);
    require_close(g.chunk.recent, expected.chunk.recent, tolerance);
    require_close(g.chunk.local, expected.chunk.local, tolerance);
    require_close(g.chunk.uniformity, expected.chunk.uniformity, tolerance);
    for (std::size_t d = 0; d < g.chunk.distances.size(); ++d)
      require_close(g.chunk.distances[d], expected.chunk.distances[d], tolerance);
    if (!parameters.retention) continue;
    REQUIRE(g.retention.rows == expected.retention.rows);
    require_close(g.retention.output_squared, expected.retention.output_squared, tolerance);
    for (std::size_t i = 0; i < g.retention.mass.size(); ++i) {
      INFO("cell " << i);
      require_close(g.retention.mass[i], expected.retention.mass[i], tolerance);
      require_close(g.retention.mass_squared[i], expected.retention.mass_squared[i], tolerance);
      require_close(g.retention.error_squared[i], expected.retention.error_squared[i], 10 * tolerance);
    }
  }
}

}  // namespace

TEST_CASE("statistics of any length agree with the formulas", "[stats]") {
  for (std::int64_t const tokens : {1, 2, 9, 10, 11, 31, 64, 65, 200, 383, 384, 385, 700}) {
    compare(Problem(2, 1, tokens, 16, static_cast<unsigned>(tokens)), {.scale = 0.25F}, {});
  }
}

TEST_CASE("retention statistics equal explicit renormalisation", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  for (std::int64_t const tokens : {1, 7, 8, 9, 63, 64, 65, 130, 500}) {
    compare(Problem(2, 2, tokens, 20, static_cast<unsigned>(tokens)), {.scale = 0.25F}, parameters);
  }
}

TEST_CASE("any grid, windows closer than a register block of rows included", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {0, 3}, .windows = {1, 2, 3, 5, 40, 41, 300}};
  compare(Problem(1, 1, 260, 8, 5), {.scale = 0.3F}, parameters);
  parameters.retention = ha::RetentionGrid{.sinks = {0}, .windows = {4}};
  compare(Problem(1, 1, 50, 8, 6), {.scale = 0.3F}, parameters);
}

TEST_CASE("queries may be sampled", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  parameters.first_query = 37;
  parameters.query_stride = 5;
  compare(Problem(3, 1, 610, 32, 9), {.scale = 0.2F}, parameters);
}

TEST_CASE("late rows of a long text", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  parameters.first_query = 19960;
  parameters.query_stride = 13;
  compare(Problem(1, 1, 20000, 16, 21), {.scale = 0.25F}, parameters, 1e-4);
}

TEST_CASE("soft cap, sliding window and sharp attention", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  compare(Problem(2, 1, 300, 16, 11), {.scale = 0.25F, .soft_cap = 2}, parameters);
  compare(Problem(2, 1, 520, 16, 12), {.scale = 0.25F, .sliding_window = 50}, parameters);
  compare(Problem(2, 1, 300, 16, 13, 4), {.scale = 0.25F}, parameters, 1e-4);
}

TEST_CASE("other parameters", "[stats]") {
  compare(Problem(1, 1, 150, 16, 14), {.scale = 0.25F},
          {.sink_size = 0, .local_window = 0, .recent_ratio = 0, .num_distances = 1});
  compare(Problem(1, 1, 150, 16, 15), {.scale = 0.25F},
          {.sink_size = 200, .local_window = 100, .recent_ratio = 1, .num_distances = 3});
}

TEST_CASE("rows with a NaN or an infinity are counted, not averaged", "[stats]") {
  Problem problem(1, 1, 100, 8, 3);
  problem.keys[40 * 8] = std::numeric_limits<float>::quiet_NaN();
  auto got = ha::observe_chunk(problem.layer(false), {.scale = 0.3F});
  REQUIRE(got[0].chunk.rows == 40);
  REQUIRE(got[0].chunk.invalid_rows == 60);
  REQUIRE(std::isfinite(got[0].chunk.entropy));
  problem.keys[40 * 8] = std::numeric_limits<float>::infinity();
  problem.queries[50 * 8] = 1;
  got = ha::observe_chunk(problem.layer(false), {.scale = 0.3F});
  REQUIRE(got[0].chunk.rows + got[0].chunk.invalid_rows == 100);
  REQUIRE(got[0].chunk.invalid_rows > 0);
  REQUIRE(std::isfinite(got[0].chunk.entropy));
}

TEST_CASE("bad parameters are named", "[stats]") {
  Problem const problem(2, 1, 10, 8, 3);
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 0}), ha::ArgumentError);
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 1}, {.query_stride = 0}), ha::ArgumentError);
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {4, 4}, .windows = {8}};
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 1}, parameters), ha::ArgumentError);
  auto layer = problem.layer(false);
  layer.kv_heads = 0;
  REQUIRE_THROWS_AS(ha::observe_chunk(layer, {.scale = 1}), ha::ArgumentError);
}

TEST_CASE("sums merge in any order", "[stats]") {
  Problem const a(1, 1, 60, 8, 41);
  Problem const b(1, 1, 33, 8, 42);
  ha::HeadSums both(64);
  ha::HeadSums first(64);
  ha::HeadSums second(64);
  auto const chunk_a = ha::observe_chunk(a.layer(false), {.scale = 0.3F})[0].chunk;
  auto const chunk_b = ha::observe_chunk(b.layer(false), {.scale = 0.3F})[0].chunk;
  both.add(chunk_a);
  both.add(chunk_b);
  second.add(chunk_b);
  first.add(chunk_a);
  second.merge(first);
  REQUIRE(second.chunks == 2);
  REQUIRE(second.rows == 93);
  REQUIRE(std::abs(second.statistics(0, 0).mean_entropy - both.statistics(0, 0).mean_entropy) < 1e-15);
  REQUIRE_THROWS_AS(ha::HeadSums(64).statistics(0, 0), ha::ArgumentError);
  REQUIRE_THROWS_AS(second.merge(ha::HeadSums(32)), ha::ArgumentError);
}
