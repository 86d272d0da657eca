// A decoding step's attention on the CPU: time against bytes held.
//
// 32 layers × 8 KV heads × 128 channels of 2 bytes, 4 query heads per KV head, one sequence of 32,768 tokens. Each head
// keeps `kept` tokens in a ragged cache; "dense" is the same code over the full cache, measured in the same rounds.
// `threads` 0 is all cores.
// `times` is the ratio of the two times, `bytes` that of the bytes held, `excess` the first over the second: 1 is
// proportional. The best of interleaved rounds counts. In "mixed" every eighth head keeps all and the others `kept`.
//
// "coded": the full cache of one layer, keys and values in a format, beside half precision (`KeptCache`) in the same
// rounds: `times` of its time, `bytes` of its bytes.
//
// "latent": one layer of multi-head latent attention, 32,768 rows of 576 channels of 2 bytes, the first 512 of them the
// value, which all query heads share. GFLOP/s: 2 · heads · rows · (576 + 512) operations.

#include "support/timing.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/layout/strided.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_layers = 32;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int32_t group = 4;
constexpr std::int64_t tokens = 32768;
constexpr std::int64_t head_dim = 128;

void fill(std::vector<ha::float16>& tensor) {
  std::uint32_t state = 1;
  for (ha::float16& x : tensor) {
    state = state * 1664525U + 1013904223U;
    // 1 to 2, either sign.
    x.bits = static_cast<std::uint16_t>(0x3c00U | ((state >> 16) & 0x83ffU));
  }
}

/// One layer's buffers serve all layers where the model would not fit into memory: with `distinct` layers, each is as
/// far from the CPU's caches as the real one.
struct Cache {
  std::vector<std::int64_t> offsets{0};
  std::int32_t distinct = 0;
  std::vector<ha::float16> keys;
  std::vector<ha::float16> values;

  explicit Cache(std::vector<std::int64_t> const& kept) {
    for (std::int64_t const rows : kept) offsets.push_back(offsets.back() + rows);
    std::int64_t const layer_bytes = 2 * 2 * head_dim * offsets.back();
    std::int64_t const most = std::int64_t{1} << 31;
    distinct = static_cast<std::int32_t>(std::clamp<std::int64_t>(most / layer_bytes, 1, num_layers));
    auto const elements = static_cast<std::size_t>(offsets.back() * head_dim * distinct);
    keys.resize(elements);
    values.resize(elements);
    fill(keys);
    fill(values);
  }
  [[nodiscard]] double bytes() const { return static_cast<double>(num_layers * 2 * 2 * head_dim * offsets.back()); }
};

struct Step {
  ha::AttentionShape shape{1, num_kv_heads* group, num_kv_heads, 1, head_dim};
  ha::StridedLayout layout = ha::strided_bhsd(1, num_kv_heads* group, 1, head_dim);
  std::vector<float> queries = std::vector<float>(num_kv_heads * group * head_dim, 0.25F);
  std::vector<float> output = std::vector<float>(num_kv_heads * group * head_dim);

  double run(Cache const& cache) {
    double const start = bench::seconds();
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      std::int64_t const first = layer % cache.distinct * cache.offsets.back() * head_dim;
      ha::attend(shape, ha::AttentionQueries{queries.data(), layout},
                 ha::KeptCache{cache.keys.data() + first, cache.values.data() + first,
                               ha::RaggedView{cache.offsets.data(), num_kv_heads}},
                 ha::AttentionOutput{output.data(), layout});
    }
    benchmark::DoNotOptimize(output.data());
    return bench::seconds() - start;
  }
};

Cache const& dense_cache() {
  static Cache const cache(std::vector<std::int64_t>(num_kv_heads, tokens));
  return cache;
}

void decode(benchmark::State& state) {
  bench::set_threads(state.range(2));
  bool const mixed = state.range(1) != 0;
  std::vector<std::int64_t> kept(num_kv_heads, state.range(0));
  if (mixed) kept[0] = tokens;
  Cache const cache(kept);
  Cache const& dense = dense_cache();
  Step step;
  double best = std::numeric_limits<double>::infinity();
  double best_dense = best;
  step.run(cache);
  for (auto _ : state) {
    for (int round = 0; round < 3; ++round) {
      best_dense = std::min(best_dense, step.run(dense));
      for (int i = 0; i < 5; ++i) best = std::min(best, step.run(cache));
    }
    state.SetIterationTime(best);
  }
  double const times = best / best_dense;
  double const bytes = cache.bytes() / dense.bytes();
  state.counters["ms"] = 1e3 * best;
  state.counters["GB/s"] = 1e-9 * cache.bytes() / best;
  state.counters["dense_GB/s"] = 1e-9 * dense.bytes() / best_dense;
  state.counters["times"] = times;
  state.counters["bytes"] = bytes;
  state.counters["excess"] = times / bytes;
}

void latent(benchmark::State& state) {
  bench::set_threads(state.range(1));
  ha::AttentionShape const shape{1, static_cast<std::int32_t>(state.range(0)), 1, 1, 576, 512};
  auto const layout = ha::strided_bhsd(1, shape.num_query_heads, 1, shape.head_dim);
  std::vector<std::int64_t> const offsets{0, tokens};
  std::vector<ha::float16> rows(static_cast<std::size_t>(tokens * shape.head_dim));
  fill(rows);
  std::vector<float> const queries(static_cast<std::size_t>(layout.required_span_size()), 0.01F);
  std::vector<float> output(queries.size());
  double best = std::numeric_limits<double>::infinity();
  for (auto _ : state) {
    for (int round = 0; round < 4; ++round) {
      double const start = bench::seconds();
      ha::attend(shape, ha::AttentionQueries{queries.data(), layout},
                 ha::LatentCache{rows.data(), ha::RaggedView{offsets.data(), 1}},
                 ha::AttentionOutput{output.data(), layout});
      best = std::min(best, bench::seconds() - start);
      benchmark::DoNotOptimize(output.data());
    }
    state.SetIterationTime(best);
  }
  auto const row_operations = static_cast<double>(2 * shape.num_query_heads * (shape.head_dim + shape.value_dim));
  state.counters["ms"] = 1e3 * best;
  state.counters["GB/s"] = 2e-9 * static_cast<double>(rows.size()) / best;
  state.counters["GFLOP/s"] = 1e-9 * tokens * row_operations / best;
}

constexpr std::array<char const*, 8> formats{"fp16",    "int8",    "packed6", "packed5",
                                             "packed4", "packed3", "q8_0",    "fp8_e4m3"};

/// Random codes: valid rows of their format, made of encoded ones.
std::vector<ha::RowUnit> coded_rows(ha::HeadFormats const& of, std::int64_t count) {
  auto const units = static_cast<std::size_t>(of.row_units(head_dim, head_dim));
  std::vector<ha::RowUnit> rows(units * static_cast<std::size_t>(count));
  std::vector<float> row(head_dim);
  std::uint32_t state = 1;
  constexpr std::size_t distinct = 1024;
  for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
    ha::RowUnit* const to = rows.data() + r * units;
    if (r >= distinct) {
      std::copy_n(to - distinct * units, units, to);
      continue;
    }
    for (float& x : row) {
      state = state * 1664525U + 1013904223U;
      x = static_cast<float>(state >> 16) / 32768 - 1;
    }
    of.key.visit([&](auto const& format) { ha::encode_row(format, row.data(), head_dim, to->words); });
    std::uint32_t* const value = to->words + of.key_words(head_dim);
    of.value.visit([&](auto const& format) { ha::encode_row(format, row.data(), head_dim, value); });
  }
  return rows;
}

void coded(benchmark::State& state) {
  bench::set_threads(state.range(2));
  auto const format = ha::AnyFormat<>::of_name(formats[static_cast<std::size_t>(state.range(0))]);
  ha::HeadFormats const of{format, format};
  auto const heads = static_cast<std::int32_t>(num_kv_heads * state.range(1));
  ha::AttentionShape const shape{1, heads, num_kv_heads, 1, head_dim};
  auto const layout = ha::strided_bhsd(1, heads, 1, head_dim);
  std::vector<std::int64_t> offsets;
  for (std::int64_t h = 0; h <= num_kv_heads; ++h) offsets.push_back(h * tokens);
  std::vector<ha::RowUnit> const rows = coded_rows(of, num_kv_heads * tokens);
  std::vector<ha::PackedSegment<>> const segments(num_kv_heads,
                                                  {of, static_cast<std::int32_t>(of.row_units(head_dim, head_dim)), 0});
  Cache const& dense = dense_cache();
  std::vector<float> const queries(static_cast<std::size_t>(layout.required_span_size()), 0.25F);
  std::vector<float> output(queries.size());
  auto const timed = [&](auto const& cache) {
    double const start = bench::seconds();
    ha::attend(shape, ha::AttentionQueries{queries.data(), layout}, cache, ha::AttentionOutput{output.data(), layout});
    benchmark::DoNotOptimize(output.data());
    return bench::seconds() - start;
  };
  using View = ha::RaggedView<std::int64_t>;
  View const view{offsets.data(), num_kv_heads};
  double best = std::numeric_limits<double>::infinity();
  double best_half = best;
  for (auto _ : state) {
    for (int round = 0; round < 20; ++round) {
      best = std::min(best, timed(ha::PackedCache<ha::DefaultFormats, View>{rows.data(), segments.data(), view}));
      best_half = std::min(best_half, timed(ha::KeptCache{dense.keys.data(), dense.values.data(), view}));
    }
    state.SetIterationTime(best);
  }
  double const bytes = static_cast<double>(rows.size() * sizeof(ha::RowUnit));
  state.SetLabel(std::string(format.name()));
  state.counters["ms"] = 1e3 * best;
  state.counters["GB/s"] = 1e-9 * bytes / best;
  state.counters["fp16_ms"] = 1e3 * best_half;
  state.counters["times"] = best / best_half;
  state.counters["bytes"] = bytes / static_cast<double>(2 * 2 * head_dim * num_kv_heads * tokens);
}

}  // namespace

BENCHMARK(coded)
    ->ArgNames({"format", "group", "threads"})
    ->ArgsProduct({{0, 1, 2, 3, 4, 5, 6, 7}, {1, 3, 4, 8}, {1, 0}})
    ->UseManualTime()
    ->Iterations(1);
BENCHMARK(latent)->ArgNames({"heads", "threads"})->ArgsProduct({{16, 128}, {1, 0}})->UseManualTime()->Iterations(1);
BENCHMARK(decode)
    ->ArgNames({"kept", "mixed", "threads"})
    ->ArgsProduct({{64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768}, {0}, {1, 0}})
    ->ArgsProduct({{64, 512, 4096}, {1}, {1, 0}})
    ->UseManualTime()
    ->Iterations(1);
BENCHMARK_MAIN();
