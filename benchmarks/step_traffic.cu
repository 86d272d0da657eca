// One layer's part of a decoding step on a rolling cache, new tokens included, to count what it launches and asks of
// memory: run it under the CUDA emulator with CUDA_EMU_REPORT=FILE (tests/device_code/step_traffic.cmake does and
// checks the counts), or under a profiler on a device. The argument chooses the calls: two (append, attend), one
// (append_and_attend), or rotated (the same, which turns keys and queries to their positions); or pages_two and pages,
// over pages of single heads instead, in a step that allows for copies on write and makes none; or encoded_two and
// encoded, over a rolling cache of keys in 5 bits and values in 4.
//
// Two sequences × 8 KV heads × 128 channels of 2 bytes, 4 query heads each: every eighth head holds 4,096 rows, the
// others 512; 4 sinks, and rings that have wrapped.

#include "support/gpu.cuh"

#include <headaware/attention/append_and_attend.cuh>
#include <headaware/attention/append_and_attend_packed.cuh>
#include <headaware/attention/attend.cuh>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/packed_rolling.cuh>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t sequences = 2;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int32_t num_query_heads = 32;
constexpr std::int64_t head_dim = 128;

ha::PolicyTable make_table() {
  ha::PolicyTable table(1, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 508});
  table.set(0, 0, ha::SinkWindow{.sink = 4, .window = 4092});
  return table;
}

/// Tokens of each sequence before the step.
constexpr std::int32_t seen = 10000;

/// The cache and a step's tensors.
struct Layer {
  ha::RollingSlots slots{make_table(), sequences, {.slack = 4}};
  bench::DeviceArray<std::byte> heads{std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())};
  bench::DeviceArray<std::int32_t> counters{started()};
  bench::DeviceArray<__half> keys = tensor(slots.rows_total()), values = tensor(slots.rows_total());
  bench::DeviceArray<__half> new_keys = tensor(sequences * num_kv_heads), new_values = tensor(sequences * num_kv_heads);
  bench::DeviceArray<__half> queries = tensor(sequences * num_query_heads),
                             output = tensor(sequences * num_query_heads);
  ha::StridedLayout news = ha::strided_bshd(sequences, 1, num_kv_heads, head_dim);
  ha::StridedLayout rows = ha::strided_bshd(sequences, 1, num_query_heads, head_dim);
  ha::AttentionShape shape{sequences, num_query_heads, num_kv_heads, 1, head_dim};

  static std::vector<std::int32_t> started() {
    std::vector<std::int32_t> result(ha::RollingStateView::bytes(sequences) / sizeof(std::int32_t), seen);
    result.end()[-1] = result.end()[-2] = 0;
    return result;
  }
  static bench::DeviceArray<__half> tensor(std::int64_t count) {
    return bench::DeviceArray<__half>(std::vector<__half>(static_cast<std::size_t>(count * head_dim), __half(0.25F)));
  }
  [[nodiscard]] ha::RollingSlotsView view() const { return slots.view_at(heads.data()); }
  [[nodiscard]] ha::RollingStateView state() const { return ha::RollingStateView::at(counters.data(), sequences); }
  [[nodiscard]] ha::LayerKv<__half const> tokens() const { return {new_keys.data(), new_values.data()}; }
  [[nodiscard]] auto cache() const { return ha::rolling(slots, view(), keys.data(), values.data(), head_dim); }
};

void two_calls(Layer const& layer) {
  BENCH_CHECK(ha::device::append(layer.view(), layer.state(), std::vector{layer.tokens()}, layer.news, nullptr, 1,
                                 layer.cache(), {}, nullptr));
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    ha::KeptCache const kept{layer.keys.data(), layer.values.data(),
                             ha::RollingView{layer.view(), 0, layer.state().lengths}};
    BENCH_CHECK(ha::device::attend(temp, bytes, layer.shape, ha::AttentionQueries{layer.queries.data(), layer.rows},
                                   kept, ha::AttentionOutput{layer.output.data(), layer.rows},
                                   {layer.slots.rows_total()}, {}, nullptr));
  });
}

template <class Rotation>
void one_call(Layer const& layer, Rotation const& rotation) {
  ha::RollingStep const step{layer.view(),        layer.state(), layer.tokens(), layer.news,
                             ha::AppendOptions{}, nullptr,       rotation};
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    BENCH_CHECK(ha::device::append_and_attend(
        temp, bytes, layer.shape, ha::AttentionQueries{layer.queries.data(), layer.rows}, step, layer.cache(),
        ha::AttentionOutput{layer.output.data(), layer.rows}, {}, nullptr));
  });
}

/// Pages of 16 rows, and a step into them.
struct Pages {
  ha::PagedHeads pages{make_table(), {sequences, 16, 1100, {.slack = 4}}};
  ha::PageStep step = made();
  bench::DeviceArray<std::byte> heads{std::vector<std::byte>(pages.head_bytes().begin(), pages.head_bytes().end())};
  bench::DeviceArray<std::int32_t> table{std::vector<std::int32_t>(pages.table().begin(), pages.table().end())};
  bench::DeviceArray<std::int32_t> before{step.lengths}, high_water{step.high_water}, counts{step.counts};
  bench::DeviceArray<std::int32_t> lengths{std::vector<std::int32_t>(sequences, seen + 1)};
  bench::DeviceArray<ha::PageCopy> copies{pages.padded_copies(step)};
  bench::DeviceArray<__half> keys = Layer::tensor(16 * 1100), values = Layer::tensor(16 * 1100);

  ha::PageStep made() {
    pages.append(std::vector<std::int32_t>(sequences, seen));
    return pages.append(std::vector<std::int32_t>(sequences, 1));
  }
  [[nodiscard]] ha::PagedHeadsView view() const { return pages.view_at(heads.data(), table.data()); }
  [[nodiscard]] ha::DevicePageStep device_step() const {
    return {before.data(), high_water.data(), counts.data(), copies.data(), pages.max_copies(), 1};
  }
  [[nodiscard]] ha::PageStorage<__half> storage() const { return {keys.data(), values.data(), head_dim, head_dim}; }
};

void two_calls(Layer const& layer, Pages const& pages) {
  BENCH_CHECK(ha::device::append(pages.view(), pages.device_step(), std::vector{layer.tokens()}, layer.news,
                                 pages.storage(), 0, nullptr));
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    ha::KeptCache const kept{pages.keys.data(), pages.values.data(),
                             ha::HeadPagesView(pages.view(), 0, pages.lengths.data())};
    BENCH_CHECK(ha::device::attend(temp, bytes, layer.shape, ha::AttentionQueries{layer.queries.data(), layer.rows},
                                   kept, ha::AttentionOutput{layer.output.data(), layer.rows},
                                   {layer.slots.rows_total()}, {}, nullptr));
  });
}

void one_call(Layer const& layer, Pages const& pages) {
  ha::HeadPagesStep const step{pages.view(), pages.device_step(), layer.tokens(), layer.news};
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    BENCH_CHECK(ha::device::append_and_attend(
        temp, bytes, layer.shape, ha::AttentionQueries{layer.queries.data(), layer.rows}, step, pages.storage(),
        ha::AttentionOutput{layer.output.data(), layer.rows}, {layer.slots.rows_total()}, {}, nullptr));
  });
}

/// The same rows, encoded.
struct Encoded {
  ha::FormatTable formats{1, num_kv_heads, {ha::Packed<5>{}, ha::Packed<4>{}}};
  ha::PackedDestination<ha::RollingSlotsView> cache;
  bench::DeviceArray<ha::RowUnit> rows;
  bench::DeviceArray<ha::PackedSegment<>> segments;

  explicit Encoded(Layer const& layer)
      : cache(ha::packed_rolling(layer.slots, layer.view(), formats, head_dim)),
        rows(std::vector<ha::RowUnit>(static_cast<std::size_t>(cache.total_units()))),
        segments(cache.segments) {
    cache = cache.with_buffer(rows.data());
  }
};

void two_calls(Layer const& layer, Encoded const& encoded) {
  BENCH_CHECK(ha::device::append(layer.view(), layer.state(), std::vector{layer.tokens()}, layer.news, nullptr, 1,
                                 encoded.cache, encoded.segments.data(), {}, nullptr));
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    ha::PackedCache<ha::DefaultFormats, ha::RollingView> const kept{
        encoded.rows.data(), encoded.segments.data(), ha::RollingView{layer.view(), 0, layer.state().lengths}};
    BENCH_CHECK(ha::device::attend(temp, bytes, layer.shape, ha::AttentionQueries{layer.queries.data(), layer.rows},
                                   kept, ha::AttentionOutput{layer.output.data(), layer.rows},
                                   {layer.slots.rows_total()}, {}, nullptr));
  });
}

void one_call(Layer const& layer, Encoded const& encoded) {
  ha::RollingStep const step{layer.view(), layer.state(), layer.tokens(), layer.news};
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    BENCH_CHECK(ha::device::append_and_attend(
        temp, bytes, layer.shape, ha::AttentionQueries{layer.queries.data(), layer.rows}, step, encoded.cache,
        encoded.segments.data(), ha::AttentionOutput{layer.output.data(), layer.rows}, {}, nullptr));
  });
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  Layer const layer;
  std::string_view const calls = argc > 1 ? argv[1] : "one";
  if (calls == "two") {
    two_calls(layer);
  } else if (calls == "rotated") {
    one_call(layer, ha::KeyRotation::from_base(ha::RotaryPairing::neox, head_dim, 10000));
  } else if (calls == "pages_two") {
    two_calls(layer, Pages());
  } else if (calls == "pages") {
    one_call(layer, Pages());
  } else if (calls == "encoded_two") {
    two_calls(layer, Encoded(layer));
  } else if (calls == "encoded") {
    one_call(layer, Encoded(layer));
  } else {
    one_call(layer, ha::KeepPositions{});
  }
  BENCH_CHECK(cudaDeviceSynchronize());
  constexpr std::int64_t rows = 15360;
  std::int64_t const row_bytes =
      calls.starts_with("encoded") ? Encoded(layer).cache.segments[0].units * 16 : head_dim * 4;
  std::printf("rows %lld\nheld_bytes %lld\n", static_cast<long long>(rows), static_cast<long long>(rows * row_bytes));
}
