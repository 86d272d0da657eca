// The blocked pass against plain double-precision loops over the formulas.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/layout/engines.hpp>
#include <headaware/layout/ragged.hpp>
#include <headaware/stats/observe.hpp>

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
  REQUIRE(got.size() == static_cast<std::size_t>(problem.num_query_heads));
  for (std::int32_t head = 0; head < problem.num_query_heads; ++head) {
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

TEST_CASE("more heads than are observed at a time", "[stats]") { compare(Problem(300, 3, 12, 8, 19), {}, {}); }

TEST_CASE("retention statistics equal explicit renormalisation", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  for (std::int64_t const tokens : {1, 7, 8, 9, 63, 64, 65, 130, 330}) {
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
  compare(Problem(2, 1, 200, 16, 11), {.scale = 0.25F, .soft_cap = 2}, parameters);
  compare(Problem(2, 1, 400, 16, 12), {.scale = 0.25F, .sliding_window = 50}, parameters);
  compare(Problem(2, 1, 200, 16, 13, 4), {.scale = 0.25F}, parameters, 1e-4);
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

TEST_CASE("values that are no numbers spoil the rows that see them, and no others", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  Problem const sound(2, 1, 100, 8, 3);
  for (float const value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e25F}) {
    Problem problem = sound;
    problem.values[60 * 8 + 3] = value;
    auto const got = ha::observe_chunk(problem.layer(true), {.scale = 0.3F}, parameters);
    ha::ObserverParameters before = parameters;
    before.query_stride = 1;
    auto layer = sound.layer(true);
    layer.tokens = 60;
    auto const expected = ha::observe_chunk(layer, {.scale = 0.3F}, before);
    for (std::size_t head = 0; head < 2; ++head) {
      REQUIRE(got[head].chunk.rows == 60);
      REQUIRE(got[head].chunk.invalid_rows == 40);
      REQUIRE(got[head].retention.rows == 60);
      REQUIRE(std::abs(got[head].chunk.entropy - expected[head].chunk.entropy) < 1e-6);
      REQUIRE(std::abs(got[head].retention.output_squared - expected[head].retention.output_squared) < 1e-5);
      for (double const error : got[head].retention.error_squared) REQUIRE(std::isfinite(error));
    }
    // A window that has moved past it does not see it.
    auto const windowed = ha::observe_chunk(problem.layer(true), {.scale = 0.3F, .sliding_window = 20}, parameters);
    REQUIRE(windowed[0].chunk.rows == 80);
    REQUIRE(windowed[0].chunk.invalid_rows == 20);
  }
  // Without retention nobody reads values.
  Problem problem = sound;
  problem.values[60 * 8 + 3] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(ha::observe_chunk(problem.layer(true), {.scale = 0.3F})[0].chunk.rows == 100);
}

TEST_CASE("a layout that fails ends the observation, not the program", "[stats]") {
  struct Failing {
    std::int64_t offset(std::int64_t, std::int64_t, std::int64_t token, std::int64_t) const {
      if (token == 17) throw ha::ArgumentError({"token", "another", "17", "layout"});
      return token;
    }
  };
  Problem const problem(1, 1, 40, 8, 3);
  ha::LayerQkv<float, ha::StridedLayout, Failing> layer;
  layer.queries = problem.queries.data();
  layer.keys = problem.keys.data();
  layer.query_layout = ha::strided_bhsd(1, 1, 40, 8);
  layer.num_query_heads = 1;
  layer.num_kv_heads = 1;
  layer.tokens = 40;
  layer.head_dim = 8;
  REQUIRE_THROWS_AS(ha::observe_chunk(layer, {.scale = 0.3F}), ha::ArgumentError);
}

TEST_CASE("half and bfloat16 give what their values in single precision give", "[stats]") {
  auto const check = [](auto element) {
    using E = decltype(element);
    Problem problem(4, 2, 130, 24, 31);
    auto const rounded = [](std::vector<float>& tensor) {
      std::vector<E> result;
      for (float& x : tensor) {
        result.push_back(ha::from_float<E>(x));
        x = ha::to_float(result.back());
      }
      return result;
    };
    auto const queries = rounded(problem.queries);
    auto const keys = rounded(problem.keys);
    auto const values = rounded(problem.values);
    ha::LayerQkv<E, ha::StridedLayout, ha::StridedLayout> layer;
    layer.queries = queries.data();
    layer.keys = keys.data();
    layer.values = values.data();
    layer.query_layout = ha::strided_bhsd(1, 4, 130, 24);
    layer.key_layout = ha::strided_bhsd(1, 2, 130, 24);
    layer.value_layout = layer.key_layout;
    layer.num_query_heads = 4;
    layer.num_kv_heads = 2;
    layer.tokens = 130;
    layer.head_dim = 24;
    ha::ObserverParameters parameters;
    parameters.retention = ha::RetentionGrid{};
    auto const got = ha::observe_chunk(layer, {.scale = 0.2F}, parameters);
    auto const expected = ha::observe_chunk(problem.layer(true), {.scale = 0.2F}, parameters);
    for (std::size_t head = 0; head < 4; ++head) {
      REQUIRE(got[head].chunk.entropy == expected[head].chunk.entropy);
      REQUIRE(got[head].retention == expected[head].retention);
    }
  };
  check(ha::float16{});
  check(ha::bfloat16{});
}

TEST_CASE("soft cap, sliding window, sampling and groups together", "[stats]") {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  parameters.first_query = 13;
  parameters.query_stride = 7;
  compare(Problem(4, 2, 700, 16, 17), {.scale = 0.25F, .soft_cap = 5, .sliding_window = 100}, parameters);
}

TEST_CASE("bad parameters are named", "[stats]") {
  Problem const problem(2, 1, 10, 8, 3);
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = -1}), ha::ArgumentError);
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 1}, {.query_stride = 0}), ha::ArgumentError);
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 1}, {.sink_size = 2000000000}),
                    ha::ArgumentError);
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 1}, {.local_window = 2147483647}),
                    ha::ArgumentError);
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {0, 2000000000}, .windows = {8}};
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 1}, parameters), ha::ArgumentError);
  parameters.retention = ha::RetentionGrid{.sinks = {4, 4}, .windows = {8}};
  REQUIRE_THROWS_AS(ha::observe_chunk(problem.layer(false), {.scale = 1}, parameters), ha::ArgumentError);
  auto layer = problem.layer(false);
  layer.num_kv_heads = 0;
  REQUIRE_THROWS_AS(ha::observe_chunk(layer, {.scale = 1}), ha::ArgumentError);
  layer = problem.layer(false);
  layer.first_token = std::numeric_limits<std::int64_t>::max() - 3;
  headaware_test::check_error<ha::ArgumentError>(
      [&] { (void)ha::observe_chunk(layer, {.scale = 1}); },
      {"first_token", "at most 9223372036854775797", "9223372036854775804", "observe_chunk"});
  // Rows of another sequence, or none at all.
  std::vector<std::int32_t> const rows{0, 4, 10};
  ha::LayerQkv<float, ha::StridedLayout, ha::RaggedLayout> varlen;
  varlen.queries = problem.queries.data();
  varlen.keys = problem.keys.data();
  varlen.query_layout = ha::strided_bhsd(2, 2, 6, 8);
  varlen.key_layout = ha::ragged_thd(rows.data(), 2, 10, 1, 8);
  varlen.num_query_heads = 2;
  varlen.num_kv_heads = 1;
  varlen.tokens = 6;
  varlen.head_dim = 8;
  headaware_test::check_error<ha::ArgumentError>([&] { (void)ha::observe_chunk(varlen, {.scale = 1}); },
                                                 {"cu_seqlens", "at least 6 rows", "0 to 4", "keys, sequence 0"});
  // Pages before the first token may be gone.
  std::vector<std::int32_t> const pages{-1, 0, 1};
  ha::LayerQkv<float, ha::StridedLayout, ha::PagedLayout> paged;
  paged.queries = problem.queries.data();
  paged.keys = problem.keys.data();
  paged.query_layout = ha::strided_bhsd(1, 1, 10, 8);
  paged.key_layout =
      ha::flash_attention_paged(ha::PageTable::dense(pages.data(), 3),
                                {.num_sequences = 1, .num_kv_heads = 1, .channels = 8, .num_pages = 2, .page_size = 4});
  paged.num_query_heads = paged.num_kv_heads = 1;
  paged.tokens = 6;
  paged.head_dim = 8;
  paged.first_token = 4;
  REQUIRE(ha::observe_chunk(paged, {.scale = 1}).size() == 1);
  paged.first_token = 3;
  headaware_test::check_error<ha::ArgumentError>(
      [&] { (void)ha::observe_chunk(paged, {.scale = 1}); },
      {"page table entry", "[0, 2)", "-1 for page 0", "observe_chunk, keys, sequence 0"});
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
