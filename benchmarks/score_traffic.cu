// Scores of rows and selection by them on CUDA, for counting what they ask of memory: run it under the CUDA emulator
// with CUDA_EMU_REPORT=FILE (tests/device_code/score_traffic.cmake does and checks the counts), or under a profiler on
// a device. The argument chooses the call: rows (linear scores of new rows, turned back), keys (the probabilities that
// kept rows get from the last 64 tokens), budgets or shared (selection from the scores of four layers, by budgets of
// heads or by one threshold). Layers are Llama 3 8B's: 32 query heads, 8 KV heads, 128 channels of 2 bytes. Prints the
// bytes of what is read: of rows with the weights beside for each launch.

#include "support/gpu.cuh"

#include <headaware/attention/attention.hpp>
#include <headaware/attention/dense_views.hpp>
#include <headaware/attention/key_scores.cuh>
#include <headaware/layout/strided.hpp>
#include <headaware/score/linear_score.cuh>
#include <headaware/score/select.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string_view>
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

void score_keys() {
  constexpr std::int64_t rows = 1024;
  constexpr std::int32_t num_kv_heads = 8;
  ha::AttentionShape const shape{1, 32, num_kv_heads, 64, 128};
  auto const layout = ha::strided_bshd(1, shape.query_tokens, shape.num_query_heads, shape.head_dim);
  std::vector<std::int32_t> offsets;
  for (std::int32_t head = 0; head <= num_kv_heads; ++head) {
    offsets.push_back(head * static_cast<std::int32_t>(rows));
  }
  std::vector<__half> const numbers(static_cast<std::size_t>(num_kv_heads * rows * shape.head_dim), __float2half(0.5F));
  bench::DeviceArray<__half> const keys(numbers);
  bench::DeviceArray<__half> const queries(
      std::vector<__half>(static_cast<std::size_t>(layout.required_span_size()), __float2half(0.5F)));
  bench::DeviceArray<std::int32_t> const d_offsets(offsets);
  bench::DeviceArray<float> const scores(std::vector<float>(static_cast<std::size_t>(num_kv_heads * rows)));
  ha::KeptCache const cache{keys.data(), static_cast<__half*>(nullptr), ha::RaggedView{d_offsets.data(), num_kv_heads}};
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    BENCH_CHECK(ha::device::score_keys(temp, bytes, shape, ha::AttentionQueries{queries.data(), layout}, cache, {},
                                       ha::KeyScoreReduction::max, {scores.data(), rows}, nullptr));
  });
  std::printf("key_bytes %zu, query_bytes %zu\n", keys.size() * sizeof(__half), queries.size() * sizeof(__half));
}

void select(bool by_budgets) {
  constexpr std::int32_t tokens = 4096;
  ha::LayerHeads const heads{4, 8, nullptr, 0};
  std::vector<float> numbers(static_cast<std::size_t>(heads.total()) * tokens);
  // 40,503 is odd: every number below 65,536 comes once in as many.
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i * 40503 % 65536);
  bench::DeviceArray<float> const scores(numbers);
  bench::DeviceArray<std::int32_t> const lengths(std::vector<std::int32_t>{tokens});
  bench::DeviceArray<std::int32_t> const budgets(
      std::vector<std::int32_t>(static_cast<std::size_t>(heads.total()), tokens / 8));
  bench::DeviceArray<std::int32_t> const selected(numbers.size());
  bench::DeviceArray<std::int32_t> const counts(static_cast<std::size_t>(heads.total()));
  ha::SelectionRule rule{.sink = 4, .window = 16};
  if (by_budgets) {
    rule.budgets = budgets.data();
  } else {
    rule.shared = heads.total() * tokens / 8;
  }
  bench::with_storage([&](void* temp, std::size_t& bytes) {
    BENCH_CHECK(ha::device::select_tokens(temp, bytes, {heads, 1, lengths.data(), tokens}, {scores.data(), tokens},
                                          rule, {selected.data(), tokens, nullptr, counts.data()}, nullptr));
  });
  std::printf("score_bytes %zu\n", numbers.size() * sizeof(float));
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  std::string_view const call = argc > 1 ? argv[1] : "rows";
  if (call == "keys") {
    score_keys();
  } else if (call == "budgets" || call == "shared") {
    select(call == "budgets");
  } else {
    score(1);
    score(64);
  }
}
