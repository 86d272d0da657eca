// A step of decoding on the CPU, beside the append that recopies the cache, in one run.
//
// 32 layers × 8 KV heads, one sequence, 128 channels of 2 bytes; every head keeps `kept` tokens (4 of them sinks).
//   rolling    the new token goes into its slot: as long as the cache is, the same 131,072 bytes
//   paged      the same into pages of 16, tables edited on the way
//   recopying  heads lie back to back without gaps, so that a token more moves them all: what AdaKV's flattened cache
//              does each step (FFY0/AdaKV, csrc, update_flatten_view), here with memcpy and one spare layer
// All on one thread; so short a step is not shared out. Buffers lie on large pages of memory where the system has them.
// `cold` steps first have the CPU's caches filled with something else, as a model's weights do between two steps: what
// is missing then is also the page tables that say where the slots are. Others follow each other directly.
// "step_us" is the time of a step for the whole model, the best of its rounds, "median_us" their median.

#include "support/timing.hpp"

#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>

#include <benchmark/benchmark.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_layers = 32;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int64_t head_dim = 128;
constexpr std::int32_t sink = 4;

/// Memory as an engine allocates a cache: aligned, and on large pages.
class Buffer {
 public:
  Buffer(std::int64_t elements, std::uint16_t value) {
    constexpr std::size_t large_page = std::size_t{2} << 20;
    std::size_t const bytes =
        (static_cast<std::size_t>(elements) * sizeof(std::uint16_t) + large_page - 1) / large_page * large_page;
    data_.reset(static_cast<std::uint16_t*>(std::aligned_alloc(large_page, bytes)));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    (void)madvise(data_.get(), bytes, MADV_HUGEPAGE);  // where it is refused, small pages do
#endif
    std::fill_n(data_.get(), elements, value);
  }
  [[nodiscard]] std::uint16_t* data() { return data_.get(); }

 private:
  struct Free {
    void operator()(std::uint16_t* data) const { std::free(data); }
  };
  std::unique_ptr<std::uint16_t, Free> data_;
};

/// A token of every head of every layer.
struct NewToken {
  std::vector<std::uint16_t> keys = std::vector<std::uint16_t>(num_layers * num_kv_heads * head_dim, 1);
  std::vector<std::uint16_t> values = std::vector<std::uint16_t>(num_layers * num_kv_heads * head_dim, 2);
  std::vector<ha::LayerKv<std::uint16_t const>> layers;
  ha::StridedLayout layout = ha::strided_bshd(1, 1, num_kv_heads, head_dim);

  NewToken() {
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      layers.push_back(
          {keys.data() + layer * num_kv_heads * head_dim, values.data() + layer * num_kv_heads * head_dim});
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
  bool const cold = state.range(1) != 0;
  step();
  for (auto _ : state) {
    if (cold) flush_caches();
    double const start = bench::seconds();
    step();
    times.push_back(bench::seconds() - start);
    state.SetIterationTime(times.back());
  }
  std::sort(times.begin(), times.end());
  state.counters["step_us"] = 1e6 * times.front();
  state.counters["median_us"] = 1e6 * times[times.size() / 2];
  state.counters["written_bytes"] = static_cast<double>(bytes_written);
}

constexpr std::int64_t new_bytes = std::int64_t{2} * num_layers * num_kv_heads * head_dim * 2;

void rolling(benchmark::State& state) {
  auto const kept = static_cast<std::int32_t>(state.range(0));
  ha::UniformTable const table(ha::SinkWindow{.sink = sink, .window = kept - sink}, num_layers, num_kv_heads);
  ha::RollingSlots const slots(table, 1, {});
  Buffer keys(slots.rows_total() * head_dim, 3);
  Buffer values(slots.rows_total() * head_dim, 4);
  auto const view = slots.view();
  auto const cache = ha::rolling(slots, view, keys.data(), values.data(), head_dim);
  ha::RollingState lengths(1);
  lengths.start(view, 0, kept);
  NewToken const token;
  std::vector<std::int32_t> const one{1};
  timed(state, new_bytes, [&] { ha::append(view, lengths, token.layers, token.layout, one, cache); });
}

void paged(benchmark::State& state) {
  auto const kept = static_cast<std::int32_t>(state.range(0));
  constexpr std::int32_t page_size = 16;
  ha::UniformTable const table(ha::SinkWindow{.sink = sink, .window = kept - sink}, num_layers, num_kv_heads);
  std::int32_t const num_pages = num_layers * num_kv_heads * (kept / page_size + 3);
  ha::PagedHeads pages(table, {.num_sequences = 1, .page_size = page_size, .num_pages = num_pages, .limits = {}});
  Buffer keys(std::int64_t{num_pages} * page_size * head_dim, 3);
  Buffer values(std::int64_t{num_pages} * page_size * head_dim, 4);
  ha::PageStorage<std::uint16_t> const storage{keys.data(), values.data(), head_dim, head_dim};
  (void)pages.append(std::vector<std::int32_t>{kept});
  NewToken const token;
  std::vector<std::int32_t> const one{1};
  timed(state, new_bytes, [&] { ha::append(pages, pages.append(one), token.layers, token.layout, storage); });
}

void recopying(benchmark::State& state) {
  std::int64_t const kept = state.range(0);
  // One token of room more a head; a step writes a layer's heads into the spare buffer and swaps the two.
  auto const elements = static_cast<std::size_t>(num_kv_heads * (kept + 1) * head_dim);
  std::vector<std::vector<std::uint16_t>> buffers(2 * num_layers, std::vector<std::uint16_t>(elements, 3));
  std::vector<std::uint16_t> spare(elements, 4);
  NewToken const token;
  timed(state, new_bytes + 2 * num_layers * num_kv_heads * kept * head_dim * 2, [&] {
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      auto const layer = i / 2;
      auto const* const fresh = i % 2 == 0 ? token.layers[layer].keys : token.layers[layer].values;
      for (std::int64_t head = 0; head < num_kv_heads; ++head) {
        std::uint16_t* const to = spare.data() + head * (kept + 1) * head_dim;
        std::memcpy(to, buffers[i].data() + head * kept * head_dim,
                    static_cast<std::size_t>(kept * head_dim) * sizeof(std::uint16_t));
        std::memcpy(to + kept * head_dim, fresh + head * head_dim, head_dim * sizeof(std::uint16_t));
      }
      std::swap(buffers[i], spare);
    }
  });
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgsProduct({{64, 512, 4096, 32768}, {0, 1}})->ArgNames({"kept", "cold"});
  benchmark->UseManualTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK(rolling)->Apply(sizes)->Iterations(1000);
BENCHMARK(paged)->Apply(sizes)->Iterations(1000);
BENCHMARK(recopying)->Apply(sizes)->Iterations(5);

}  // namespace

BENCHMARK_MAIN();
