// A step of decoding on the CPU, beside the append that recopies the cache, in one run.
//
// 32 layers × 8 KV heads, one sequence, 128 channels of 2 bytes; every head keeps `kept` tokens (4 of them sinks).
//   rolling    the new token goes into its slot: as long as the cache is, the same 131,072 bytes
//   paged      the same into pages of 16, tables edited on the way
//   recopying  heads lie back to back without gaps, so that a token more moves them all: what AdaKV's flattened cache
//              does each step (FFY0/AdaKV, csrc, update_flatten_view), here with memcpy and one spare layer
// All on one thread; so short a step is not shared out.
// Before each round the CPU's caches are filled with something else, as a model's weights do between two steps;
// "step_us" is the time of a step for the whole model, the best of its rounds, "median_us" their median.

#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_layers = 32;
constexpr std::int32_t kv_heads = 8;
constexpr std::int64_t head_dim = 128;
constexpr std::int32_t sink = 4;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// A token of every head of every layer.
struct NewToken {
  std::vector<std::uint16_t> keys = std::vector<std::uint16_t>(num_layers * kv_heads * head_dim, 1);
  std::vector<std::uint16_t> values = std::vector<std::uint16_t>(num_layers * kv_heads * head_dim, 2);
  std::vector<ha::LayerKv<std::uint16_t const>> layers;
  ha::StridedLayout layout = ha::strided_bshd(1, 1, kv_heads, head_dim);

  NewToken() {
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      layers.push_back({keys.data() + layer * kv_heads * head_dim, values.data() + layer * kv_heads * head_dim});
    }
  }
};

/// Fills the CPU's caches with something else.
void flush_caches() {
  static std::vector<std::uint64_t> other(std::size_t{96} << 17);  // 96 MiB
  for (std::size_t i = 0; i < other.size(); i += 8) ++other[i];
  benchmark::ClobberMemory();
}

/// Runs `step` once a round and reports the best one.
template <class Step>
void timed(benchmark::State& state, std::int64_t bytes_written, Step const& step) {
  std::vector<double> times;
  step();
  for (auto _ : state) {
    flush_caches();
    double const start = seconds();
    step();
    times.push_back(seconds() - start);
    state.SetIterationTime(times.back());
  }
  std::sort(times.begin(), times.end());
  state.counters["step_us"] = 1e6 * times.front();
  state.counters["median_us"] = 1e6 * times[times.size() / 2];
  state.counters["written_bytes"] = static_cast<double>(bytes_written);
}

constexpr std::int64_t new_bytes = std::int64_t{2} * num_layers * kv_heads * head_dim * 2;

void rolling(benchmark::State& state) {
  auto const kept = static_cast<std::int32_t>(state.range(0));
  ha::UniformTable const table(ha::SinkWindow{.sink = sink, .window = kept - sink}, num_layers, kv_heads);
  ha::RollingPlan const plan(table, 1, {});
  std::vector<std::uint16_t> keys(static_cast<std::size_t>(plan.rows_total() * head_dim), 3);
  std::vector<std::uint16_t> values(keys.size(), 4);
  auto const view = plan.view();
  auto const cache = ha::rolling(plan, view, keys.data(), values.data(), head_dim);
  ha::RollingState lengths(1);
  lengths.start(view, 0, kept);
  NewToken const token;
  std::vector<std::int32_t> const one{1};
  timed(state, new_bytes, [&] { ha::append(view, lengths, token.layers, token.layout, one, cache); });
}

void paged(benchmark::State& state) {
  auto const kept = static_cast<std::int32_t>(state.range(0));
  constexpr std::int32_t page_size = 16;
  ha::UniformTable const table(ha::SinkWindow{.sink = sink, .window = kept - sink}, num_layers, kv_heads);
  std::int32_t const num_pages = num_layers * kv_heads * (kept / page_size + 3);
  ha::PagedHeads pages(table, {.num_sequences = 1, .page_size = page_size, .num_pages = num_pages, .limits = {}});
  std::vector<std::uint16_t> keys(static_cast<std::size_t>(std::int64_t{num_pages} * page_size * head_dim), 3);
  std::vector<std::uint16_t> values(keys.size(), 4);
  ha::PageStorage<std::uint16_t> const storage{keys.data(), values.data(), head_dim, head_dim};
  (void)pages.append(std::vector<std::int32_t>{kept});
  NewToken const token;
  std::vector<std::int32_t> const one{1};
  timed(state, new_bytes, [&] { ha::append(pages, pages.append(one), token.layers, token.layout, storage); });
}

void recopying(benchmark::State& state) {
  std::int64_t const kept = state.range(0);
  // One token of room more a head; a step writes a layer's heads into the spare buffer and swaps the two.
  auto const elements = static_cast<std::size_t>(kv_heads * (kept + 1) * head_dim);
  std::vector<std::vector<std::uint16_t>> buffers(2 * num_layers, std::vector<std::uint16_t>(elements, 3));
  std::vector<std::uint16_t> spare(elements, 4);
  NewToken const token;
  timed(state, new_bytes + 2 * num_layers * kv_heads * kept * head_dim * 2, [&] {
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      auto const layer = i / 2;
      auto const* const fresh = i % 2 == 0 ? token.layers[layer].keys : token.layers[layer].values;
      for (std::int64_t head = 0; head < kv_heads; ++head) {
        std::uint16_t* const to = spare.data() + head * (kept + 1) * head_dim;
        std::memcpy(to, buffers[i].data() + head * kept * head_dim,
                    static_cast<std::size_t>(kept * head_dim) * sizeof(std::uint16_t));
        std::memcpy(to + kept * head_dim, fresh + head * head_dim, head_dim * sizeof(std::uint16_t));
      }
      std::swap(buffers[i], spare);
    }
  });
}

// Kept tokens of a head: 64 to 32,768.
BENCHMARK(rolling)->RangeMultiplier(8)->Range(64, 32768)->ArgName("kept")->UseManualTime()->Iterations(200)->Unit(
    benchmark::kMicrosecond);
BENCHMARK(paged)->RangeMultiplier(8)->Range(64, 32768)->ArgName("kept")->UseManualTime()->Iterations(200)->Unit(
    benchmark::kMicrosecond);
BENCHMARK(recopying)->RangeMultiplier(8)->Range(64, 32768)->ArgName("kept")->UseManualTime()->Iterations(5)->Unit(
    benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
