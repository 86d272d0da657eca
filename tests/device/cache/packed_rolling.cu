// Rolling caches of encoded rows on the device: prompts, appends, forks and rollbacks leave the bits that the CPU's
// leave.

#include "support/device_cache.cuh"
#include "support/format_rows.hpp"
#include "support/kept_rows.hpp"

#include <headaware/cache/pack.cuh>
#include <headaware/cache/pack.hpp>
#include <headaware/cache/packed_rolling.cuh>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int32_t batch = 3;

/// Two layers with a head of each format, and the cache on both sides.
template <class T>
struct PackedRolling {
  std::vector<ha::AnyFormat<>> all = all_formats();
  std::int32_t heads = static_cast<std::int32_t>(all.size());
  std::int64_t head_dim;
  std::int64_t value_dim;
  ha::PolicyTable table{2, heads, ha::SinkWindow{.sink = 2, .window = 11}};
  ha::FormatTable formats{2, heads};
  ha::RollingSlots slots;
  std::vector<ha::RowUnit> rows;
  ha::PackedDestination<ha::RollingSlotsView> cache;
  ha::RollingState state{batch};
  DeviceVector<std::byte> d_heads;
  DeviceVector<std::byte> d_table;
  DeviceVector<ha::RowUnit> d_rows;
  DeviceVector<ha::PackedSegment<>> d_segments;
  DeviceVector<std::int32_t> d_counters;
  ha::PackedDestination<ha::RollingSlotsView> d_cache;
  unsigned seed = 900;

  PackedRolling(std::int64_t keys, std::int64_t values)
      : head_dim(keys),
        value_dim(values),
        slots(make_slots()),
        rows(at(ha::packed_rolling(slots, slots.view(), formats, keys, values).total_units()),
             ha::RowUnit{{0xabababab, 1, 2, 3}}),
        cache(ha::packed_rolling(slots, slots.view(), formats, keys, values).with_buffer(rows.data())),
        d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())),
        d_table(std::vector<std::byte>(table.bytes().begin(), table.bytes().end())),
        d_rows(rows),
        d_segments(cache.segments),
        d_counters(std::vector<std::int32_t>(ha::RollingStateView::bytes(batch) / 4, 0)),
        d_cache(ha::packed_rolling(slots, view(), formats, keys, values).with_buffer(d_rows.data())) {}

  ha::RollingSlots make_slots() {
    table.set(0, 3, ha::Full{});
    table.set(1, 5, ha::Prune{});
    for (std::int32_t h = 0; h < heads; ++h) {
      formats.set(0, h, {all[at(h)], all[at((h + 3) % heads)]});
      formats.set(1, h, {all[at((h + 6) % heads)], all[at(h)]});
    }
    return {table, batch, {.max_tokens = 90, .slack = 4}};
  }
  [[nodiscard]] ha::RollingSlotsView view() const { return slots.view_at(d_heads.data()); }
  [[nodiscard]] ha::RollingStateView d_state() const { return ha::RollingStateView::at(d_counters.data(), batch); }

  /// Random tokens of two layers, on both sides.
  struct Tokens {
    std::vector<std::vector<T>> tensors;
    std::vector<DeviceVector<T>> d_tensors;
    std::vector<ha::LayerKv<T const>> layers, d_layers;
  };
  [[nodiscard]] ha::KvLayouts<ha::StridedLayout, ha::StridedLayout> layout(std::int64_t tokens) const {
    return {ha::strided_bshd(batch, tokens, heads, head_dim), ha::strided_bshd(batch, tokens, heads, value_dim)};
  }
  Tokens tokens(std::int64_t count) {
    Tokens result;
    auto const of = layout(count);
    for (int layer = 0; layer < 2; ++layer) {
      result.tensors.push_back(random_elements<T>(of.keys.required_span_size() + 1, ++seed));
      result.tensors.push_back(random_elements<T>(of.values.required_span_size() + 1, ++seed));
    }
    for (auto const& tensor : result.tensors) result.d_tensors.emplace_back(tensor);
    for (std::size_t i = 0; i < 4; i += 2) {
      result.layers.push_back({result.tensors[i].data(), result.tensors[i + 1].data()});
      result.d_layers.push_back({result.d_tensors[i].data(), result.d_tensors[i + 1].data()});
    }
    return result;
  }
  void append(std::array<std::int32_t, batch> const& counts) {
    std::vector<std::int32_t> const all_counts(counts.begin(), counts.end());
    std::int32_t const most = *std::max_element(counts.begin(), counts.end());
    Tokens const news = tokens(most);
    DeviceVector<std::int32_t> const d_counts(all_counts);
    ha::append(slots.view(), state, news.layers, layout(most), all_counts, cache);
    REQUIRE_CUDA(ha::device::append(view(), d_state(), news.d_layers, layout(most), d_counts.data(), most, d_cache,
                                    d_segments.data(), {}, nullptr));
    check();
  }
  void check() const {
    REQUIRE_CUDA(cudaDeviceSynchronize());
    auto const got = d_rows.host();
    std::size_t wrong = 0;
    for (std::size_t u = 0; u < got.size(); ++u) wrong += got[u] == rows[u] ? 0 : 1;
    CHECK(wrong == 0);
    auto const counters = d_counters.host();
    CHECK(counters.back() == 0);
    CHECK(counters[2 * batch] == 0);
    for (std::int32_t b = 0; b < batch; ++b) {
      CHECK(counters[at(b)] == state.length(b));
      CHECK(counters[at(batch + b)] == state.high_water(b));
    }
  }
};

template <class T>
void walk(std::int64_t head_dim, std::int64_t value_dim) {
  PackedRolling<T> p(head_dim, value_dim);
  // Prompts, of which the first is longer than windows and their slack.
  std::vector<std::int32_t> const lengths{40, 7, 0};
  auto const prompt = p.tokens(40);
  ha::Compaction const compaction(p.table, lengths);
  ha::compress(compaction, prompt.layers, p.layout(40), p.cache);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  ha::PackPlan<> const plan(compaction, p.cache);
  DeviceVector<std::byte> const d_plan(std::vector<std::byte>(plan.bytes().begin(), plan.bytes().end()));
  REQUIRE_CUDA(ha::device::compress(compaction.on_device(p.table.view_at(p.d_table.data()), d_lengths.data()), plan,
                                    d_plan.data(), prompt.d_layers, p.layout(40), p.d_cache, ha::KeepPositions{},
                                    nullptr));
  REQUIRE_CUDA(ha::device::start(p.view(), p.d_state(), d_lengths.data(), nullptr));
  for (std::int32_t b = 0; b < batch; ++b) p.state.start(p.slots.view(), b, lengths[at(b)]);
  p.check();
  p.append({1, 1, 1});
  p.append({5, 0, 30});
  std::vector<ha::SequenceCopy> const fork{{0, 1}};
  ha::copy_sequences(p.slots.view(), p.state, fork, p.cache);
  REQUIRE_CUDA(ha::device::copy_sequences(p.view(), p.d_state(), fork, p.d_cache, p.d_segments.data(), nullptr));
  p.check();
  p.append({1, 3, 2});
  DeviceVector<std::int32_t> const d_back(std::vector<std::int32_t>{0, 2, 1});
  p.state.rollback(p.slots.view(), 1, 2);
  p.state.rollback(p.slots.view(), 2, 1);
  REQUIRE_CUDA(ha::device::rollback(p.view(), p.d_state(), d_back.data(), nullptr));
  p.append({1, 1, 1});
}

}  // namespace

TEST_CASE("a rolling cache of encoded rows on the device has the CPU's bits", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<ha::float16>(64, 64);
  walk<float>(80, 36);
}

TEST_CASE("appending encoded rows on the device: layer by layer, and what is refused", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  PackedRolling<ha::bfloat16> p(64, 64);
  auto const news = p.tokens(2);
  auto const append = [&](std::vector<ha::LayerKv<ha::bfloat16 const>> const& layers, std::int32_t count,
                          ha::PackedDestination<ha::RollingSlotsView> const& cache, ha::PackedSegment<> const* segments,
                          ha::AppendOptions const& options) {
    return ha::device::append(p.view(), p.d_state(), layers, p.layout(2), nullptr, count, cache, segments, options,
                              nullptr);
  };
  auto const* const segments = p.d_segments.data();
  CHECK(append(news.d_layers, -1, p.d_cache, segments, {}) == cudaErrorInvalidValue);
  CHECK(append(news.d_layers, 3, p.d_cache, segments, {}) == cudaErrorInvalidValue);
  CHECK(append(news.d_layers, 2, p.d_cache, nullptr, {}) == cudaErrorInvalidValue);
  CHECK(append(news.d_layers, 2, p.cache, segments, {}) == cudaErrorInvalidValue);
  CHECK(append(news.d_layers, 2, p.d_cache, segments, {.first_layer = 1}) == cudaErrorInvalidValue);
  std::vector<ha::SequenceCopy> const twice{{0, 1}, {1, 2}};
  CHECK(ha::device::copy_sequences(p.view(), p.d_state(), twice, p.d_cache, segments, nullptr) ==
        cudaErrorInvalidValue);
  std::vector<std::int32_t> const counts(batch, 2);
  ha::append(p.slots.view(), p.state, news.layers, p.layout(2), counts, p.cache);
  REQUIRE_CUDA(append({news.d_layers[0]}, 2, p.d_cache, segments, {.advance = false}));
  REQUIRE_CUDA(append({news.d_layers[1]}, 2, p.d_cache, segments, {.first_layer = 1}));
  p.check();
}
