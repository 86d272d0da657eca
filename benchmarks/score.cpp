// Scores of rows on the CPU, all layers of a model, one sequence, float rows as the engine's graph has them.
//
//   linear    `score_rows`; `rotated`: queries and keys are turned back first
//   expected  `expected_attention` of a whole cache, 512 positions ahead, from moments that are there already
// Tokens a second are those of all layers, by the CPU time of one thread.

#include "support/timing.hpp"

#include <headaware/layout/strided.hpp>
#include <headaware/score/expected_attention.hpp>
#include <headaware/score/linear_score.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <vector>

namespace ha = headaware;

namespace {

struct Rows {
  ha::ScoreFeatures features;
  std::int64_t layers;
  std::int64_t tokens;
  std::vector<float> queries, keys, values, weights, scores;

  /// @param model  0: SmolLM2-135M, 1: Llama 3 8B, whose layers share their rows here: only the weights are its own
  Rows(std::int64_t model, std::int64_t count)
      : features(model == 0 ? ha::ScoreFeatures{9, 3, 64, 64} : ha::ScoreFeatures{32, 8, 128, 128}),
        layers(model == 0 ? 30 : 32),
        tokens(count) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    auto const fill = [&](std::vector<float>& to, std::int64_t size) {
      to.resize(static_cast<std::size_t>(size));
      for (float& x : to) x = normal(random);
    };
    fill(queries, tokens * features.num_query_heads * features.head_dim);
    fill(keys, tokens * features.num_kv_heads * features.head_dim);
    fill(values, tokens * features.num_kv_heads * features.value_dim);
    fill(weights, layers * features.num_kv_heads * features.count());
    scores.resize(static_cast<std::size_t>(features.num_kv_heads * tokens));
  }
  [[nodiscard]] auto tokens_of() const {
    return ha::TokenRows{queries.data(), ha::strided_shd(tokens, features.num_query_heads, features.head_dim),
                         keys.data(), values.data(), ha::strided_shd(tokens, features.num_kv_heads, features.head_dim)};
  }
  [[nodiscard]] ha::RowScores to() { return ha::RowScores::dense(scores.data(), features.num_kv_heads, tokens); }
};

void report(benchmark::State& state, Rows const& rows) { state.SetItemsProcessed(state.iterations() * rows.tokens); }

void linear(benchmark::State& state) {
  bench::set_threads(1);
  Rows rows(state.range(0), state.range(1));
  auto const rotation =
      ha::KeyRotation::from_base(ha::RotaryPairing::neox, static_cast<std::int32_t>(rows.features.head_dim), 1e5);
  for (auto _ : state) {
    for (std::int64_t layer = 0; layer < rows.layers; ++layer) {
      float const* const weights = rows.weights.data() + layer * rows.features.num_kv_heads * rows.features.count();
      if (state.range(2) != 0) {
        ha::score_rows(rows.features, {1, rows.tokens}, rows.tokens_of(), weights, rows.to(), rotation);
      } else {
        ha::score_rows(rows.features, {1, rows.tokens}, rows.tokens_of(), weights, rows.to());
      }
    }
    benchmark::ClobberMemory();
  }
  report(state, rows);
}

void expected(benchmark::State& state) {
  bench::set_threads(1);
  Rows rows(state.range(0), state.range(1));
  auto const rotation =
      ha::KeyRotation::from_base(ha::RotaryPairing::neox, static_cast<std::int32_t>(rows.features.head_dim), 1e5);
  auto const tokens = rows.tokens_of();
  ha::QueryMoments moments(rows.features.num_query_heads, rows.features.head_dim);
  moments.add(tokens.queries, tokens.query_layout, 0, 0, rows.tokens);
  for (auto _ : state) {
    for (std::int64_t layer = 0; layer < rows.layers; ++layer) {
      ha::expected_attention(rows.features, {1, rows.tokens}, moments, {.next_position = rows.tokens}, tokens.keys,
                             tokens.values, tokens.layout, rows.to(), rotation);
    }
    benchmark::ClobberMemory();
  }
  report(state, rows);
}

}  // namespace

BENCHMARK(linear)
    ->ArgNames({"model", "tokens", "rotated"})
    ->ArgsProduct({{0, 1}, {1, 512}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(expected)->ArgNames({"model", "tokens"})->ArgsProduct({{0}, {1024}})->Unit(benchmark::kMicrosecond);

BENCHMARK_MAIN();
