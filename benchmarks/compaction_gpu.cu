// Compaction on the device, timed with events, the L2 cache flushed before each round, beside a
// device-to-device copy of as many bytes and beside the copies an engine would issue head by head.

#include "support/gpu.cuh"

#include <benchmark/benchmark.h>

#include <cstdint>

namespace {

namespace ha = headaware;
constexpr cudaStream_t stream = nullptr;

bench::Model& model() {
  static bench::Model instance;
  return instance;
}

/// Runs `work` once an iteration and reports the bytes it reads and writes per second.
template <class Work>
void timed(benchmark::State& state, Work const& work) {
  bench::timed(state, stream, work);
  state.SetBytesProcessed(state.iterations() * 2 * model().kept_bytes());
}

void compaction(benchmark::State& state, ha::StridedLayout const& source) {
  auto const d_compaction = model().device_compaction();
  auto const kept = model().kept();
  std::size_t temp_bytes = 0;
  BENCH_CHECK(ha::device::compress(nullptr, temp_bytes, d_compaction, model().layers, source, kept, stream));
  bench::DeviceArray<std::byte> const temp(temp_bytes);
  timed(state, [&] {
    BENCH_CHECK(ha::device::compress(temp.data(), temp_bytes, d_compaction, model().layers, source, kept, stream));
  });
}

void compaction_bhsd(benchmark::State& state) {
  compaction(state, ha::strided_bhsd(1, bench::Model::num_kv_heads, bench::Model::tokens, bench::Model::head_dim));
}
void compaction_bshd(benchmark::State& state) {
  compaction(state, ha::strided_bshd(1, bench::Model::tokens, bench::Model::num_kv_heads, bench::Model::head_dim));
}

void device_copy(benchmark::State& state) {
  std::size_t const bytes = model().kept_keys.size() * sizeof(std::uint16_t);
  timed(state, [&] {
    BENCH_CHECK(
        cudaMemcpyAsync(model().kept_keys.data(), model().keys.data(), bytes, cudaMemcpyDeviceToDevice, stream));
    BENCH_CHECK(
        cudaMemcpyAsync(model().kept_values.data(), model().values.data(), bytes, cudaMemcpyDeviceToDevice, stream));
  });
}

/// Sinks and windows of all heads of a layer, a two-dimensional copy each.
void copies_by_layer(benchmark::State& state) {
  constexpr std::size_t row = bench::Model::head_dim * sizeof(std::uint16_t);
  constexpr std::size_t source_pitch = bench::Model::tokens * row;
  constexpr std::size_t kept_pitch = 512 * row;
  timed(state, [&] {
    for (std::size_t layer = 0; layer < bench::Model::num_layers; ++layer) {
      auto const copy = [&](std::uint16_t* kept, std::uint16_t const* source) {
        auto* const to = reinterpret_cast<char*>(kept) + layer * bench::Model::num_kv_heads * kept_pitch;
        auto const* const from = reinterpret_cast<char const*>(source);
        BENCH_CHECK(cudaMemcpy2DAsync(to, kept_pitch, from, source_pitch, 4 * row, bench::Model::num_kv_heads,
                                      cudaMemcpyDeviceToDevice, stream));
        BENCH_CHECK(cudaMemcpy2DAsync(to + 4 * row, kept_pitch, from + (bench::Model::tokens - 508) * row, source_pitch,
                                      508 * row, bench::Model::num_kv_heads, cudaMemcpyDeviceToDevice, stream));
      };
      copy(model().kept_keys.data(), model().layers[layer].keys);
      copy(model().kept_values.data(), model().layers[layer].values);
    }
  });
}

BENCHMARK(compaction_bhsd)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(compaction_bshd)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(device_copy)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(copies_by_layer)->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
