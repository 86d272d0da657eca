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

/// @brief Attends once to all rows of the pages.
/// @param kernels  flashinfer_cuda, flashinfer_tensor (its own attention), or flashinfer_cuda_rules,
/// flashinfer_tensor_rules (a variant of it that asks of every token whether its KV head keeps it, as all do here)
inline void attend_by_flashinfer(std::string_view kernels, FlashInferShape const& shape, std::int32_t num_kv_heads,
                                 FullPages const& pages) {
  bool const tensor = kernels.starts_with("flashinfer_tensor");
  bool const with_rules = kernels.ends_with("_rules");
  if (!kernels.starts_with("flashinfer_")) {
    std::fprintf(stderr, "kernels: expected flashinfer_{cuda,tensor}[_rules], got %s\n", std::string(kernels).c_str());
    std::exit(2);
  }
  std::size_t const entries = pages.indptr_on_host.size() - 1;
  std::size_t const heads = entries * static_cast<std::size_t>(shape.group);
  auto const elements = static_cast<std::size_t>(pages.indptr_on_host.back()) *
                        static_cast<std::size_t>(shape.page_size * shape.head_dim);
  DeviceArray<__half> const keys(elements);
  DeviceArray<__half> const values(elements);
  DeviceArray<__half> const queries(heads * static_cast<std::size_t>(shape.head_dim));
  DeviceArray<__half> const output(queries.size());
  DeviceArray<float> const lse(heads);
  for (auto const* array : {&keys, &values, &queries}) {
    BENCH_CHECK(cudaMemset(array->data(), 0x34, array->size() * sizeof(__half)));
  }
  DeviceArray<FlashInferRule> const rules(
      std::vector<FlashInferRule>(static_cast<std::size_t>(num_kv_heads), {headaware::all_tokens, 0}));
  FlashInferDecoder decoder(tensor ? FlashInferCores::tensor : FlashInferCores::cuda, shape);
  decoder.plan(pages.indptr_on_host, {.rules = with_rules ? rules.data() : nullptr, .num_kv_heads = num_kv_heads},
               nullptr);
  decoder.run(queries.data(), {keys.data(), values.data(), 0, pages.indptr, pages.indices, pages.last_page_len},
              {output.data(), lse.data()}, nullptr);
  BENCH_CHECK(cudaDeviceSynchronize());
}

}  // namespace bench
