#pragma once

/// @file
/// Attention over kept tokens on CUDA: two launches per call. Nothing is allocated, copied from the host or
/// synchronised, and lengths are read on the device, so a call may be captured in a graph.

#include <headaware/attention/attend.hpp>
#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_kernel.cuh>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_split_kernel.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/merge.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Bounds, known to the host, of lengths that only the device reads.
struct AttentionBounds {
  std::int64_t max_rows = 0;         ///< the most rows of all segments together; decides grid and storage
  std::int32_t* d_status = nullptr;  ///< out, optional: device, one: 0, or 1 if more is held; then nothing is written
};

namespace detail {

/// Whether rows allow 16-byte loads.
template <class T, class View>
bool wide_rows(T const* data, View const& view, std::int64_t channels) {
  constexpr std::int64_t width = 16 / static_cast<std::int64_t>(sizeof(T));
  return channels % width == 0 && row_run(view, channels) % width == 0 &&
         reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

/// Lays out a kernel's shared memory. One over wide rows takes what the driver gives when asked: of two blocks on a
/// multiprocessor where their tiles are not too small then.
template <int Queries, class Parameters>
AttendMemory attend_memory(AttentionShape const& shape, char const* where) {
  using T = typename Parameters::Element;
  constexpr int width = Parameters::width;
  if constexpr (width == narrow_width) {
    constexpr std::int32_t limit = attend_dynamic_bytes<Queries, Parameters>;
    return AttendMemory::of<T>(shape.head_dim, shape.output_dim(), Queries, width, limit, limit, max_attend_rows);
  }
  auto const kernel = attend_kernel<Queries, Parameters>;
  int device = 0;
  int limit = 0;
  int both = 0;
  cudaFuncAttributes attributes{};
  require_cuda(cudaGetDevice(&device), "the current device", where);
  require_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "the device", where);
  require_cuda(cudaDeviceGetAttribute(&both, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device), "the device", where);
  require_cuda(cudaFuncGetAttributes(&attributes, kernel), "the kernel", where);
  auto const fixed = static_cast<std::int32_t>(attributes.sharedSizeBytes);
  constexpr std::int32_t reserved = 1024;  // by CUDA, per block
  constexpr std::int32_t few_rows = Parameters::latent ? warp_threads : min_attend_rows;
  auto const memory = AttendMemory::of<T>(shape.head_dim, Parameters::latent ? 0 : shape.output_dim(), Queries, width,
                                          limit - fixed, both / 2 - fixed - reserved, few_rows);
  if (attributes.maxDynamicSharedSizeBytes < memory.bytes) {
    require_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, memory.bytes),
                 "shared memory", where);
  }
  return memory;
}

template <int Queries, int Width, class Q, class QLayout, class Cache, class O, class OLayout>
void launch_attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                   AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                   AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                   AttentionOptions const& options, cudaStream_t stream) {
  constexpr auto where = "attend";
  using Parameters = AttendParameters<Q, QLayout, Cache, O, OLayout, Width>;
  using View = typename Parameters::View;
  constexpr bool latent = Parameters::latent;
  KvSplit kv = KvSplit::of(shape, Queries, attend_split_rows(Queries));
  kv.tile_rows = Queries;
  if (latent) kv.split_rows = std::min(kv.split_rows, max_latent_split_rows);
  std::int64_t const segments = shape.segments();
  std::int64_t const splits = bounds.max_rows / kv.split_rows + segments;
  require(kv.tiles <= 65535, "tiles of query rows", "at most 65,535", kv.tiles, where);
  std::int64_t const blocks = latent ? splits * kv.tiles : splits;
  require(blocks <= max_blocks, "KV splits", max_blocks_text, blocks, where);
  std::int64_t const parts = splits * kv.tiles * Queries;
  AttendArrays arrays;
  bool const placed = place_buffers(
      d_temp, temp_bytes, where, TempBuffer{arrays.parts, parts}, TempBuffer{arrays.sums, parts * shape.output_dim()},
      TempBuffer{arrays.split_offsets, segments + 1}, TempBuffer{arrays.tickets, segments * kv.tiles});
  if (!placed) return;

  AttendMemory const memory = attend_memory<Queries, Parameters>(shape, where);
  bool wide_values = false;
  if constexpr (!latent) wide_values = wide_rows(cache.values, cache.view, shape.output_dim());
  AttendSplitParameters<View> const split{cache.view, shape, kv, arrays, bounds.max_rows, bounds.d_status};
  launch(where, attend_split_kernel<View>, 1, attend_split_threads, 0, stream, split);
  Parameters const parameters{shape,
                              queries,
                              cache,
                              output,
                              options.first_positions,
                              attention_window(options),
                              options.sinks,
                              logit_map(shape, options),
                              kv,
                              arrays,
                              memory,
                              wide_rows(cache.keys, cache.view, shape.head_dim),
                              wide_values};
  dim3 const grid(static_cast<unsigned>(blocks), latent ? 1U : static_cast<unsigned>(kv.tiles));
  launch(where, attend_kernel<Queries, Parameters>, grid, attend_block_threads<Queries, Parameters>, memory.bytes,
         stream, parameters);
}

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
/// @param[in]     d_temp      device, of any alignment; nullptr: size query
/// @param[in,out] temp_bytes  bytes; depends on `shape`, `bounds.max_rows` and whether the cache is a latent's alone
/// @param[in]     queries     [sequences, num_query_heads, query_tokens, head_dim], by the layout
/// @param[in]     cache       `KeptCache` or `LatentCache`, rows where the view says; pointers may be null where
///                            `bounds.max_rows` is 0
/// @param[out]    output      [sequences, num_query_heads, query_tokens, value_dim], by the layout, and log-sum-exp;
///                            must overlap no input
/// @param[in]     bounds      the most rows of all heads of all sequences together
/// @param[in]     stream      enqueued here, not synchronised
/// @return cudaErrorInvalidValue on what the CPU's `attend` refuses, more than 512 channels (of a latent's row: more
///         than 4,096), rows that shared memory has no room for, or too little storage; launch errors
/// @note   Deterministic; graph-capturable, and a replay reads the lengths of its time. One `d_temp` serves one call at
///         a time.
/// @par Cost  Two launches. Each row held is loaded once for up to 16 query rows of its group: for decoding, once
///            (more query rows: once per 16, from the L2 cache where it holds them; a latent's once per 32, by blocks
///            that run side by side). Long prefill chunks are better served by kernels on tensor cores.
template <class Q, class QLayout, AttentionCache Cache, class O, class OLayout>
cudaError_t attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                   AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                   AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                   AttentionOptions const& options, cudaStream_t stream) noexcept {
  using T = typename detail::CacheTypes<Cache>::Element;
  constexpr bool latent = detail::is_latent<Cache>;
  static_assert(detail::holds_floats<typename detail::ElementOf<Q>::type> &&
                    detail::holds_floats<typename detail::ElementOf<T>::type> &&
                    detail::holds_floats<typename detail::ElementOf<O>::type>,
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
    auto const kv = [&] {
      auto const* const keys = detail::element_pointer(cache.keys);
      if constexpr (latent) {
        return LatentCache{keys, cache.view};
      } else {
        return KeptCache{keys, detail::element_pointer(cache.values), cache.view};
      }
    }();
    AttentionOutput const out{detail::element_pointer(output.data), output.layout, output.lse};
    auto const launch = [&]<int Queries, int Width>() {
      detail::launch_attend<Queries, Width>(d_temp, temp_bytes, shape, q, kv, out, bounds, options, stream);
    };
    constexpr int narrow = detail::narrow_width;
    constexpr int wide = detail::wide_width;
    std::int64_t const rows = shape.query_rows();
    if constexpr (!latent) {
      if (std::max(shape.head_dim, shape.output_dim()) <= detail::max_narrow_channels) {
        if (rows <= 1) return launch.template operator()<1, narrow>();
        if (rows <= 4) return launch.template operator()<4, narrow>();
        if (rows <= 8) return launch.template operator()<8, narrow>();
        return launch.template operator()<16, narrow>();
      }
    }
    if (rows <= 8) return launch.template operator()<8, wide>();
    if constexpr (latent) {
      if (rows > 16) return launch.template operator()<32, wide>();
    }
    return launch.template operator()<16, wide>();
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
