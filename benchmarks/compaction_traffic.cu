// One compaction of a model-sized cache, for counting what it asks of memory: run it under the CUDA
// emulator with CUDA_EMU_REPORT=FILE (tests/device_code/traffic.cmake does and checks the counts), or
// under a profiler on a device. The argument `mixed` takes a model whose layers differ, `planned` one whose sizes the
// host has copied to the device.

#include "support/gpu.cuh"
#include "support/mixed_model.cuh"

#include <cstdio>
#include <cstring>

namespace {

template <class Compaction, class Source, class Kept>
void compress(Compaction const& compaction, std::vector<headaware::LayerKv<std::uint16_t>> const& layers,
              Source const& source, Kept const& kept) {
  std::size_t temp_bytes = 0;
  BENCH_CHECK(headaware::device::compress(nullptr, temp_bytes, compaction, layers, source, kept, nullptr));
  bench::DeviceArray<std::byte> const temp(temp_bytes);
  BENCH_CHECK(headaware::device::compress(temp.data(), temp_bytes, compaction, layers, source, kept, nullptr));
  BENCH_CHECK(cudaDeviceSynchronize());
}

long long uniform(bool planned) {
  bench::Model const model;
  auto compaction = model.device_compaction();
  if (planned) compaction.d_offsets = model.d_offsets.data();
  compress(compaction, model.layers, headaware::strided_bhsd(1, model.num_kv_heads, model.size.tokens, model.head_dim),
           model.kept());
  return model.kept_bytes();
}

long long mixed() {
  namespace ha = headaware;
  ha::ModelShape const shape = bench::mixed_shape();
  ha::PolicyTable const table(shape, ha::SinkWindow{.sink = 4, .window = 508});
  std::vector<std::int32_t> const lengths{4096};
  ha::Compaction const compaction(table, lengths);
  bench::MixedTensors const source(shape, lengths[0]);
  ha::RowChannels const elements =
      ha::buffer_elements(shape, shape.num_layers(), [&](std::int32_t layer) { return compaction.kept_total(layer); });
  bench::DeviceArray<std::uint16_t> const keys(static_cast<std::size_t>(elements.head_dim));
  bench::DeviceArray<std::uint16_t> const values(static_cast<std::size_t>(elements.value_dim));
  bench::DeviceArray<std::byte> const d_table(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  bench::DeviceArray<std::int32_t> const d_lengths(lengths);
  compress(compaction.on_device(table.view_at(d_table.data()), d_lengths.data()), source.layers,
           ha::per_layer(source.layouts), ha::ragged(compaction, keys.data(), values.data(), shape));
  return compaction.bytes_held({shape, sizeof(std::uint16_t)});
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  bool const differ = argc > 1 && std::strcmp(argv[1], "mixed") == 0;
  bool const planned = argc > 1 && std::strcmp(argv[1], "planned") == 0;
  std::printf("kept_bytes %lld\n", differ ? mixed() : uniform(planned));
}
