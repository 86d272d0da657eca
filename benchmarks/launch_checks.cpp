// What functions that launch check before they do, on the host: the part of a decoding step's launches that is this
// library's. Nothing is launched; pointers are of host memory, which no check reads.
//
// Llama 3.1 8B: 32 layers × 8 KV heads × 128 channels, 32 query heads, 8 sequences, rolling caches of 512 tokens a
// head. "time" is of one call, for one layer unless it says otherwise.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/rolling_step.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_layers = 32;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int32_t num_query_heads = 32;
constexpr std::int32_t sequences = 8;
constexpr std::int64_t head_dim = 128;

/// Everything that the calls of a step are given. No memory of a tensor is touched.
struct Arguments {
  ha::UniformTable<ha::SinkWindow> table{{.sink = 4, .window = 508}, num_layers, num_kv_heads};
  ha::RollingSlots slots{table, sequences, {}};
  ha::RollingSlotsView view = slots.view();
  std::vector<std::int32_t> counters = std::vector<std::int32_t>(ha::RollingStateView::bytes(sequences) / 4);
  ha::RollingStateView state = ha::RollingStateView::at(counters.data(), sequences);
  ha::Destination<ha::float16, ha::RollingSlotsView> cache = ha::rolling(slots, view, pointer(1), pointer(2), head_dim);
  std::vector<ha::LayerKv<ha::float16 const>> tokens =
      std::vector<ha::LayerKv<ha::float16 const>>(num_layers, {pointer(3), pointer(4)});
  ha::StridedLayout news = ha::strided_bshd(sequences, 1, num_kv_heads, head_dim);
  ha::StridedLayout rows = ha::strided_bshd(sequences, 1, num_query_heads, head_dim);
  ha::AttentionShape shape{sequences, num_query_heads, num_kv_heads, 1, head_dim};
  ha::AttentionQueries<ha::float16, ha::StridedLayout> queries{pointer(5), rows};
  ha::AttentionOutput<ha::float16, ha::StridedLayout> output{pointer(6), rows, nullptr};

  /// Places 64 GiB apart.
  static ha::float16* pointer(std::uintptr_t i) { return reinterpret_cast<ha::float16*>(i << 36); }
};

void attend(benchmark::State& state) {
  Arguments const a;
  for (auto _ : state) {
    auto const& buffers = a.cache.layers[3];
    ha::KeptCache const cache{buffers.keys, buffers.values, ha::RollingView{a.view, 3, a.state.lengths}};
    ha::detail::check_attention(a.shape, a.queries, cache, a.output, {});
    ha::detail::check_cache_pointers(cache, true);
    benchmark::ClobberMemory();
  }
}

void append(benchmark::State& state) {
  Arguments const a;
  auto const layers = static_cast<std::size_t>(state.range(0));
  auto const tokens = std::span(a.tokens).first(layers);
  for (auto _ : state) {
    benchmark::DoNotOptimize(ha::detail::check_rolling_append(a.view, tokens, a.news, 1, a.cache, {}));
  }
}

void append_paged(benchmark::State& state) {
  Arguments const a;
  constexpr std::int32_t page_size = 16;
  constexpr std::int32_t num_pages = num_layers * num_kv_heads * sequences * 34;
  ha::PagedHeads const pages(
      a.table, {.num_sequences = sequences, .page_size = page_size, .num_pages = num_pages, .limits = {}});
  ha::PageStorage<ha::float16> const storage{Arguments::pointer(1), Arguments::pointer(2), head_dim, head_dim};
  auto const view = pages.view();
  auto const tokens = std::span(a.tokens).first(1);
  for (auto _ : state) {
    benchmark::DoNotOptimize(ha::detail::check_paged_append(view, 1, tokens, a.news, storage, 3));
  }
}

void append_and_attend(benchmark::State& state) {
  Arguments const a;
  for (auto _ : state) {
    ha::RollingStep const step{a.view, a.state, a.tokens[3], a.news, ha::AppendOptions{.first_layer = 3}};
    ha::detail::check_step(a.shape, step, a.cache);
    ha::detail::check_append_and_attend(a.shape, a.queries, step, a.cache, a.output, {});
    benchmark::ClobberMemory();
  }
}

BENCHMARK(attend);
BENCHMARK(append)->Arg(1)->Arg(num_layers)->ArgName("layers");
BENCHMARK(append_paged);
BENCHMARK(append_and_attend);

}  // namespace

BENCHMARK_MAIN();
