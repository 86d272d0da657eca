// Linear scores of one layer's rows on CUDA, for counting what they ask of memory: run it under the CUDA emulator with
// CUDA_EMU_REPORT=FILE (tests/device_code/score_traffic.cmake does and checks the counts), or under a profiler on a
// device. The layer is Llama 3 8B's: 32 query heads, 8 KV heads, 128 channels of 2 bytes, rows turned back. Prints, for
// each launch, the bytes of the rows, and those of the weights.

#include "support/gpu.cuh"

#include <headaware/layout/strided.hpp>
#include <headaware/score/linear_score.cuh>

#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

namespace ha = headaware;

void score(std::int64_t tokens) {
  constexpr ha::ScoreFeatures features{32, 8, 128, 128};
  auto const halves = [&](std::int64_t heads) {
    return std::vector<__half>(static_cast<std::size_t>(tokens * heads * features.head_dim), __float2half(0.5F));
  };
  bench::DeviceArray<__half> const queries(halves(features.num_query_heads));
  bench::DeviceArray<__half> const keys(halves(features.num_kv_heads));
  bench::DeviceArray<__half> const values(halves(features.num_kv_heads));
  std::vector<float> const ones(static_cast<std::size_t>(features.num_kv_heads * features.count()), 1);
  bench::DeviceArray<float> const weights(ones);
  bench::DeviceArray<float> scores(std::vector<float>(static_cast<std::size_t>(features.num_kv_heads * tokens)));
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, 128, 5e5);
  BENCH_CHECK(ha::device::score_rows(
      features, {1, tokens},
      ha::TokenRows{queries.data(), ha::strided_shd(tokens, features.num_query_heads, features.head_dim), keys.data(),
                    values.data(), ha::strided_shd(tokens, features.num_kv_heads, features.head_dim)},
      weights.data(), ha::RowScores::dense(scores.data(), features.num_kv_heads, tokens), nullptr, rotation));
  BENCH_CHECK(cudaDeviceSynchronize());
  std::int64_t const rows = features.num_query_heads + 2 * features.num_kv_heads;
  std::printf("tokens %lld, row_bytes %lld, weight_bytes %zu\n", static_cast<long long>(tokens),
              static_cast<long long>(tokens * rows * features.head_dim * 2), ones.size() * sizeof(float));
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  score(1);
  score(64);
}
