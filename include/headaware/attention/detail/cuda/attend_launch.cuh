#pragma once

// Launches of attention's kernels.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/cuda/attend_kernel.cuh>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_workspace.cuh>
#include <headaware/attention/detail/cuda/mma_launch.cuh>
#include <headaware/attention/detail/cuda/wide_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel_limits.cuh>
#include <headaware/detail/cuda/launch.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
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
AttendMemory attend_memory(AttentionShape const& shape, KernelLimits const& limits) {
  using T = typename Parameters::Element;
  constexpr int width = Parameters::width;
  if constexpr (width == narrow_width) {
    constexpr std::int32_t limit = attend_dynamic_bytes<Queries, Parameters>;
    return AttendMemory::of<T>(shape.head_dim, shape.output_dim(), Queries, width, limit, limit, max_attend_rows);
  }
  constexpr std::int32_t few_rows = Parameters::latent ? warp_threads : min_attend_rows;
  return AttendMemory::of<T>(shape.head_dim, Parameters::latent ? 0 : shape.output_dim(), Queries, width,
                             limits.block_bytes, limits.bytes_of(2), few_rows);
}

template <int Queries, int Width, class Q, class QLayout, class Cache, class O, class OLayout>
void launch_attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                   AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                   AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                   AttentionOptions const& options, cudaStream_t stream) {
  constexpr auto where = "attend";
  using Parameters = AttendParameters<Q, QLayout, Cache, O, OLayout, Width>;
  constexpr bool latent = Parameters::latent;
  KvSplit kv = KvSplit::of(shape, Queries, attend_split_rows(Queries));
  kv.tile_rows = Queries;
  if (latent) kv.split_rows = std::min(kv.split_rows, max_latent_split_rows);
  AttendWorkspace const work(d_temp, temp_bytes, shape, kv, Queries, bounds.max_rows, latent);
  if (!work.placed()) return;

  static KernelLimitsByDevice kept;
  auto const kernel = attend_kernel<Queries, Parameters>;
  KernelLimits const limits = kept.of(kernel, where);
  AttendMemory const memory = attend_memory<Queries, Parameters>(shape, limits);
  bool wide_values = false;
  if constexpr (!latent) wide_values = wide_rows(cache.values, cache.view, shape.output_dim());
  Parameters const parameters{shape,
                              queries,
                              cache,
                              output,
                              options.first_positions,
                              attention_window(options),
                              options.sinks,
                              logit_map(shape, options),
                              kv,
                              bounds,
                              work.arrays(),
                              memory,
                              wide_rows(cache.keys, cache.view, shape.head_dim),
                              wide_values};
  launch(launch_order(limits, options.overlap_launches), where, kernel, work.grid(limits.processors),
         attend_block_threads<Queries, Parameters>, memory.bytes, stream, parameters);
}

/// A cache by the names of elements that the core knows.
template <class Cache>
auto element_cache(Cache const& cache) {
  auto const* const keys = element_pointer(cache.keys);
  if constexpr (is_latent<Cache>) {
    return LatentCache{keys, cache.view};
  } else {
    return KeptCache{keys, element_pointer(cache.values), cache.view};
  }
}

/// Attention over rows of elements on plain float units, by the kernel for as many query rows and channels.
template <class Q, class QLayout, class Cache, class O, class OLayout>
void attend_plain(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                  AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                  AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                  AttentionOptions const& options, cudaStream_t stream) {
  auto const launch = [&]<int Queries, int Width>() {
    launch_attend<Queries, Width>(d_temp, temp_bytes, shape, queries, cache, output, bounds, options, stream);
  };
  constexpr int narrow = narrow_width;
  constexpr int wide = wide_width;
  std::int64_t const rows = shape.query_rows();
  if constexpr (!is_latent<Cache>) {
    if (std::max(shape.head_dim, shape.output_dim()) <= max_narrow_channels) {
      // Rows of 16 bits that are here are the exception (alignment, odd channels, old devices): one kernel for all, and
      // for wide ones.
      if constexpr (is_mma_element<typename CacheTypes<Cache>::Element>) {
        return launch.template operator()<8, narrow>();
      } else {
        if (rows <= 1) return launch.template operator()<1, narrow>();
        if (rows <= 4) return launch.template operator()<4, narrow>();
        if (rows <= 8) return launch.template operator()<8, narrow>();
        return launch.template operator()<16, narrow>();
      }
    }
  }
  if constexpr (is_mma_element<typename CacheTypes<Cache>::Element>) {
    return launch.template operator()<16, wide>();
  } else {
    if (rows <= 8) return launch.template operator()<8, wide>();
    if constexpr (is_latent<Cache>) {
      if (rows > 16) return launch.template operator()<32, wide>();
    }
    return launch.template operator()<16, wide>();
  }
}

/// Attention over rows of elements: on tensor cores where elements, channels, addresses and device allow it.
template <class Q, class QLayout, class Cache, class O, class OLayout>
void attend_elements(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                     AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                     AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                     AttentionOptions const& options, cudaStream_t stream) {
  auto const plain = [&](void* temp, std::size_t& bytes) {
    attend_plain(temp, bytes, shape, queries, cache, output, bounds, options, stream);
  };
  if constexpr (is_mma_element<typename CacheTypes<Cache>::Element>) {
    bool aligned = wide_rows(cache.keys, cache.view, shape.head_dim);
    if constexpr (!is_latent<Cache>) {
      aligned = aligned && wide_rows(cache.values, cache.view, shape.output_dim());
      if (mma_channels(shape)) {
        return attend_by_either(d_temp, temp_bytes, aligned, plain, [&](void* temp, std::size_t& bytes) {
          return attend_mma(temp, bytes, shape, queries, cache, output, bounds, options, stream);
        });
      }
    }
    if (wide_channels<Cache>(shape)) {
      using P = WideParameters<Q, QLayout, Cache, O, OLayout>;
      return attend_by_either(d_temp, temp_bytes, aligned, plain, [&](void* temp, std::size_t& bytes) {
        return launch_mma<P>(temp, bytes, shape, queries, cache, output, bounds, options, stream);
      });
    }
  }
  plain(d_temp, temp_bytes);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
