// Attention statistics on the device, timed beside a device-to-device copy of the bytes of queries, keys and values
// (support/gpu_timing.cuh): masses alone, with values, with every sixteenth query, and after W_O. `flop_rate` counts
// the products that the forward pass of flash attention has, causal, so that its rate on the same device is what to
// compare with.

#include "support/gpu_timing.cuh"

#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.cuh>

#include <benchmark/benchmark.h>
#include <cuda_bf16.h>

#include <cstdint>
#include <string>
#include <vector>

namespace {

namespace ha = headaware;
constexpr cudaStream_t stream = nullptr;

enum class What { statistics, masses, errors, errors_behind_output };

/// A layer of an 8-billion-parameter model: 32 query heads, 8 KV heads of 128 channels.
void observation(benchmark::State& state, What what, std::int64_t tokens, std::int64_t stride) {
  constexpr std::int32_t num_query_heads = 32;
  constexpr std::int32_t num_kv_heads = 8;
  constexpr std::int64_t head_dim = 128;
  std::vector<__nv_bfloat16> host(static_cast<std::size_t>(num_query_heads * tokens * head_dim));
  std::uint32_t random = 1;
  for (__nv_bfloat16& x : host) {
    random = random * 1664525U + 1013904223U;
    x = __float2bfloat16(static_cast<float>(random >> 8) * 0x1p-22F - 2);
  }
  bench::DeviceArray<__nv_bfloat16> const queries(host);
  host.resize(static_cast<std::size_t>(num_kv_heads * tokens * head_dim));
  bench::DeviceArray<__nv_bfloat16> const keys(host);
  bench::DeviceArray<__nv_bfloat16> const values(host);
  bench::DeviceArray<float> const factors(std::vector<float>(num_query_heads * head_dim * head_dim, 0.01F));
  ha::DeviceQkvShape<ha::StridedLayout> shape;
  shape.query_layout = ha::strided_bhsd(1, num_query_heads, tokens, head_dim);
  shape.key_layout = shape.value_layout = ha::strided_bhsd(1, num_kv_heads, tokens, head_dim);
  shape.num_query_heads = num_query_heads;
  shape.num_kv_heads = num_kv_heads;
  shape.tokens = tokens;
  shape.head_dim = head_dim;
  ha::ObserverParameters parameters;
  if (what != What::statistics) parameters.retention = ha::RetentionGrid{};
  parameters.query_stride = stride;
  parameters.formats.clear();  // a launch of their own
  bool const with_values = what == What::errors || what == What::errors_behind_output;
  std::vector<ha::DeviceQkv<__nv_bfloat16>> const layers{
      {queries.data(), keys.data(), with_values ? values.data() : nullptr,
       what == What::errors_behind_output ? factors.data() : nullptr}};
  ha::AttentionScore const score{.scale = 0.088F};
  bench::DeviceArray<double> const sums(
      std::vector<double>(static_cast<std::size_t>(num_query_heads * ha::SumsLayout(parameters).size())));
  std::size_t temp_bytes = 0;
  BENCH_CHECK(ha::device::observe(nullptr, temp_bytes, shape, layers, score, parameters, sums.data(), stream));
  bench::DeviceArray<std::byte> const temp(temp_bytes);

  std::size_t const elements = queries.size() + keys.size() + (with_values ? values.size() : 0);
  bench::timed(state, stream, static_cast<std::int64_t>(elements * sizeof(__nv_bfloat16)), [&] {
    BENCH_CHECK(ha::device::observe(temp.data(), temp_bytes, shape, layers, score, parameters, sums.data(), stream));
  });
  double const products = 4.0 * num_query_heads * head_dim * static_cast<double>(tokens) * static_cast<double>(tokens) /
                          2 / static_cast<double>(stride);
  state.counters["flop_rate"] =
      benchmark::Counter(products * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void register_all() {
  constexpr std::int64_t memory = std::int64_t{1} << 29;
  auto const add = [&](char const* name, What what) {
    auto const add_size = [&](std::int64_t tokens, std::int64_t stride) {
      bench::add(
          std::string("observe/") + name + "/tokens:" + std::to_string(tokens) + "/stride:" + std::to_string(stride),
          memory, [=](benchmark::State& state) { observation(state, what, tokens, stride); });
    };
    if (bench::options().reduced) return add_size(48, 1);
    for (std::int64_t const tokens : {512, 2048, 8192}) add_size(tokens, 1);
    add_size(8192, 16);
  };
  add("statistics", What::statistics);
  add("masses", What::masses);
  add("errors", What::errors);
  add("errors_behind_output", What::errors_behind_output);
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, register_all); }
