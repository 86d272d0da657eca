#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_workspace.cuh>
#include <headaware/attention/detail/cuda/coded_kernel.cuh>
#include <headaware/attention/detail/cuda/coded_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_launch.cuh>
#include <headaware/attention/detail/cuda/mma_numbers.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel_limits.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

template <int Queries, class Q, class QLayout, class Registry, class View, class O, class OLayout>
void launch_coded(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                  AttentionQueries<Q, QLayout> const& queries, PackedCache<Registry, View> const& cache,
                  AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                  AttentionOptions const& options, cudaStream_t stream) {
  constexpr auto where = "attend";
  using Parameters = CodedParameters<Q, QLayout, Registry, View, O, OLayout>;
  KvSplit kv = KvSplit::of(shape, Queries, coded_split_rows(Queries));
  kv.tile_rows = Queries;
  AttendWorkspace const work(d_temp, temp_bytes, shape, kv, Queries, bounds.max_rows, false);
  if (!work.placed()) return;

  auto const memory = CodedMemory::of<Registry>(shape.head_dim, shape.output_dim(), Queries);
  auto const kernel = coded_kernel<Queries, Parameters>;
  static KernelLimitsByDevice kept;
  KernelLimits const limits = kept.of(kernel, where);
  require(memory.bytes <= limits.block_bytes, "shared memory in bytes", {"at most ", limits.block_bytes}, memory.bytes,
          where);
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
                              memory};
  launch(launch_order(limits, options.overlap_launches), where, kernel, work.grid(limits.processors), attend_threads,
         memory.bytes, stream, parameters);
}

/// Attention over encoded rows on plain float units, by the kernel for as many query rows.
template <class Q, class QLayout, class Registry, class View, class O, class OLayout>
void attend_coded_plain(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                        AttentionQueries<Q, QLayout> const& queries, PackedCache<Registry, View> const& cache,
                        AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                        AttentionOptions const& options, cudaStream_t stream) {
  std::int64_t const padded = CodedRowSizes<Registry>::padded(shape.output_dim());
  require(padded <= max_wide_channels, "value_dim in whole rotated blocks", {"at most ", max_wide_channels}, padded,
          "attend");
  auto const launch = [&]<int Queries>() {
    launch_coded<Queries>(d_temp, temp_bytes, shape, queries, cache, output, bounds, options, stream);
  };
  // Rows that products of tensor cores could take are here by exception (odd channels, old devices): one kernel for
  // all.
  if constexpr (MmaFormats<Registry>::known) {
    return launch.template operator()<8>();
  } else {
    std::int64_t const rows = shape.query_rows();
    if (rows <= 1) return launch.template operator()<1>();
    if (rows <= 4) return launch.template operator()<4>();
    if (rows <= 8) return launch.template operator()<8>();
    return launch.template operator()<16>();
  }
}

/// Attention over encoded rows: on tensor cores where formats, channels and device allow it.
template <class Q, class QLayout, class Registry, class View, class O, class OLayout>
void attend_coded(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                  AttentionQueries<Q, QLayout> const& queries, PackedCache<Registry, View> const& cache,
                  AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                  AttentionOptions const& options, cudaStream_t stream) {
  auto const plain = [&](void* temp, std::size_t& bytes) {
    attend_coded_plain(temp, bytes, shape, queries, cache, output, bounds, options, stream);
  };
  if constexpr (MmaFormats<Registry>::known) {
    if (mma_channels(shape)) {
      return attend_by_either(d_temp, temp_bytes, true, plain, [&](void* temp, std::size_t& bytes) {
        return attend_mma(temp, bytes, shape, queries, cache, output, bounds, options, stream);
      });
    }
  }
  plain(d_temp, temp_bytes);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
