// What an engine asks of a layer beside decoding over kept rows (attend_gpu.cu), each timed beside a device-to-device
// copy that moves as many bytes (support/gpu_timing.cuh), over 8 KV heads × 128 channels in half precision:
//
// step: a decoding step on a rolling cache, its new tokens included: append and attend in two launches (`two`;
// `overlapped` where the second begins while the first ends, on compute capability 9.0 and later), in one (`one`), and
// in one that turns keys and queries to their positions (`rotated`). chunk: a prefill chunk of one sequence over ragged
// rows that all of its tokens see. `flop_rate` counts its products. latent: a decoding step over latents of 576
// channels, of which 512 are the value, in pages; `group` query heads each.

#include "support/gpu_timing.cuh"

#include <headaware/attention/append_and_attend.cuh>
#include <headaware/attention/attend.cuh>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <benchmark/benchmark.h>
#include <cuda_fp16.h>

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

/// Rows of numbers. @param elements  of all of them
DeviceArray<__half> numbers(std::int64_t elements) {
  DeviceArray<__half> result(static_cast<std::size_t>(elements));
  BENCH_CHECK(cudaMemset(result.data(), 0x34, result.size() * sizeof(__half)));
  return result;
}

enum class Calls { two, overlapped, one, rotated };

/// @param kept  tokens of every head, 4 of them sinks
void step(benchmark::State& state, std::int32_t batch, std::int32_t kept, std::int32_t group, Calls calls) {
  ha::PolicyTable const table(1, num_kv_heads, ha::SinkWindow{.sink = 4, .window = kept - 4});
  ha::RollingSlots const slots(table, batch, {});
  DeviceArray<std::byte> const heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  std::vector<std::int32_t> counters(ha::RollingStateView::bytes(batch) / sizeof(std::int32_t), 0);
  std::fill_n(counters.begin(), 2 * batch, 2 * kept);  // lengths, then high-water marks: rings have wrapped
  DeviceArray<std::int32_t> const d_counters(counters);
  auto const keys = numbers(slots.rows_total() * head_dim);
  auto const values = numbers(slots.rows_total() * head_dim);
  auto const news = ha::strided_bshd(batch, 1, num_kv_heads, head_dim);
  auto const new_keys = numbers(news.required_span_size());
  auto const new_values = numbers(news.required_span_size());
  ha::AttentionShape const shape{batch, num_kv_heads * group, num_kv_heads, 1, head_dim};
  auto const rows = ha::strided_bshd(batch, 1, shape.num_query_heads, head_dim);
  auto const queries = numbers(rows.required_span_size());
  auto const output = numbers(rows.required_span_size());
  auto const view = slots.view_at(heads.data());
  auto const lengths = ha::RollingStateView::at(d_counters.data(), batch);
  auto const cache = ha::rolling(slots, view, keys.data(), values.data(), head_dim);
  ha::LayerKv<__half const> const tokens{new_keys.data(), new_values.data()};
  std::int64_t const bytes = slots.rows_total() * 2 * head_dim * std::int64_t{sizeof(__half)};
  ha::AttentionQueries const asked{queries.data(), rows};
  ha::AttentionOutput const result{output.data(), rows};
  auto const fused = [&](auto const& rotation) {
    ha::RollingStep const appended{view, lengths, tokens, news, ha::AppendOptions{}, nullptr, rotation};
    bench::timed_with_storage(state, stream, bytes, [&](void* temp, std::size_t& temp_bytes) {
      BENCH_CHECK(ha::device::append_and_attend(temp, temp_bytes, shape, asked, appended, cache, result, {}, stream));
    });
  };
  if (calls == Calls::one) return fused(ha::KeepPositions{});
  if (calls == Calls::rotated) return fused(ha::KeyRotation::from_base(ha::RotaryPairing::neox, head_dim, 10000));
  ha::KeptCache const held{keys.data(), values.data(), ha::RollingView{view, 0, lengths.lengths}};
  std::vector const layers{tokens};
  bench::timed_with_storage(state, stream, bytes, [&](void* temp, std::size_t& temp_bytes) {
    if (temp != nullptr) {
      BENCH_CHECK(ha::device::append(view, lengths, layers, news, nullptr, 1, cache, {}, stream));
    }
    BENCH_CHECK(ha::device::attend(temp, temp_bytes, shape, asked, held, result, {slots.rows_total()},
                                   {.overlap_launches = calls == Calls::overlapped}, stream));
  });
}

void chunk(benchmark::State& state, std::int32_t tokens, std::int32_t kept, std::int32_t group) {
  std::vector<std::int32_t> offsets{0};
  for (std::int32_t head = 0; head < num_kv_heads; ++head) offsets.push_back(offsets.back() + kept);
  DeviceArray<std::int32_t> const d_offsets(offsets);
  auto const keys = numbers(offsets.back() * head_dim);
  auto const values = numbers(offsets.back() * head_dim);
  ha::AttentionShape const shape{1, num_kv_heads * group, num_kv_heads, tokens, head_dim};
  auto const rows = ha::strided_bshd(1, tokens, shape.num_query_heads, head_dim);
  auto const queries = numbers(rows.required_span_size());
  auto const output = numbers(rows.required_span_size());
  ha::KeptCache const held{keys.data(), values.data(), ha::RaggedView{d_offsets.data(), num_kv_heads}};
  std::int64_t const elements = 2 * (offsets.back() * head_dim + rows.required_span_size());
  std::int64_t const bytes = elements * std::int64_t{sizeof(__half)};
  bench::timed_with_storage(state, stream, bytes, [&](void* temp, std::size_t& temp_bytes) {
    BENCH_CHECK(ha::device::attend(temp, temp_bytes, shape, ha::AttentionQueries{queries.data(), rows}, held,
                                   ha::AttentionOutput{output.data(), rows}, {offsets.back()}, {}, stream));
  });
  double const pairs = static_cast<double>(tokens) * group * offsets.back();
  state.counters["flop_rate"] =
      benchmark::Counter(4.0 * static_cast<double>(head_dim) * pairs * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

void latent(benchmark::State& state, std::int32_t batch, std::int32_t kept, std::int32_t group) {
  constexpr std::int32_t page_size = 16;
  constexpr std::int64_t channels = 576;
  std::int32_t const pages = kept / page_size;
  std::vector<std::int32_t> indptr{0};
  for (std::int32_t sequence = 0; sequence < batch; ++sequence) indptr.push_back(indptr.back() + pages);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(indptr.back()));
  // 7,919 is prime: no page comes twice, as no number of pages here is a multiple of it.
  for (std::size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<std::int32_t>(i * 7919 % indices.size());
  DeviceArray<std::int32_t> const d_indices(indices);
  DeviceArray<std::int32_t> const d_indptr(indptr);
  DeviceArray<std::int32_t> const d_last(std::vector<std::int32_t>(static_cast<std::size_t>(batch), page_size));
  auto const rows = numbers(std::int64_t{batch} * kept * channels);
  ha::AttentionShape const shape{batch, group, 1, 1, channels, 512};
  auto const asked = ha::strided_bshd(batch, 1, group, channels);
  auto const answered = ha::strided_bshd(batch, 1, group, 512);
  auto const queries = numbers(asked.required_span_size());
  auto const output = numbers(answered.required_span_size());
  ha::LatentCache const held{rows.data(),
                             ha::PagedView::csr(d_indices.data(), d_indptr.data(), d_last.data(), 1, page_size)};
  auto const bytes = static_cast<std::int64_t>(rows.size() * sizeof(__half));
  bench::timed_with_storage(state, stream, bytes, [&](void* temp, std::size_t& temp_bytes) {
    BENCH_CHECK(ha::device::attend(temp, temp_bytes, shape, ha::AttentionQueries{queries.data(), asked}, held,
                                   ha::AttentionOutput{output.data(), answered}, {std::int64_t{batch} * kept}, {},
                                   stream));
  });
}

void register_all() {
  bool const reduced = bench::options().reduced;
  auto const numbered = [](char const* name, std::int32_t value) { return std::string(name) + std::to_string(value); };
  constexpr std::int64_t row_bytes = 2 * head_dim * std::int64_t{sizeof(__half)};
  struct Named {
    char const* name;
    Calls calls;
  };
  for (std::int32_t const batch : reduced ? std::vector{2} : std::vector{1, 16, 64}) {
    for (std::int32_t const kept : reduced ? std::vector{48} : std::vector{512, 4096}) {
      for (auto const& [name, calls] : {Named{"two", Calls::two},
                                        {"overlapped", Calls::overlapped},
                                        {"one", Calls::one},
                                        {"rotated", Calls::rotated}}) {
        bench::add(std::string("step/") + name + numbered("/batch:", batch) + numbered("/kept:", kept) + "/group:4",
                   row_bytes * batch * num_kv_heads * kept,
                   [=, calls = calls](benchmark::State& state) { step(state, batch, kept, 4, calls); });
      }
    }
  }
  for (std::int32_t const tokens : reduced ? std::vector{20} : std::vector{16, 128, 1024}) {
    for (std::int32_t const kept : reduced ? std::vector{64} : std::vector{512, 4096, 32768}) {
      bench::add(numbered("chunk/tokens:", tokens) + numbered("/kept:", kept) + "/group:4",
                 row_bytes * num_kv_heads * (kept + 8 * tokens),
                 [=](benchmark::State& state) { chunk(state, tokens, kept, 4); });
    }
  }
  for (std::int32_t const batch : reduced ? std::vector{2} : std::vector{1, 16}) {
    for (std::int32_t const kept : reduced ? std::vector{48} : std::vector{512, 4096, 32768}) {
      for (std::int32_t const group : reduced ? std::vector{16} : std::vector{16, 128}) {
        bench::add("latent" + numbered("/batch:", batch) + numbered("/kept:", kept) + numbered("/group:", group),
                   std::int64_t{batch} * kept * 576 * 2,
                   [=](benchmark::State& state) { latent(state, batch, kept, group); });
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, register_all); }
