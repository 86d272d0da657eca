#pragma once

/// @file
/// Attention over kept tokens on CUDA: one launch per call. Nothing is allocated, copied from the host or
/// synchronised, and lengths are read on the device, so a call may be captured in a graph.

#include <headaware/attention/attend.hpp>
#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/cuda/attend_launch.cuh>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/coded_launch.cuh>
#include <headaware/attention/merge.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

template <class A, class ALayout, class B, class BLayout>
HEADAWARE_KERNEL void merge_kernel(AttentionShape const __grid_constant__ shape,
                                   AttentionOutput<A, ALayout> const __grid_constant__ into,
                                   AttentionOutput<B, BLayout> const __grid_constant__ other, float const* sinks,
                                   std::int64_t rows) {
  std::int64_t const row = (std::int64_t{blockIdx.x} * block_threads + threadIdx.x) / warp_threads;
  if (row >= rows) return;
  float const lse = merge_row(shape, into, other, sinks, row, threadIdx.x % warp_threads, warp_threads);
  __syncwarp();
  if (threadIdx.x % warp_threads == 0) into.lse[row] = lse;
}

}  // namespace detail

namespace device {

/// @brief Computes attention of one layer's queries over the rows of its KV heads; results as of the CPU's `attend`.
///
/// All pointers, those inside the view included, are on the device and read when the kernels run. That lengths and
/// tables name existing rows is a precondition: `validate_tables` checks copies of them.
/// @tparam Q, T, O  float, `__half` or `__nv_bfloat16`, or `float16` and `bfloat16`
/// @param[in]     d_temp      device, of any alignment and content; nullptr: size query. Tools that look for reads of
///                            memory that was never written want it written once
/// @param[in,out] temp_bytes  bytes; depends on `shape`, `bounds.max_rows` and the type of the cache alone
/// @param[in]     queries     [sequences, num_query_heads, query_tokens, head_dim], by the layout
/// @param[in]     cache       `KeptCache`, `LatentCache` or `PackedCache`, rows where the view says; pointers may be
/// null
///                            where `bounds.max_rows` is 0, but for `PackedCache::segments`
/// @param[out]    output      [sequences, num_query_heads, query_tokens, value_dim], by the layout, and log-sum-exp;
///                            must overlap no input
/// @param[in]     bounds      the most rows of all heads of all sequences together
/// @param[in]     stream      enqueued here, not synchronised
/// @return cudaErrorInvalidValue on what the CPU's `attend` refuses, more than 512 channels (of a latent's row: more
///         than 4,096; of encoded rows also to whole blocks of a rotated format), rows that shared memory has no room
///         for, or too little storage; launch errors
/// @note   Deterministic: results depend on lengths and, over rows of 16 bits or encoded ones, on the number of the
///         device's multiprocessors. Graph-capturable, and a replay reads the lengths of its time. One `d_temp` serves
///         one call at a time.
/// @par Cost  One launch. Each row held is loaded once for up to 16 query rows of its group (or 64): for decoding, once
///            (more query rows, or more than 8 of rows of 129 to 256 channels: once per 16 or 8, from the L2 cache
///            where it holds them). Rows of 16 bits (that 16-byte loads may read) and rows in the library's formats go
///            through tensor cores from compute capability 8.0 on, if their channels are a multiple of 16, up to 512,
///            or 576 of a latent's keys (in formats up to 256): 1 to 8 query rows cost the same (of more than 256
///            channels, and of latents: 1 to 16), a latent's values are taken from its keys, and blocks have equal
///            shares of all rows, whatever heads hold; more than 16 query rows (prefill chunks, drafts) of the rows'
///            type over rows of 16 bits and up to 128 channels are 64 to a block, which loads a row once for all of
///            them, and rows that none of them sees not at all. Products are summed in float there, of queries as they
///            are (of 16 bits and turned as a head's keys are: rounded to half precision again); a weight is rounded as
///            the output is, to 16 bits or not below 2^-22, of encoded rows times the scale of its channels. Encoded
///            rows are loaded as they are and become operands in registers: formats of heads may differ in one launch.
///            Long prefill chunks over encoded rows, latents or more channels, or of float queries over rows of 16
///            bits, are better served by kernels with larger tiles of queries.
template <class Q, class QLayout, AttentionCache Cache, class O, class OLayout>
cudaError_t attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                   AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                   AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                   AttentionOptions const& options, cudaStream_t stream) noexcept {
  using T = typename detail::CacheTypes<Cache>::Element;
  constexpr bool latent = detail::is_latent<Cache>;
  constexpr bool coded = detail::is_packed<Cache>;
  static_assert(detail::holds_floats<typename detail::ElementOf<Q>::type> &&
                    (coded || detail::holds_floats<typename detail::ElementOf<T>::type>)&&detail::holds_floats<
                        typename detail::ElementOf<O>::type>,
                "headaware: queries, keys, values and output of attention are float, float16 or bfloat16");
  return detail::guarded([&] {
    if (d_temp == nullptr) {
      detail::check_attention_shape(shape, options);
    } else {
      detail::check_attention(shape, queries, cache, output, options);
      detail::check_cache_pointers(cache, bounds.max_rows > 0);
    }
    constexpr auto where = "attend";
    constexpr std::int64_t most = detail::max_wide_channels;
    constexpr std::int64_t most_keys = latent ? detail::max_latent_row : most;
    require(shape.head_dim <= most_keys, "head_dim", {"at most ", most_keys}, shape.head_dim, where);
    require(shape.output_dim() <= most, "value_dim", {"at most ", most}, shape.output_dim(), where);
    require(bounds.max_rows >= 0, "max_rows", ">= 0", bounds.max_rows, where);
    if (shape.num_sequences == 0 || shape.query_tokens == 0) {
      if (d_temp == nullptr) temp_bytes = 0;
      return;
    }
    AttentionQueries const q{detail::element_pointer(queries.data), queries.layout};
    AttentionOutput const out{detail::element_pointer(output.data), output.layout, output.lse};
    if constexpr (coded) {
      detail::attend_coded(d_temp, temp_bytes, shape, q, cache, out, bounds, options, stream);
    } else {
      detail::attend_elements(d_temp, temp_bytes, shape, q, detail::element_cache(cache), out, bounds, options, stream);
    }
  });
}

/// @brief Merges two outputs over different keys, as the CPU's `merge_attention`.
/// @param[in,out] into   device; read and written, `lse` included
/// @param[in]     other  device
/// @param[in]     sinks  device, [num_query_heads], learned sinks of parts that were attended to without; nullptr: none
/// @param[in]     stream enqueued here, not synchronised
/// @return cudaErrorInvalidValue on what the CPU's refuses; launch errors
/// @note   Deterministic; graph-capturable
/// @par Cost  One launch
template <class A, class ALayout, class B, class BLayout>
cudaError_t merge_attention(AttentionShape const& shape, AttentionOutput<A, ALayout> const& into,
                            AttentionOutput<B, BLayout> const& other, float const* sinks,
                            cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    constexpr auto where = "merge_attention";
    detail::check_merge(shape, into, other, sinks);
    std::int64_t const rows = std::int64_t{shape.num_sequences} * shape.num_query_heads * shape.query_tokens;
    if (rows == 0) return;
    constexpr std::int64_t per_block = detail::block_threads / detail::warp_threads;
    std::int64_t const blocks = (rows + per_block - 1) / per_block;
    require(blocks <= detail::max_blocks, "blocks", detail::max_blocks_text, blocks, where);
    AttentionOutput const a{detail::element_pointer(into.data), into.layout, into.lse};
    AttentionOutput const b{detail::element_pointer(other.data), other.layout, other.lse};
    using ElementA = std::remove_pointer_t<decltype(a.data)>;
    using ElementB = std::remove_pointer_t<decltype(b.data)>;
    detail::launch(where, detail::merge_kernel<ElementA, ALayout, ElementB, BLayout>, static_cast<unsigned>(blocks),
                   detail::block_threads, 0, stream, shape, a, b, sinks, rows);
  });
}

/// @brief The same without learned sinks, or where one of the parts has them.
template <class A, class ALayout, class B, class BLayout>
cudaError_t merge_attention(AttentionShape const& shape, AttentionOutput<A, ALayout> const& into,
                            AttentionOutput<B, BLayout> const& other, cudaStream_t stream) noexcept {
  return merge_attention(shape, into, other, nullptr, stream);
}

}  // namespace device
HEADAWARE_NAMESPACE_END
