// Compaction on the device, timed beside a device-to-device copy of as many bytes (support/gpu_timing.cuh) and beside
// the copies an engine would issue layer by layer.

#include "support/gpu_timing.cuh"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace {

namespace ha = headaware;
using bench::DeviceArray;
using bench::Model;
constexpr cudaStream_t stream = nullptr;

/// Kept by all benchmarks that need it; freed before those in place, which have caches of their own.
std::unique_ptr<Model> kept_model;

bench::ModelSize model_size() {
  return bench::options().reduced ? bench::ModelSize{.num_layers = 2, .tokens = 96, .window = 60} : bench::ModelSize{};
}
Model const& model() {
  if (kept_model == nullptr) kept_model = std::make_unique<Model>(model_size());
  return *kept_model;
}

/// @param planned  whether the host has copied the sizes to the device
void compaction(benchmark::State& state, ha::StridedLayout const& source, bool planned) {
  Model const& m = model();
  auto d_compaction = m.device_compaction();
  if (planned) d_compaction.d_offsets = m.d_offsets.data();
  auto const kept = m.kept();
  std::size_t temp_bytes = 0;
  BENCH_CHECK(ha::device::compress(nullptr, temp_bytes, d_compaction, m.layers, source, kept, stream));
  DeviceArray<std::byte> const temp(temp_bytes);
  bench::timed(state, stream, 2 * m.kept_bytes(), [&] {
    BENCH_CHECK(ha::device::compress(temp.data(), temp_bytes, d_compaction, m.layers, source, kept, stream));
  });
}

/// Sinks and windows of all heads of a layer, a two-dimensional copy each.
void copies_by_layer(benchmark::State& state) {
  Model const& m = model();
  constexpr std::size_t row = Model::head_dim * sizeof(std::uint16_t);
  constexpr auto sinks = static_cast<std::size_t>(Model::sink);
  auto const tokens = static_cast<std::size_t>(m.size.tokens);
  auto const window = static_cast<std::size_t>(m.size.window);
  std::size_t const kept_pitch = (sinks + window) * row;
  bench::timed(state, stream, 2 * m.kept_bytes(), [&] {
    for (std::size_t layer = 0; layer < m.layers.size(); ++layer) {
      auto const copy = [&](std::uint16_t* kept, std::uint16_t const* source) {
        auto* const to = reinterpret_cast<char*>(kept) + layer * Model::num_kv_heads * kept_pitch;
        auto const* const from = reinterpret_cast<char const*>(source);
        BENCH_CHECK(cudaMemcpy2DAsync(to, kept_pitch, from, tokens * row, sinks * row, Model::num_kv_heads,
                                      cudaMemcpyDeviceToDevice, stream));
        BENCH_CHECK(cudaMemcpy2DAsync(to + sinks * row, kept_pitch, from + (tokens - window) * row, tokens * row,
                                      window * row, Model::num_kv_heads, cudaMemcpyDeviceToDevice, stream));
      };
      copy(m.kept_keys.data(), m.layers[layer].keys);
      copy(m.kept_values.data(), m.layers[layer].values);
    }
  });
}

/// @param windows  [KV heads] of every layer, after 4 sinks
void in_place(benchmark::State& state, std::int32_t num_layers, std::int32_t tokens,
              std::vector<std::int32_t> const& windows) {
  kept_model.reset();
  auto const num_kv_heads = static_cast<std::int32_t>(windows.size());
  ha::PolicyTable table(num_layers, num_kv_heads);
  std::int64_t moved_rows = 0;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    for (std::int32_t head = 0; head < num_kv_heads; ++head) {
      std::int32_t const window = windows[static_cast<std::size_t>(head)];
      table.set(layer, head, ha::SinkWindow{.sink = Model::sink, .window = window});
      moved_rows += window;
    }
  }
  auto const layout = ha::strided_bhsd(1, num_kv_heads, tokens, Model::head_dim);
  auto const layer_elements = static_cast<std::size_t>(layout.required_span_size());
  DeviceArray<std::uint16_t> const keys(static_cast<std::size_t>(num_layers) * layer_elements);
  DeviceArray<std::uint16_t> const values(keys.size());
  BENCH_CHECK(cudaMemset(keys.data(), 1, keys.size() * sizeof(std::uint16_t)));
  BENCH_CHECK(cudaMemset(values.data(), 2, values.size() * sizeof(std::uint16_t)));
  std::vector<ha::LayerKv<std::uint16_t>> layers;
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(num_layers); ++layer) {
    layers.push_back({keys.data() + layer * layer_elements, values.data() + layer * layer_elements});
  }
  std::vector<std::int32_t> const lengths{tokens};
  ha::Compaction const compaction(table, lengths);
  DeviceArray<std::byte> const d_table(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  DeviceArray<std::int32_t> const d_lengths(lengths);
  auto const d_compaction = compaction.on_device(table.view_at(d_table.data()), d_lengths.data());
  constexpr std::int64_t row_bytes = 2 * Model::head_dim * std::int64_t{sizeof(std::uint16_t)};
  bench::timed(state, stream, 2 * moved_rows * row_bytes,
               [&] { BENCH_CHECK(ha::device::compress_in_place(d_compaction, layers, layout, {}, stream)); });
}

void register_all() {
  bool const reduced = bench::options().reduced;
  bench::ModelSize const size = model_size();
  std::int32_t const tokens = size.tokens;
  constexpr std::int64_t memory = std::int64_t{3} << 29;  // the model and what is kept of it
  for (bool const planned : {false, true}) {
    std::string const name = planned ? "compress_planned" : "compress";
    bench::add(name + "/bhsd", memory, [=](benchmark::State& state) {
      compaction(state, ha::strided_bhsd(1, Model::num_kv_heads, tokens, Model::head_dim), planned);
    });
    bench::add(name + "/bshd", memory, [=](benchmark::State& state) {
      compaction(state, ha::strided_bshd(1, tokens, Model::num_kv_heads, Model::head_dim), planned);
    });
  }
  bench::add("copies_by_layer/bhsd", memory, copies_by_layer);
  bench::add("compress_in_place/even", memory, [=](benchmark::State& state) {
    in_place(state, size.num_layers, tokens, std::vector<std::int32_t>(Model::num_kv_heads, size.window));
  });
  // One head that keeps nearly all of 32,768 tokens, beside seven that keep few.
  bench::add("compress_in_place/one_long_head", memory, [=](benchmark::State& state) {
    std::vector<std::int32_t> windows(Model::num_kv_heads, reduced ? 8 : 60);
    windows[0] = reduced ? 80 : 28672;
    in_place(state, 1, reduced ? 96 : 32768, windows);
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, register_all); }
