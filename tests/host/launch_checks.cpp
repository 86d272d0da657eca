// What the functions that launch a decoding step check on the host before they do: it allocates nothing, and takes less
// than 0.3 µs. Nothing is launched.

#include "support/allocations.hpp"
#include "support/catch.hpp"

#include <headaware/attention/attention.hpp>
#include <headaware/attention/rolling_step.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using headaware_test::allocations_of;

namespace {

constexpr std::int32_t num_layers = 32;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int32_t num_query_heads = 32;
constexpr std::int32_t sequences = 8;
constexpr std::int64_t head_dim = 128;

/// Policies that differ by layer, of 512 tokens a head where they do not.
ha::PolicyTable policies() {
  ha::PolicyTable table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 508});
  table.set(1, 0, ha::WindowOnly{.window = 9});
  table.set(2, 1, ha::Prune{});
  return table;
}

/// What the calls of a step of Llama 3.1 8B are given, and their checks, of one layer each. Pointers are 64 GiB apart,
/// and no check reads what they point to.
struct Step {
  ha::PolicyTable table = policies();
  ha::RollingSlots slots{table, sequences, {}};
  ha::PagedHeads pages{table,
                       {.num_sequences = sequences,
                        .page_size = 16,
                        .num_pages = num_layers * num_kv_heads * sequences * 34,
                        .limits = {}}};
  ha::RollingSlotsView view = slots.view();
  ha::PagedHeadsView pages_view = pages.view();
  std::vector<std::int32_t> counters = std::vector<std::int32_t>(ha::RollingStateView::bytes(sequences) / 4);
  ha::RollingStateView state = ha::RollingStateView::at(counters.data(), sequences);
  ha::Destination<ha::float16, ha::RollingSlotsView> cache = ha::rolling(slots, view, pointer(1), pointer(2), head_dim);
  ha::PageStorage<ha::float16> pool{pointer(1), pointer(2), head_dim, head_dim};
  std::vector<ha::LayerKv<ha::float16 const>> tokens{{pointer(3), pointer(4)}};
  ha::StridedLayout news = ha::strided_bshd(sequences, 1, num_kv_heads, head_dim);
  ha::StridedLayout rows = ha::strided_bshd(sequences, 1, num_query_heads, head_dim);
  ha::AttentionShape shape{sequences, num_query_heads, num_kv_heads, 1, head_dim};
  ha::AttentionQueries<ha::float16, ha::StridedLayout> queries{pointer(5), rows};
  ha::AttentionOutput<ha::float16, ha::StridedLayout> output{pointer(6), rows, nullptr};

  static ha::float16* pointer(std::uintptr_t i) { return reinterpret_cast<ha::float16*>(i << 36); }

  void attend() const {
    auto const& buffers = cache.layers[3];
    ha::KeptCache const kept{buffers.keys, buffers.values, ha::RollingView{view, 3, state.lengths}};
    ha::detail::check_attention(shape, queries, kept, output, {});
    ha::detail::check_cache_pointers(kept, true);
  }
  void append() const {
    (void)ha::detail::check_rolling_append(view, std::span(tokens), news, 1, cache, {.first_layer = 1});
  }
  void append_paged() const { (void)ha::detail::check_paged_append(pages_view, 1, std::span(tokens), news, pool, 1); }
  void append_and_attend() const {
    ha::RollingStep const step{view, state, tokens[0], news, ha::AppendOptions{.first_layer = 1}};
    ha::detail::check_step(shape, step, cache);
    ha::detail::check_append_and_attend(shape, queries, step, cache, output, {});
  }

  /// Calls `f(name, check)` with each.
  template <class F>
  void for_each_check(F const& f) const {
    f("attend", [&] { attend(); });
    f("append", [&] { append(); });
    f("append into pages", [&] { append_paged(); });
    f("append_and_attend", [&] { append_and_attend(); });
  }
};

}  // namespace

TEST_CASE("what a launch of a decoding step checks on the host allocates nothing", "[attention][cache]") {
  Step const step;
  step.for_each_check([](char const* name, auto const& check) {
    INFO(name);
    CHECK(allocations_of(check) == 0);
  });
}

// Hidden: a time depends on the machine and on what else it does. Run with "[launch-checks]".
TEST_CASE("what a launch of a decoding step checks on the host takes less than 0.3 µs", "[.][launch-checks]") {
  Step const step;
  std::string told;
  step.for_each_check([&](char const* name, auto const& check) {
    constexpr int calls = 100'000;
    double best = 1e9;
    for (int i = 0; i < 20; ++i) {
      auto const start = std::chrono::steady_clock::now();
      for (int call = 0; call < calls; ++call) {
        check();
        asm volatile("" ::: "memory");  // what the next call checks may be other memory
      }
      std::chrono::duration<double, std::nano> const took = std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count() / calls);
    }
    told += std::string(told.empty() ? "" : ", ") + name + " " + std::to_string(best) + " ns";
    CHECK(best < 300);
  });
  WARN(told);
}
