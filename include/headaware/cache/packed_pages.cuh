#pragma once

/// @file
/// Appending encoded rows to pages of single heads on CUDA: the host edits tables, the device encodes tokens, in one
/// launch.

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/cuda/packed_append_launch.cuh>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_pages.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks an append of encoded rows on the device.
template <class U, class Source, class Registry>
AppendShape check_device_append(PagedHeadsView const& pages, DevicePageStep const& step,
                                std::span<LayerKv<U> const> tokens, Source const& source,
                                PackedPages<Registry> const& cache, PackedSegment<Registry> const* d_segments,
                                std::int32_t first_layer) {
  constexpr auto where = "append";
  static_assert(holds_floats<typename ElementOf<std::remove_const_t<U>>::type>,
                "headaware: rows to encode hold float, float16 or bfloat16");
  check_step(pages, step);
  AppendShape const shape = check_packed_pages(pages, step.max_count, tokens, source, cache, first_layer);
  require(tokens.size() <= max_layers, "layers", "at most 256", tokens.size(), where);
  require(cache.channels.alike(), "channels", "one number in all layers", "several", where);
  if (pages.num_sequences != 0 && !tokens.empty()) require_pointer(d_segments, "segments", where);
  return shape;
}

/// Launches it. @pre there are sequences and layers
template <class U, class Source, class Registry>
void launch_checked(AppendShape const& shape, PagedHeadsView const& pages, DevicePageStep const& step,
                    std::span<LayerKv<U> const> tokens, Source const& source, PackedPages<Registry> const& cache,
                    PackedSegment<Registry> const* d_segments, cudaStream_t stream) {
  launch_packed_append<true>(
      DevicePagedAppend{{pages, cache.page_units}, step.d_copies}, counters_of(pages, step), shape,
      pages.max_tokens_held, tokens, source, cache.channels.common(),
      segments_of(cache, static_cast<std::size_t>(shape.first_layer), tokens.size()), d_segments,
      [&](std::size_t) { return cache.rows; }, step.num_copies, stream);
}

}  // namespace detail

namespace device {

/// @brief Encodes new tokens into the pages that `PagedHeads::append` has given them, on the device: the bits of the
/// CPU's `append`.
/// @param pages, step, first_layer  as the `append` into plain rows
/// @param tokens      keys and values of neighbouring layers, device pointers, at most 256 layers; float, `__half` or
///                    `__nv_bfloat16`, or `float16` and `bfloat16`
/// @param source      how all layers' new keys and values lie; its token 0 is the first new one
/// @param cache       made by `packed_pages` for these heads and sequences, all layers of as many channels, its pool on
///                    the device
/// @param d_segments  device, a copy of `cache.segments`, read when the kernel runs
/// @param stream      enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws, but for what tables say; launch errors
/// @note   Deterministic; graph-capturable: a graph may be replayed with other tables, lengths and counts in the same
///         memory, and with as many copies (`PagedHeads::padded_copies`). One launch; none without sequences.
/// @par Cost  The tokens that stay are read once and written once, encoded; of old bytes, only those of copies on write
template <LayerRange Tokens, class Source, class Registry>
cudaError_t append(PagedHeadsView const& pages, DevicePageStep const& step, Tokens const& tokens, Source const& source,
                   PackedPages<Registry> const& cache, PackedSegment<Registry> const* d_segments,
                   std::int32_t first_layer, cudaStream_t stream) noexcept {
  static_assert(!detail::is_layered<Source>, "headaware: packing on a device takes one layout for all layers");
  return detail::guarded([&] {
    detail::refuse_scored_pages(pages.max_scored, "append");
    auto const layers = layer_span(tokens);
    auto const shape = detail::check_device_append(pages, step, layers, source, cache, d_segments, first_layer);
    if (pages.num_sequences == 0 || layers.empty()) return;
    detail::launch_checked(shape, pages, step, layers, source, cache, d_segments, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
