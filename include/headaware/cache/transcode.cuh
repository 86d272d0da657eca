#pragma once

/// @file
/// A packed cache written again in other formats on CUDA, in one launch.

#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/check_transcode.hpp>
#include <headaware/cache/detail/cuda/transcode_kernel.cuh>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/transcode.hpp>
#include <headaware/cache/transcode_plan.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Writes a packed cache again in other formats, and another form if wanted: the bits of the CPU's `transcode`,
/// as lossy.
/// @param plan    of both caches; its sizes are read here
/// @param d_plan  device, a copy of `plan.bytes()`, 16-byte aligned: read when the kernel runs
/// @param from    with buffers on the device; of a rolling cache made with `RollingSlots::view_at`, of pages with
///                `PagedHeads::view_at`, whose tables are read when the kernel runs
/// @param to      likewise, its buffers apart from those of `from`
/// @param stream  enqueued here, not synchronised
/// @pre    pages hold what the compaction keeps, and the device's tables are copies of those at its lengths
/// @return cudaErrorInvalidValue on caches of other layers or channels than the plan's, layers whose channels differ,
///         buffers that lack or overlap, pages to write that sequences share, and more than 256 layers; launch errors
/// @note   Deterministic; graph-capturable. One launch; none where nothing is kept
/// @par Cost  Each row is read once and written once, 64 channels a thread
template <class From, class To, class Registry>
cudaError_t transcode(TranscodePlan<Registry> const& plan, void const* d_plan,
                      PackedDestination<From, Registry> const& from, PackedDestination<To, Registry> const& to,
                      cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    constexpr auto where = "transcode";
    std::size_t const layers = to.capacities.size();
    require(to.layers.size() == layers, "destination", {"buffers of ", layers, " layers"}, to.layers.size(), where);
    require(from.layers.size() == layers, "source", {"buffers of ", layers, " layers"}, from.layers.size(), where);
    require(layers <= detail::max_layers, "layers", "at most 256", layers, where);
    auto const segments = static_cast<std::int64_t>(to.segments.size());
    require(plan.num_segments() == segments, "plan's segments", segments, plan.num_segments(), where);
    require(from.channels.alike() && to.channels.alike(), "channels", "one number in all layers", "several", where);
    RowChannels const channels = to.channels.common();
    require(from.channels.common() == channels, "source's channels", {channels.head_dim, " and ", channels.value_dim},
            {from.channels.common().head_dim, " and ", from.channels.common().value_dim}, where);
    if (plan.num_rows() == 0) return;
    for (std::size_t layer = 0; layer < layers; ++layer) {
      bool const any = to.capacities[layer].num_kv_heads > 0 && to.buffer_units(layer) > 0;
      detail::check_pointer(from.layers[layer], any, "source", where, layer);
      detail::check_pointer(to.layers[layer], any, "destination", where, layer);
    }
    detail::check_transcoded_buffers(from, to, where);
    detail::check_plan_pointer(d_plan, where);
    constexpr std::int32_t chunk = detail::TranscodeChunk<Registry>::channels;
    auto const chunks = [](std::int64_t count) { return static_cast<std::int32_t>((count + chunk - 1) / chunk); };
    detail::TranscodeParameters<Registry, From, To> parameters{
        static_cast<detail::TranscodeSegment<Registry> const*>(d_plan),
        plan.num_segments(),
        plan.num_rows(),
        channels,
        chunks(channels.head_dim),
        chunks(channels.head_dim) + chunks(channels.value_dim),
        from.form,
        to.form,
        {},
        {}};
    for (std::size_t layer = 0; layer < layers; ++layer) {
      parameters.from[layer] = from.layers[layer];
      parameters.to[layer] = to.layers[layer];
    }
    std::int64_t const threads = plan.num_rows() * parameters.row_chunks;
    std::int64_t const blocks = (threads + detail::pack_threads - 1) / detail::pack_threads;
    require(blocks <= detail::max_blocks, "blocks", detail::max_blocks_text, blocks, where);
    detail::launch(where, detail::transcode_kernel<decltype(parameters)>, static_cast<unsigned>(blocks),
                   detail::pack_threads, 0, stream, parameters);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
