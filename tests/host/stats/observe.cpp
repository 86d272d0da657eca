// The blocked pass against plain double-precision loops over the formulas.

#include "support/catch.hpp"

#include <headaware/io/head_statistics.hpp>
#include <headaware/io/npy.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace ha = headaware;

namespace {

struct Problem {
  std::int32_t query_heads = 2;
  std::int32_t kv_heads = 1;
  std::int64_t tokens = 0;
  std::int64_t head_dim = 16;
  std::vector<float> queries, keys, values;

  Problem(std::int32_t q, std::int32_t kv, std::int64_t s, std::int64_t d, unsigned seed, float spread = 1)
      : query_heads(q), kv_heads(kv), tokens(s), head_dim(d) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    auto const fill = [&](std::vector<float>& to, std::int64_t heads) {
      to.resize(static_cast<std::size_t>(heads * s * d));
      for (float& x : to) x = spread * normal(random);
    };
    fill(queries, q);
    fill(keys, kv);
    fill(values, kv);
  }
  [[nodiscard]] auto layer(bool with_values) const {
    auto const kv_layout = ha::strided_bhsd(1, kv_heads, tokens, head_dim);
    return ha::LayerQkv<float, ha::StridedLayout, ha::StridedLayout>{queries.data(),
                                                                     keys.data(),
                                                                     with_values ? values.data() : nullptr,
                                                                     ha::strided_bhsd(1, query_heads, tokens, head_dim),
                                                                     kv_layout,
                                                                     kv_layout,
                                                                     query_heads,
                                                                     kv_heads,
                                                                     tokens,
                                                                     head_dim,
                                                                     0};
  }
  /// Probabilities of one row, in double.
  [[nodiscard]] std::vector<double> row(std::int32_t head, std::int64_t q, ha::AttentionScore const& score) const {
    std::int64_t const kv = head / (query_heads / kv_heads);
    std::vector<double> p(static_cast<std::size_t>(tokens));
    double max = -std::numeric_limits<double>::infinity();
    std::int64_t const oldest = score.sliding_window > 0 ? std::max<std::int64_t>(0, q - score.sliding_window + 1) : 0;
    for (std::int64_t k = oldest; k <= q; ++k) {
      double s = 0;
      for (std::int64_t d = 0; d < head_dim; ++d) {
        s += double(queries[static_cast<std::size_t>((head * tokens + q) * head_dim + d)]) *
             double(keys[static_cast<std::size_t>((kv * tokens + k) * head_dim + d)]);
      }
      s *= double(score.scale);
      if (score.soft_cap > 0) s = double(score.soft_cap) * std::tanh(s / double(score.soft_cap));
      p[static_cast<std::size_t>(k)] = s;
      max = std::max(max, s);
    }
    double z = 0;
    for (std::int64_t k = 0; k < tokens; ++k) {
      auto& x = p[static_cast<std::size_t>(k)];
      x = k < oldest || k > q ? 0 : std::exp(x - max);
      z += x;
    }
    for (double& x : p) x /= z;
    return p;
  }
};

/// The formulas as they are written down, summed over rows.
ha::HeadChunk naive(Problem const& problem, std::int32_t head, ha::AttentionScore const& score,
                    ha::ObserverParameters const& parameters) {
  constexpr double eps = 1e-10;
  ha::HeadChunk result{ha::ChunkSums(static_cast<std::size_t>(parameters.num_distances)),
                       parameters.retention ? ha::RetentionSums(*parameters.retention) : ha::RetentionSums()};
  auto const recent = static_cast<std::int64_t>(std::floor(double(problem.tokens) * (1 - parameters.recent_ratio)));
  for (std::int64_t q = parameters.first_query; q < problem.tokens; q += parameters.query_stride) {
    auto const p = problem.row(head, q, score);
    auto& c = result.chunk;
    ++c.rows;
    double max = 0;
    double kl = 0;
    for (std::int64_t k = 0; k <= q; ++k) {
      double const x = p[static_cast<std::size_t>(k)];
      c.entropy -= x * std::log(x + eps);
      kl += x * std::log((x + eps) / (1.0 / double(q + 1) + eps));
      max = std::max(max, x);
      if (k < parameters.sink_size) c.sink += x;
      if (k >= recent) c.recent += x;
      if (q - k <= parameters.local_window) c.local += x;
      if (q - k < parameters.num_distances) c.distances[static_cast<std::size_t>(q - k)] += x;
    }
    c.max_attention += max;
    if (q > 0) {
      ++c.uniformity_rows;
      c.uniformity += kl;
    }
    if (!parameters.retention) continue;
    auto& r = result.retention;
    ++r.rows;
    std::int64_t const kv = head / (problem.query_heads / problem.kv_heads);
    auto const value = [&](std::int64_t k, std::int64_t d) {
      return double(problem.values[static_cast<std::size_t>((kv * problem.tokens + k) * problem.head_dim + d)]);
    };
    std::vector<double> o(static_cast<std::size_t>(problem.head_dim));
    for (std::int64_t k = 0; k <= q; ++k) {
      for (std::int64_t d = 0; d < problem.head_dim; ++d)
        o[static_cast<std::size_t>(d)] += p[static_cast<std::size_t>(k)] * value(k, d);
    }
    for (double const x : o) r.output_squared += x * x;
    auto const& grid = *parameters.retention;
    for (std::size_t s = 0; s < grid.sinks.size(); ++s) {
      for (std::size_t w = 0; w < grid.windows.size(); ++w) {
        // Explicit renormalisation over what is kept.
        double mass = 0;
        double kept = 0;
        std::vector<double> output(o.size());
        for (std::int64_t k = 0; k <= q; ++k) {
          double const x = p[static_cast<std::size_t>(k)];
          if (k < grid.sinks[s] || k > q - grid.windows[w]) {
            kept += x;
            for (std::int64_t d = 0; d < problem.head_dim; ++d) output[static_cast<std::size_t>(d)] += x * value(k, d);
          } else {
            mass += x;
          }
        }
        double error = 0;
        for (std::size_t d = 0; d < o.size(); ++d) error += (output[d] / kept - o[d]) * (output[d] / kept - o[d]);
        r.mass[grid.cell(s, w)] += mass;
        r.mass_squared[grid.cell(s, w)] += mass * mass;
        r.error_squared[grid.cell(s, w)] += error;
      }
    }
  }
  return result;
}

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

TEST_CASE("a real model's heads agree with their double-precision statistics", "[stats]") {
  char const* const data = std::getenv("HEADAWARE_SHARED_DATA");
  if (data == nullptr) HEADAWARE_SKIP("HEADAWARE_SHARED_DATA names no folder");
  auto const folder = std::filesystem::path(data) / "smollm2-135m";
  auto const expected = ha::load_statistics(folder / "head_statistics.json");
  std::vector<ha::HeadSums> sums(expected.heads.size(), ha::HeadSums(64));
  for (std::string const chunk : {"chunk0", "chunk1"}) {
    auto const q = ha::load_npy(folder / (chunk + "_q.npy"));
    auto const k = ha::load_npy(folder / (chunk + "_k.npy"));
    std::int64_t const layers = q.shape[0];
    std::int64_t const tokens = q.shape[2];
    auto const q_layout = ha::strided_bhsd(layers, 9, tokens, 64);
    auto const k_layout = ha::strided_bhsd(layers, 3, tokens, 64);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      // The layers lie as a batch.
      ha::LayerQkv<ha::float16, ha::StridedLayout, ha::StridedLayout> const input{q.as<ha::float16>().data(),
                                                                                  k.as<ha::float16>().data(),
                                                                                  nullptr,
                                                                                  q_layout,
                                                                                  k_layout,
                                                                                  k_layout,
                                                                                  9,
                                                                                  3,
                                                                                  tokens,
                                                                                  64,
                                                                                  layer};
      auto const heads = ha::observe_chunk(input, {.scale = 0.125F});
      for (std::size_t h = 0; h < 9; ++h) sums[static_cast<std::size_t>(layer) * 9 + h].add(heads[h].chunk);
    }
  }
  double worst = 0;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    auto const& e = expected.heads[i];
    auto const g = sums[i].statistics(e.layer_idx, e.head_idx);
    for (auto const& [a, b] : {std::pair{g.mean_entropy, e.mean_entropy},
                               {g.std_entropy, e.std_entropy},
                               {g.max_attention_mean, e.max_attention_mean},
                               {g.sink_ratio, e.sink_ratio},
                               {g.position_preference.recent, e.position_preference.recent},
                               {g.position_preference.local, e.position_preference.local},
                               {g.position_preference.global, e.position_preference.global},
                               {g.uniformity_score, e.uniformity_score}}) {
      worst = std::max(worst, std::abs(a - b));
    }
    for (std::size_t d = 0; d < 64; ++d)
      worst = std::max(worst, std::abs(g.relative_position_dist[d] - e.relative_position_dist[d]));
  }
  INFO("largest difference " << worst);
  REQUIRE(worst < 1e-5);
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
