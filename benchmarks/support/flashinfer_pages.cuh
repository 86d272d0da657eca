#pragma once

// FlashInfer's kernels over pages of single KV heads, to be counted or timed beside ours.

#include "gpu.cuh"

#include <headaware/policy/rolling_policy.hpp>

#include <cuda_fp16.h>
#include <flashinfer/flashinfer_decoder.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

/// Tables of pages that all are full, on the device, and `indptr` on the host, too.
struct FullPages {
  std::int32_t const* indices;
  std::int32_t const* indptr;
  std::int32_t const* last_page_len;
  std::vector<std::int32_t> const& indptr_on_host;
};

/// FlashInfer's kernels, planned for all rows of some pages, with memory of its own for keys, values and results.
class FlashInferPagesRun {
 public:
  /// @param rules  its variant that asks of every token whether its KV head keeps it, as all do here; else its own
  /// attention
  FlashInferPagesRun(FlashInferCores cores, bool rules, FlashInferShape const& shape, std::int32_t num_kv_heads,
                     FullPages const& pages)
      : pages_(pages),
        keys_(static_cast<std::size_t>(pages.indptr_on_host.back()) *
              static_cast<std::size_t>(shape.page_size * shape.head_dim)),
        values_(keys_.size()),
        queries_(heads(shape, pages) * static_cast<std::size_t>(shape.head_dim)),
        output_(queries_.size()),
        lse_(heads(shape, pages)),
        rules_(std::vector<FlashInferRule>(static_cast<std::size_t>(num_kv_heads), {headaware::all_tokens, 0})),
        decoder_(cores, shape) {
    for (auto const* array : {&keys_, &values_, &queries_}) {
      BENCH_CHECK(cudaMemset(array->data(), 0x34, array->size() * sizeof(__half)));
    }
    decoder_.plan(pages.indptr_on_host, {.rules = rules ? rules_.data() : nullptr, .num_kv_heads = num_kv_heads},
                  nullptr);
  }
  void operator()(cudaStream_t stream) const {
    decoder_.run(queries_.data(),
                 {keys_.data(), values_.data(), 0, pages_.indptr, pages_.indices, pages_.last_page_len},
                 {output_.data(), lse_.data()}, stream);
  }

 private:
  static std::size_t heads(FlashInferShape const& shape, FullPages const& pages) {
    return (pages.indptr_on_host.size() - 1) * static_cast<std::size_t>(shape.group);
  }

  FullPages pages_;
  DeviceArray<__half> keys_;
  DeviceArray<__half> values_;
  DeviceArray<__half> queries_;
  DeviceArray<__half> output_;
  DeviceArray<float> lse_;
  DeviceArray<FlashInferRule> rules_;
  FlashInferDecoder decoder_;
};

/// @brief Attends once to all rows of the pages.
/// @param kernels  flashinfer_cuda, flashinfer_tensor (its own attention), or flashinfer_cuda_rules,
/// flashinfer_tensor_rules
inline void attend_by_flashinfer(std::string_view kernels, FlashInferShape const& shape, std::int32_t num_kv_heads,
                                 FullPages const& pages) {
  if (!kernels.starts_with("flashinfer_")) {
    std::fprintf(stderr, "kernels: expected flashinfer_{cuda,tensor}[_rules], got %s\n", std::string(kernels).c_str());
    std::exit(2);
  }
  auto const cores = kernels.starts_with("flashinfer_tensor") ? FlashInferCores::tensor : FlashInferCores::cuda;
  FlashInferPagesRun const run(cores, kernels.ends_with("_rules"), shape, num_kv_heads, pages);
  run(nullptr);
  BENCH_CHECK(cudaDeviceSynchronize());
}

}  // namespace bench
