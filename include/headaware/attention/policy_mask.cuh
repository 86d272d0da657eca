#pragma once

/// @file
/// Policies as attention masks, filled on CUDA.

#include <headaware/attention/policy_mask.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/policy/table.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Fills a mask, one word per thread at a time.
template <class Table, class T>
HEADAWARE_KERNEL void mask_kernel(Table const __grid_constant__ table, MaskShape const __grid_constant__ shape,
                                  T* d_mask) {
  std::int64_t const words = mask_words(table, shape);
  for (std::int64_t i = std::int64_t{blockIdx.x} * block_threads + threadIdx.x; i < words;
       i += std::int64_t{gridDim.x} * block_threads) {
    write_mask(shape, i, mask_word(table, shape, i), d_mask);
  }
}

}  // namespace detail

namespace device {

/// @brief Fills a mask on CUDA, as the CPU's `fill_policy_mask`.
/// @tparam T  `float`: additive, 0 or -inf; `uint32_t`: packed bits
/// @param[in]  table   on the device: `table.view_at(d_bytes)`, a `UniformTable`, or `WithKeepLists` of one
/// @param[out] d_mask  device, [num_kv_heads * group, queries, keys], or as bits [num_kv_heads * group, queries,
///                     ceil(keys / 32)]
/// @param[in]  stream  enqueued here, not synchronised
/// @return cudaErrorInvalidValue on what the CPU's refuses, keep-lists aside: those on a device cannot be checked;
///         launch errors
/// @note   Deterministic; graph-capturable
/// @par Cost  One launch, O(heads · queries · keys)
template <class Table, class T>
cudaError_t fill_policy_mask(Table const& table, MaskShape const& shape, T* d_mask, cudaStream_t stream) noexcept {
  static_assert(PolicySource<Table>, "headaware: a device mask needs a trivially copyable table: a PolicyTableView "
                                     "(from PolicyTable::view_at), a UniformTable or WithKeepLists of one");
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, std::uint32_t>,
                "headaware: a mask is made of float (0 or -inf) or uint32_t (bits)");
  return detail::guarded([&] {
    // At most: where layers differ, the host cannot read how many heads this one has.
    auto const count = [&] { return detail::mask_words(table.num_kv_heads(), shape); };
    detail::check_mask(table, shape, d_mask, count);
    std::int64_t const words = count();
    if (words == 0) return;
    std::int64_t const blocks =
        std::min<std::int64_t>((words + detail::block_threads - 1) / detail::block_threads, 65535);
    detail::launch("fill_policy_mask", detail::mask_kernel<Table, T>, static_cast<unsigned>(blocks),
                   detail::block_threads, 0, stream, table, shape, d_mask);
  });
}

}  // namespace device

HEADAWARE_NAMESPACE_END
