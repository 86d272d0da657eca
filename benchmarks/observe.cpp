// Attention statistics on the CPU, beside what others need, in one run.
//
// One head, causal, single precision, S tokens of D channels, one thread and all. Beside it, from the same Q, K and V:
//   sgemm         a tuned BLAS's bare S × S product Q·Kᵀ, whole square, no softmax: what materialising begins with
//   materialised  sgemm, softmax and the same statistics from an S × S matrix
//   torch_eager   the reference's way in torch, where python3 has it
// "ratio" is observation's time over sgemm's, the best of interleaved rounds. `peak_MB` is what a round adds to the
// process's high-water mark of memory beyond the inputs.

#include "support/timing.hpp"

#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.hpp>

#include <benchmark/benchmark.h>

#if __has_include(<cblas.h>)
#include <cblas.h>
#else
#include <x86_64-linux-gnu/cblas.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace ha = headaware;

namespace {

void set_threads(std::int64_t threads) { openblas_set_num_threads(bench::set_threads(threads)); }

/// Forgets the high-water mark of this process's memory (Linux).
void reset_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

/// A line of /proc/self/status, in MB.
double status_mb(std::string const& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name)) return std::stod(line.substr(name.size() + 1)) / 1024;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// Memory that `work` adds at most, in MB.
template <class Work>
double peak_mb(Work const& work) {
  reset_peak();
  double const before = status_mb("VmRSS:");
  work();
  return std::max(0.0, status_mb("VmHWM:") - before);
}

struct Head {
  std::int64_t tokens;
  std::int64_t head_dim;
  std::vector<float> queries;
  std::vector<float> keys;
  std::vector<float> values;

  Head(std::int64_t s, std::int64_t d) : tokens(s), head_dim(d) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (auto* const tensor : {&queries, &keys, &values}) {
      tensor->resize(static_cast<std::size_t>(s * d));
      for (float& x : *tensor) x = normal(random);
    }
  }
  [[nodiscard]] auto layer(bool with_values) const {
    ha::LayerQkv<float, ha::StridedLayout, ha::StridedLayout> layer;
    auto const layout = ha::strided_bhsd(1, 1, tokens, head_dim);
    layer.queries = queries.data();
    layer.keys = keys.data();
    layer.values = with_values ? values.data() : nullptr;
    layer.query_layout = layout;
    layer.key_layout = layout;
    layer.value_layout = layout;
    layer.num_query_heads = 1;
    layer.num_kv_heads = 1;
    layer.tokens = tokens;
    layer.head_dim = head_dim;
    return layer;
  }
  [[nodiscard]] ha::AttentionScore score() const { return {.scale = 1 / std::sqrt(static_cast<float>(head_dim))}; }

  void sgemm(float* scores) const {
    auto const s = static_cast<int>(tokens);
    auto const d = static_cast<int>(head_dim);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, s, s, d, 1, queries.data(), d, keys.data(), d, 0, scores, s);
  }
};

enum class What { masses, retention, formats };

/// 16 windows and 5 sinks, as far apart as the text allows, and formats if wanted.
ha::ObserverParameters parameters_of(What what) {
  ha::ObserverParameters parameters;
  if (what != What::masses) parameters.retention = ha::RetentionGrid{};
  if (what != What::formats) parameters.formats.clear();
  return parameters;
}

/// The statistics from a matrix of all scores, row by row; what is computed is what `observe_chunk` computes.
double materialised(Head const& head, std::vector<float>& scores) {
  head.sgemm(scores.data());
  float const scale = head.score().scale;
  double checksum = 0;
#pragma omp parallel for schedule(dynamic, 16) reduction(+ : checksum)
  for (std::int64_t q = 0; q < head.tokens; ++q) {
    float* const p = scores.data() + q * head.tokens;
    float top = -std::numeric_limits<float>::infinity();
    for (std::int64_t k = 0; k <= q; ++k) top = std::max(top, p[k]);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t k = 0; k <= q; ++k) {
      p[k] = std::exp((p[k] - top) * scale);
      sum += p[k];
    }
    float entropy = 0;
    float max = 0;
#pragma omp simd reduction(+ : entropy) reduction(max : max)
    for (std::int64_t k = 0; k <= q; ++k) {
      p[k] /= sum;
      entropy -= p[k] * std::log(p[k] + 1e-10F);
      max = std::max(max, p[k]);
    }
    float sinks = 0;
    float local = 0;
    for (std::int64_t k = 0; k < std::min<std::int64_t>(4, q + 1); ++k) sinks += p[k];
    for (std::int64_t k = std::max<std::int64_t>(0, q - 8); k <= q; ++k) local += p[k];
    checksum += entropy + max + sinks + local;
  }
  return checksum;
}

/// Times two pieces of work in turn, and reports the first one's. @return the least seconds of each
template <class First, class Second>
std::pair<double, double> best_of(benchmark::State& state, First const& first, Second const& second) {
  std::pair<double, double> best(std::numeric_limits<double>::max(), std::numeric_limits<double>::max());
  for (auto _ : state) {
    double const start = bench::seconds();
    first();
    double const middle = bench::seconds();
    second();
    double const end = bench::seconds();
    best = {std::min(best.first, middle - start), std::min(best.second, end - middle)};
    state.SetIterationTime(middle - start);
  }
  return best;
}

void observe(benchmark::State& state, What what) {
  set_threads(state.range(2));
  Head const head(state.range(0), state.range(1));
  auto const parameters = parameters_of(what);
  auto const observe_once = [&] {
    benchmark::DoNotOptimize(ha::observe_chunk(head.layer(what != What::masses), head.score(), parameters));
  };
  double const observe_mb = peak_mb(observe_once);
  std::vector<float> scores(static_cast<std::size_t>(head.tokens * head.tokens));
  head.sgemm(scores.data());
  auto const [best, best_sgemm] = best_of(state, observe_once, [&] {
    head.sgemm(scores.data());
    benchmark::DoNotOptimize(scores.data());
  });
  state.counters["observe_ms"] = best * 1e3;
  state.counters["sgemm_ms"] = best_sgemm * 1e3;
  state.counters["ratio"] = best / best_sgemm;
  state.counters["peak_MB"] = observe_mb;
}

void mass_only(benchmark::State& state) { observe(state, What::masses); }
void retention(benchmark::State& state) { observe(state, What::retention); }
/// The same with errors of the default formats.
void retention_and_formats(benchmark::State& state) { observe(state, What::formats); }

void materialised_statistics(benchmark::State& state) {
  set_threads(state.range(2));
  Head const head(state.range(0), state.range(1));
  double peak = 0;
  auto const [best, best_observe] = best_of(
      state,
      [&] {
        peak = std::max(peak, peak_mb([&] {
                          std::vector<float> scores(static_cast<std::size_t>(head.tokens * head.tokens));
                          benchmark::DoNotOptimize(materialised(head, scores));
                        }));
      },
      [&] { benchmark::DoNotOptimize(ha::observe_chunk(head.layer(false), head.score())); });
  state.counters["materialised_ms"] = best * 1e3;
  state.counters["observe_ms"] = best_observe * 1e3;
  state.counters["speedup"] = best / best_observe;
  state.counters["peak_MB"] = peak;
}

/// torch's eager path in a process of its own (peers/torch_eager.py), and observation beside it.
void torch_eager(benchmark::State& state) {
  std::string const command = "python3 '" HEADAWARE_BENCHMARKS "/peers/torch_eager.py' " +
                              std::to_string(state.range(0)) + ' ' + std::to_string(state.range(1)) + ' ' +
                              std::to_string(state.range(2)) + " 2>/dev/null";
  double torch_ms = 0;
  std::FILE* const pipe = popen(command.c_str(), "r");
  bool const measured = pipe != nullptr && std::fscanf(pipe, "%lf", &torch_ms) == 1;
  if (pipe != nullptr) pclose(pipe);
  if (!measured) {
    state.SkipWithError("python3 has no torch");
    return;
  }
  set_threads(state.range(2));
  Head const head(state.range(0), state.range(1));
  double best = std::numeric_limits<double>::max();
  for (auto _ : state) {
    double const start = bench::seconds();
    benchmark::DoNotOptimize(ha::observe_chunk(head.layer(false), head.score()));
    double const time = bench::seconds() - start;
    best = std::min(best, time);
    state.SetIterationTime(time);
  }
  state.counters["torch_ms"] = torch_ms;
  state.counters["observe_ms"] = best * 1e3;
  state.counters["speedup"] = torch_ms / (best * 1e3);
}

void axes(benchmark::internal::Benchmark* benchmark) {
  for (std::int64_t const threads : {1, 0}) {
    for (std::int64_t const head_dim : {64, 128}) {
      for (std::int64_t const tokens : {512, 1024, 2048, 4096, 8192, 16384}) {
        benchmark->Args({tokens, head_dim, threads});
      }
    }
  }
  benchmark->ArgNames({"S", "D", "threads"})->Iterations(5)->UseManualTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK(mass_only)->Apply(axes);
BENCHMARK(retention)->Apply(axes);
BENCHMARK(retention_and_formats)->Apply(axes);
BENCHMARK(materialised_statistics)->Apply(axes);
BENCHMARK(torch_eager)->Apply(axes);

}  // namespace

BENCHMARK_MAIN();
