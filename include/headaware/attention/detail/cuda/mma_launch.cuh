#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/chunk_kernel.cuh>
#include <headaware/attention/detail/cuda/chunk_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_kernel.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/wide_kernel.cuh>
#include <headaware/attention/detail/cuda/wide_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel_limits.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// How a device runs a kernel on tensor cores.
template <class P>
auto mma_kernel_of() {
  if constexpr (P::chunk) {
    return chunk_kernel<P>;
  } else if constexpr (P::wide) {
    return wide_kernel<P>;
  } else {
    return mma_kernel<P>;
  }
}

struct MmaLaunch {
  std::int32_t warps = 0;  ///< of a block; 0: the device, or the code for it, has none of the instructions, or no room
  std::int32_t stages = 0;
  std::int32_t tile_rows = mma_rows;
  std::int32_t shared_bytes = 0;
  std::int64_t blocks = 0;  ///< that the device runs at once
  LaunchOrder order = LaunchOrder::after;

  /// For decoding two blocks on a multiprocessor if each has two tiles a warp then, else one, of fewer warps if need
  /// be; as many tiles as there is room for. For chunks as many blocks as there is room for. Of wide rows one block,
  /// and large tiles where there is room for three.
  template <class P>
  static MmaLaunch of(bool overlap, char const* where) {
    static KernelLimitsByDevice kept;
    KernelLimits const limits = kept.of(mma_kernel_of<P>(), where);
    MmaLaunch launch;
    if (limits.ptx_version < 80) return launch;
    launch.warps = max_mma_warps;
    std::int32_t resident = 1;
    std::int32_t room = limits.block_bytes;
    if constexpr (P::chunk) {
      launch.stages = 1;
      launch.shared_bytes = P::shared_bytes;
      resident = chunk_blocks;
      while (resident > 1 && launch.shared_bytes > limits.bytes_of(resident)) --resident;
    } else if constexpr (P::wide) {
      launch.tile_rows = P::shared_bytes(P::most_rows, 3) <= room ? P::most_rows : P::least_rows;
      launch.stages = P::most_stages + 1;
      while (launch.stages > 2 && P::shared_bytes(launch.tile_rows, launch.stages) > room) --launch.stages;
      launch.shared_bytes = P::shared_bytes(launch.tile_rows, launch.stages);
      launch.warps = launch.shared_bytes <= room ? P::warps : 0;
      if (launch.warps == 0) return launch;
    } else {
      if (P::shared_bytes(max_mma_warps, 2) <= limits.bytes_of(2)) {
        resident = 2;
        room = limits.bytes_of(2);
      }
      while (launch.warps > 1 && P::shared_bytes(launch.warps, 2) > room) launch.warps /= 2;
      launch.stages = max_mma_stages;
      while (launch.stages > 2 && P::shared_bytes(launch.warps, launch.stages) > room) --launch.stages;
      launch.shared_bytes = P::shared_bytes(launch.warps, launch.stages);
    }
    launch.blocks = std::int64_t{limits.processors} * resident;
    launch.order = launch_order(limits, overlap);
    require(launch.shared_bytes <= room, "shared memory in bytes", {"at most ", room}, launch.shared_bytes, where);
    return launch;
  }
};

/// Whether `mma_kernel` takes rows of as many channels.
inline bool mma_channels(AttentionShape const& shape) {
  auto const fits = [](std::int64_t channels) { return channels % 16 == 0 && channels <= max_mma_channels; };
  return fits(shape.head_dim) && fits(shape.output_dim());
}

/// @return whether it was launched, or its storage told: else the device has no code of it
template <class P, class Q, class QLayout, class Cache, class O, class OLayout>
bool launch_mma(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                AttentionOptions const& options, cudaStream_t stream) {
  constexpr auto where = "attend";
  std::int64_t const segments = shape.segments();
  KvSplit kv = KvSplit::of(shape, P::queries, P::unit_rows);
  kv.split_rows = P::unit_rows;  // whatever the number of query tiles
  std::int64_t const tiles = bounds.max_rows / mma_rows + segments;
  require(tiles <= max_blocks, "tiles of rows", max_blocks_text, tiles, where);
  // Storage depends on no type but the cache's: for chunks as much where queries are of a type for which there is no
  // kernel of theirs.
  bool const chunk = !P::coded && is_chunk(shape);
  std::int64_t const query_tiles = chunk ? (shape.query_rows() - 1) / max_decode_queries + 1 : kv.tiles;
  std::int64_t const most_blocks =
      query_tiles < max_mma_blocks ? std::min(tiles * query_tiles, max_mma_blocks) : max_mma_blocks;
  std::int64_t const parts = 2 * most_blocks * (chunk ? chunk_queries : P::queries);
  AttendArrays arrays;
  if (!place_buffers(d_temp, temp_bytes, where, TempBuffer{arrays.parts, parts},
                     TempBuffer{arrays.sums, parts * shape.output_dim()},
                     TempBuffer{arrays.tickets, 4 * most_blocks + 1})) {
    return true;
  }
  MmaLaunch const how = MmaLaunch::of<P>(options.overlap_launches, where);
  if (how.warps == 0) return false;
  arrays.signature = new_ticket_signature<SignedTicket>();
  bool const wide_queries =
      channel_run(queries.layout) % 8 == 0 && reinterpret_cast<std::uintptr_t>(queries.data) % 16 == 0;
  bool const wide_output =
      channel_run(output.layout) % 4 == 0 && reinterpret_cast<std::uintptr_t>(output.data) % (4 * sizeof(O)) == 0;
  bool const output_rows = rows_contiguous(output.layout, shape.output_dim()) &&
                           channel_run(output.layout) * static_cast<std::int64_t>(sizeof(O)) % 16 == 0 &&
                           reinterpret_cast<std::uintptr_t>(output.data) % 16 == 0;
  P parameters{{shape, queries, cache, output, options.first_positions, attention_window(options), options.sinks,
                logit_map(shape, options), kv, bounds, arrays, how.stages, wide_queries, wide_output,
                wide_queries && rows_contiguous(queries.layout, shape.head_dim), output_rows}};
  if constexpr (P::wide) parameters.tile_rows = how.tile_rows;
  launch(how.order, where, mma_kernel_of<P>(), static_cast<unsigned>(std::min(how.blocks, most_blocks)),
         how.warps * warp_threads, how.shared_bytes, stream, parameters);
  return true;
}

/// Attention over rows of 16 bits, or encoded ones, on tensor cores, by the kernel for as many query rows and channels.
/// @pre `mma_channels`; with storage: rows allow 16-byte loads; encoded ones: `MmaFormats`. @return as `launch_mma`
template <class Q, class QLayout, class Cache, class O, class OLayout>
bool attend_mma(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                AttentionOptions const& options, cudaStream_t stream) {
  // Pages that are copied on write: by the kernel for decoding alone.
  if constexpr (has_chunk_kernel<Q, Cache> && !has_page_copies<RowsOf<typename CacheTypes<Cache>::View>>) {
    if (is_chunk(shape)) {
      using P = ChunkParameters<Q, QLayout, Cache, O, OLayout>;
      return launch_mma<P>(d_temp, temp_bytes, shape, queries, cache, output, bounds, options, stream);
    }
  }
  auto const launch = [&]<int ChannelTiles, int QueryTiles>() {
    using P = MmaParameters<Q, QLayout, Cache, O, OLayout, ChannelTiles, QueryTiles>;
    return launch_mma<P>(d_temp, temp_bytes, shape, queries, cache, output, bounds, options, stream);
  };
  // Sums of wide rows leave no registers for a second tile of queries.
  if (std::max(shape.head_dim, shape.output_dim()) > max_mma_channels / 2) return launch.template operator()<16, 1>();
  return shape.query_rows() <= 8 ? launch.template operator()<8, 1>() : launch.template operator()<8, 2>();
}

/// Attention on tensor cores, or else on plain float units: storage suffices for both, as alignment and device may be
/// others when the kernels run.
/// @param wide   whether rows allow 16-byte loads
/// @param plain  (d_temp, temp_bytes); @param mma  likewise, returns as `launch_mma`
template <class Plain, class Mma>
void attend_by_either(void* d_temp, std::size_t& temp_bytes, bool wide, Plain const& plain, Mma const& mma) {
  std::size_t plain_bytes = 0;
  std::size_t mma_bytes = 0;
  plain(nullptr, plain_bytes);
  mma(nullptr, mma_bytes);
  std::size_t const needed = std::max(plain_bytes, mma_bytes);
  if (d_temp == nullptr) {
    temp_bytes = needed;
    return;
  }
  require(temp_bytes >= needed, "temporary storage in bytes", needed, temp_bytes, "attend");
  if (wide && mma(d_temp, temp_bytes)) return;
  plain(d_temp, temp_bytes);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
