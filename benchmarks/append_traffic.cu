// One step of decoding on a model-sized cache, for counting what it asks of memory: run it under the CUDA emulator with
// CUDA_EMU_REPORT=FILE (tests/device_code/append_traffic.cmake does and checks the counts), or under a profiler on a
// device. The argument says which cache: rolling, paged, mixed: rolling, of a model whose layers differ, or scored and
// scored_pages: rolling and paged, with scored slots, of which every other head takes the token that leaves its window.
//
// The cache's own memory is never filled, so that with CUDA_EMU_INITCHECK=1 a single read of an old token ends the
// program; but for scored slots', whose rows may move.

#include "support/gpu.cuh"
#include "support/mixed_model.cuh"

#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/paged_scored.cuh>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/scored_append.cuh>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

namespace ha = headaware;
using bench::DeviceArray;

constexpr std::int32_t num_layers = 32;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int32_t batch = 1;
constexpr std::int64_t head_dim = 128;
constexpr std::int32_t length = 4096;

struct NewTokens {
  DeviceArray<std::uint16_t> keys{std::vector<std::uint16_t>(num_layers * batch * num_kv_heads * head_dim, 1)};
  DeviceArray<std::uint16_t> values{std::vector<std::uint16_t>(num_layers * batch * num_kv_heads * head_dim, 2)};
  std::vector<ha::LayerKv<std::uint16_t>> layers;
  ha::StridedLayout layout = ha::strided_bshd(batch, 1, num_kv_heads, head_dim);

  NewTokens() {
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      std::int64_t const first = layer * batch * num_kv_heads * head_dim;
      layers.push_back({keys.data() + first, values.data() + first});
    }
  }
  [[nodiscard]] long long bytes() const {
    return static_cast<long long>((keys.size() + values.size()) * sizeof(std::uint16_t));
  }
};

void rolling(NewTokens const& tokens) {
  ha::PolicyTable const table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 508});
  ha::RollingSlots const slots(table, batch, {});
  DeviceArray<std::byte> const heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  std::vector<std::int32_t> counters(ha::RollingStateView::bytes(batch) / sizeof(std::int32_t), 0);
  counters[0] = counters[batch] = length;
  DeviceArray<std::int32_t> const d_counters(counters);
  DeviceArray<std::uint16_t> const keys(static_cast<std::size_t>(slots.rows_total() * head_dim));
  DeviceArray<std::uint16_t> const values(keys.size());
  auto const view = slots.view_at(heads.data());
  BENCH_CHECK(ha::device::append(view, ha::RollingStateView::at(d_counters.data(), batch), tokens.layers, tokens.layout,
                                 nullptr, 1, ha::rolling(slots, view, keys.data(), values.data(), head_dim), {},
                                 nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());
}

/// Scored slots that are full, and new tokens' scores.
struct Scored {
  static constexpr std::int32_t tokens = 256;
  ha::PolicyTable table{num_layers, num_kv_heads, ha::SinkWindowScored{.sink = 4, .window = 252, .scored = tokens}};
  DeviceArray<std::byte> records{std::size_t{0}};
  DeviceArray<float> news{std::vector<float>(num_layers * num_kv_heads, 0.5F)};

  /// All slots hold tokens of score 0; the token that leaves is of score 1 or -1.
  [[nodiscard]] ha::RollingScoresView fill(ha::RollingSlots const& slots) {
    ha::RollingScores scores(slots);
    ha::RollingHead const& head = slots.head(0, 0);
    long long moved = 0;
    for (std::int32_t h = 0; h < num_layers * num_kv_heads; ++h) {
      ha::HeadScores const of = scores.view().of(head, h, 0);
      for (std::int32_t i = 0; i < tokens; ++i) of.slots[i] = {4 + i, 0, 4 + i + 253, ha::all_tokens};
      of.ring[head.slot_of(length - 252) - 4] = h % 2 == 0 ? 1.0F : -1.0F;
      moved += h % 2 == 0 ? 1 : 0;
    }
    std::printf("moved_bytes %lld\nrecord_bytes %lld\n",
                moved * 2 * head_dim * static_cast<long long>(sizeof(std::uint16_t)),
                static_cast<long long>(num_layers) * num_kv_heads * tokens * 16);
    records = DeviceArray<std::byte>(std::vector<std::byte>(scores.bytes().begin(), scores.bytes().end()));
    return scores.view_at(records.data());
  }
  [[nodiscard]] ha::TokenScores of_tokens() const {
    return ha::TokenScores::contiguous(news.data(), batch, num_kv_heads, 1);
  }
};

void scored(NewTokens const& tokens) {
  Scored of;
  ha::RollingSlots const slots(of.table, batch, {});
  ha::RollingScoresView const records = of.fill(slots);
  DeviceArray<std::byte> const heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  std::vector<std::int32_t> counters(ha::RollingStateView::bytes(batch) / sizeof(std::int32_t), 0);
  counters[0] = counters[batch] = length;
  DeviceArray<std::int32_t> const d_counters(counters);
  DeviceArray<std::uint16_t> const keys(
      std::vector<std::uint16_t>(static_cast<std::size_t>(slots.rows_total() * head_dim), 3));
  DeviceArray<std::uint16_t> const values(std::vector<std::uint16_t>(keys.size(), 4));
  auto const view = slots.view_at(heads.data());
  BENCH_CHECK(ha::device::append(view, ha::RollingStateView::at(d_counters.data(), batch), tokens.layers, tokens.layout,
                                 nullptr, 1, ha::rolling(slots, view, keys.data(), values.data(), head_dim), records,
                                 of.of_tokens(), {}, nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());
}

constexpr std::int32_t page_size = 16;
constexpr std::int32_t num_pages = num_layers * num_kv_heads * 40;

/// A step's tables on the device.
struct PagedStep {
  ha::PageStep host;
  DeviceArray<std::byte> heads;
  DeviceArray<std::int32_t> table, lengths, high_water, counts;
  ha::PagedHeadsView view;
  ha::DevicePageStep step;

  explicit PagedStep(ha::PagedHeads& pages)
      : host(step_of(pages)),
        heads(std::vector<std::byte>(pages.head_bytes().begin(), pages.head_bytes().end())),
        table(std::vector<std::int32_t>(pages.table().begin(), pages.table().end())),
        lengths(host.lengths),
        high_water(host.high_water),
        counts(host.counts),
        view(pages.view_at(heads.data(), table.data())) {
    step.d_lengths = lengths.data();
    step.d_high_water = high_water.data();
    step.d_counts = counts.data();
    step.max_count = host.max_count;
  }
  static ha::PageStep step_of(ha::PagedHeads& pages) {
    (void)pages.append(std::vector<std::int32_t>{length});
    return pages.append(std::vector<std::int32_t>{1});
  }
};

void scored_pages(NewTokens const& tokens) {
  Scored of;
  ha::PagedHeads pages(of.table,
                       {.num_sequences = batch, .page_size = page_size, .num_pages = num_pages, .limits = {}});
  ha::RollingScoresView const records = of.fill(pages.slots());
  PagedStep const step(pages);
  DeviceArray<std::uint16_t> const keys(
      std::vector<std::uint16_t>(static_cast<std::size_t>(num_pages * page_size * head_dim), 3));
  DeviceArray<std::uint16_t> const values(std::vector<std::uint16_t>(keys.size(), 4));
  BENCH_CHECK(ha::device::append(step.view, step.step, tokens.layers, tokens.layout,
                                 ha::PageStorage<std::uint16_t>{keys.data(), values.data(), head_dim, head_dim},
                                 records, of.of_tokens(), 0, nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());
}

void paged(NewTokens const& tokens) {
  ha::PolicyTable const table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 508});
  ha::PagedHeads pages(table, {.num_sequences = batch, .page_size = page_size, .num_pages = num_pages, .limits = {}});
  PagedStep const step(pages);
  DeviceArray<std::uint16_t> const keys(static_cast<std::size_t>(num_pages * page_size * head_dim));
  DeviceArray<std::uint16_t> const values(keys.size());
  BENCH_CHECK(ha::device::append(step.view, step.step, tokens.layers, tokens.layout,
                                 ha::PageStorage<std::uint16_t>{keys.data(), values.data(), head_dim, head_dim}, 0,
                                 nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());
}

long long mixed() {
  ha::ModelShape const shape = bench::mixed_shape();
  ha::PolicyTable const table(shape, ha::SinkWindow{.sink = 4, .window = 508});
  ha::RollingSlots const slots(table, batch, {});
  DeviceArray<std::byte> const heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  std::vector<std::int32_t> counters(ha::RollingStateView::bytes(batch) / sizeof(std::int32_t), 0);
  counters[0] = counters[batch] = length;
  DeviceArray<std::int32_t> const d_counters(counters);
  ha::RowChannels const elements =
      ha::buffer_elements(shape, shape.num_layers(), [&](std::int32_t layer) { return slots.rows_total(layer); });
  DeviceArray<std::uint16_t> const keys(static_cast<std::size_t>(elements.head_dim));
  DeviceArray<std::uint16_t> const values(static_cast<std::size_t>(elements.value_dim));
  bench::MixedTensors const tokens(shape, 1);
  auto const view = slots.view_at(heads.data());
  BENCH_CHECK(ha::device::append(view, ha::RollingStateView::at(d_counters.data(), batch), tokens.layers,
                                 ha::per_layer(tokens.layouts), nullptr, 1,
                                 ha::rolling(slots, view, keys.data(), values.data(), shape), {}, nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());
  return shape.token_bytes(sizeof(std::uint16_t));
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  if (argc > 1 && std::strcmp(argv[1], "mixed") == 0) {
    std::printf("new_bytes %lld\n", mixed());
    return 0;
  }
  NewTokens const tokens;
  if (argc > 1 && std::strcmp(argv[1], "paged") == 0) {
    paged(tokens);
  } else if (argc > 1 && std::strcmp(argv[1], "scored") == 0) {
    scored(tokens);
  } else if (argc > 1 && std::strcmp(argv[1], "scored_pages") == 0) {
    scored_pages(tokens);
  } else {
    rolling(tokens);
  }
  std::printf("new_bytes %lld\n", tokens.bytes());
}
