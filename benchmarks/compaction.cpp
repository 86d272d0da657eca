// Compaction on the CPU beside memcpy of the same bytes, in one run.
//
// 32 layers × 8 KV heads × 4,096 tokens of 128 two-byte channels, cut to 4 sinks and a window of
// 508 tokens: 67 MB kept. memcpy moves as many bytes between buffers as large, split among the same
// threads. "ratio" is compaction's speed over memcpy's, the best of interleaved rounds.

#include "support/timing.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/layout/strided.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_layers = 32;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int64_t tokens = 4096;
constexpr std::int64_t head_dim = 128;

/// The cache of a model, filled so that all of its pages exist.
struct Cache {
  std::vector<std::uint16_t> keys;
  std::vector<std::uint16_t> values;
  std::vector<ha::LayerKv<std::uint16_t const>> layers;

  Cache() {
    constexpr std::size_t layer_elements = num_kv_heads * tokens * head_dim;
    keys.assign(num_layers * layer_elements, 1);
    values.assign(num_layers * layer_elements, 2);
    for (std::size_t layer = 0; layer < num_layers; ++layer) {
      layers.push_back({keys.data() + layer * layer_elements, values.data() + layer * layer_elements});
    }
  }
};

Cache const& cache() {
  static Cache const instance;
  return instance;
}

/// memcpy of `bytes`, each thread a contiguous share.
void parallel_memcpy(void* target, void const* source, std::size_t bytes) {
  auto* const to = static_cast<char*>(target);
  auto const* const from = static_cast<char const*>(source);
#pragma omp parallel
  {
#ifdef _OPENMP
    auto const threads = static_cast<std::size_t>(omp_get_num_threads());
    auto const thread = static_cast<std::size_t>(omp_get_thread_num());
#else
    std::size_t const threads = 1;
    std::size_t const thread = 0;
#endif
    std::size_t const begin = bytes * thread / threads;
    std::size_t const end = bytes * (thread + 1) / threads;
    std::memcpy(to + begin, from + begin, end - begin);
  }
}

void compaction(benchmark::State& state, ha::StridedLayout const& source) {
  bench::set_threads(state.range(0));
  ha::Compaction const compaction(ha::UniformTable(ha::SinkWindow{.sink = 4, .window = 508}, num_layers, num_kv_heads),
                                  std::vector<std::int32_t>{tokens});
  auto const elements = static_cast<std::size_t>(compaction.kept_total() * head_dim);
  std::vector<std::uint16_t> kept_keys(elements);
  std::vector<std::uint16_t> kept_values(elements);
  auto const kept = ha::ragged(compaction, kept_keys.data(), kept_values.data(), head_dim);
  std::size_t const bytes = elements * sizeof(std::uint16_t);

  double best_compaction = std::numeric_limits<double>::max();
  double best_memcpy = best_compaction;
  for (auto _ : state) {
    double const start = bench::seconds();
    ha::compress(compaction, cache().layers, source, kept);
    double const middle = bench::seconds();
    parallel_memcpy(kept_keys.data(), cache().keys.data(), bytes);
    parallel_memcpy(kept_values.data(), cache().values.data(), bytes);
    double const end = bench::seconds();
    best_compaction = std::min(best_compaction, middle - start);
    best_memcpy = std::min(best_memcpy, end - middle);
    state.SetIterationTime(middle - start);
  }
  auto const kept_bytes = static_cast<double>(compaction.bytes_held(head_dim, sizeof(std::uint16_t)));
  state.counters["kept_bytes"] = kept_bytes;
  state.counters["compaction_GB/s"] = kept_bytes / best_compaction / 1e9;
  state.counters["memcpy_GB/s"] = kept_bytes / best_memcpy / 1e9;
  state.counters["ratio"] = best_memcpy / best_compaction;
}

void compaction_bhsd(benchmark::State& state) {
  compaction(state, ha::strided_bhsd(1, num_kv_heads, tokens, head_dim));
}
void compaction_bshd(benchmark::State& state) {
  compaction(state, ha::strided_bshd(1, tokens, num_kv_heads, head_dim));
}

// Threads: one, and all (0).
BENCHMARK(compaction_bhsd)
    ->Arg(1)
    ->Arg(0)
    ->ArgName("threads")
    ->UseManualTime()
    ->Iterations(30)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(compaction_bshd)
    ->Arg(1)
    ->Arg(0)
    ->ArgName("threads")
    ->UseManualTime()
    ->Iterations(30)
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
