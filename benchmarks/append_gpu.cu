// A decoding step's append on the device, of a whole model in one launch, timed beside a device-to-device copy of the
// new tokens' bytes (support/gpu_timing.cuh): so few that both are about as long as a launch.

#include "support/gpu_timing.cuh"

#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rolling.cuh>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace {

namespace ha = headaware;
using bench::DeviceArray;

constexpr cudaStream_t stream = nullptr;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int64_t head_dim = 128;
constexpr std::int32_t length = 4096;
constexpr std::int64_t row_bytes = 2 * head_dim * std::int64_t{sizeof(std::uint16_t)};
constexpr ha::SinkWindow policy{.sink = 4, .window = 124};
constexpr std::int32_t page_size = 16;
constexpr std::int32_t head_pages = 12;

/// One token of every sequence, in all layers.
struct NewTokens {
  ha::StridedLayout layout;
  DeviceArray<std::uint16_t> keys;
  DeviceArray<std::uint16_t> values;
  std::vector<ha::LayerKv<std::uint16_t>> layers{};

  NewTokens(std::int32_t num_layers, std::int32_t batch)
      : layout(ha::strided_bshd(batch, 1, num_kv_heads, head_dim)),
        keys(std::vector<std::uint16_t>(static_cast<std::size_t>(num_layers * layout.required_span_size()), 1)),
        values(std::vector<std::uint16_t>(keys.size(), 2)) {
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      std::int64_t const first = layer * layout.required_span_size();
      layers.push_back({keys.data() + first, values.data() + first});
    }
  }
  [[nodiscard]] std::int64_t moved_bytes() const {
    return 2 * static_cast<std::int64_t>((keys.size() + values.size()) * sizeof(std::uint16_t));
  }
};

void rolling(benchmark::State& state, std::int32_t num_layers, std::int32_t batch) {
  NewTokens const tokens(num_layers, batch);
  ha::PolicyTable const table(num_layers, num_kv_heads, policy);
  ha::RollingSlots const slots(table, batch, {});
  DeviceArray<std::byte> const heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  std::vector<std::int32_t> counters(ha::RollingStateView::bytes(batch) / sizeof(std::int32_t), 0);
  std::fill_n(counters.begin(), 2 * batch, length);  // lengths, then high-water marks
  DeviceArray<std::int32_t> const d_counters(counters);
  DeviceArray<std::uint16_t> const keys(static_cast<std::size_t>(slots.rows_total() * head_dim));
  DeviceArray<std::uint16_t> const values(keys.size());
  auto const view = slots.view_at(heads.data());
  auto const cache = ha::rolling(slots, view, keys.data(), values.data(), head_dim);
  bench::timed(state, stream, tokens.moved_bytes(), [&] {
    BENCH_CHECK(ha::device::append(view, ha::RollingStateView::at(d_counters.data(), batch), tokens.layers,
                                   tokens.layout, nullptr, 1, cache, {}, stream));
  });
}

void paged(benchmark::State& state, std::int32_t num_layers, std::int32_t batch) {
  NewTokens const tokens(num_layers, batch);
  ha::PolicyTable const table(num_layers, num_kv_heads, policy);
  std::int32_t const num_pages = batch * num_layers * num_kv_heads * head_pages;
  ha::PagedHeads pages(table, {.num_sequences = batch, .page_size = page_size, .num_pages = num_pages, .limits = {}});
  auto const sequences = static_cast<std::size_t>(batch);
  (void)pages.append(std::vector<std::int32_t>(sequences, length));
  ha::PageStep const step = pages.append(std::vector<std::int32_t>(sequences, 1));
  DeviceArray<std::byte> const heads(std::vector<std::byte>(pages.head_bytes().begin(), pages.head_bytes().end()));
  DeviceArray<std::int32_t> const d_table(std::vector<std::int32_t>(pages.table().begin(), pages.table().end()));
  DeviceArray<std::int32_t> const lengths(step.lengths);
  DeviceArray<std::int32_t> const high_water(step.high_water);
  DeviceArray<std::int32_t> const counts(step.counts);
  DeviceArray<std::uint16_t> const keys(static_cast<std::size_t>(num_pages) *
                                        static_cast<std::size_t>(page_size * head_dim));
  DeviceArray<std::uint16_t> const values(keys.size());
  ha::DevicePageStep d_step;
  d_step.d_lengths = lengths.data();
  d_step.d_high_water = high_water.data();
  d_step.d_counts = counts.data();
  d_step.max_count = step.max_count;
  auto const view = pages.view_at(heads.data(), d_table.data());
  ha::PageStorage<std::uint16_t> const storage{keys.data(), values.data(), head_dim, head_dim};
  bench::timed(state, stream, tokens.moved_bytes(), [&] {
    BENCH_CHECK(ha::device::append(view, d_step, tokens.layers, tokens.layout, storage, 0, stream));
  });
}

void register_all() {
  bool const reduced = bench::options().reduced;
  std::int32_t const num_layers = reduced ? 2 : 32;
  auto const batches = reduced ? std::vector<std::int32_t>{1, 2} : std::vector<std::int32_t>{1, 8, 64};
  for (std::int32_t const batch : batches) {
    std::int64_t const memory = std::int64_t{batch} * num_layers * num_kv_heads * head_pages * page_size * row_bytes;
    std::string const name = "/batch:" + std::to_string(batch);
    bench::add("append/rolling" + name, memory, [=](benchmark::State& state) { rolling(state, num_layers, batch); });
    bench::add("append/pages" + name, memory, [=](benchmark::State& state) { paged(state, num_layers, batch); });
  }
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, register_all); }
