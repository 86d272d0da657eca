#pragma once

/// @file
/// Pages of single heads that hold encoded rows and keep tokens of high scores, on CUDA: the appends of
/// `cache/paged_scored.cuh` into a pool made by `packed_pages`. A row that moves to a scored slot keeps its codes.

#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_pages.cuh>
#include <headaware/cache/packed_pages_scored.hpp>
#include <headaware/cache/packed_scored.cuh>
#include <headaware/cache/paged_scored.cuh>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/layout/per_layer.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Encodes new tokens, which come with their scores, into the pages that `PagedHeads::append` has given them, on
/// the device: the bits of the CPU's `append` (`cache/packed_pages_scored.hpp`).
/// @param pages, step, tokens, source, cache, d_segments, first_layer  as the `append` of encoded rows without scores
/// @param records, scores  as the `append` with scores into plain rows
/// @param stream  enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws, but for what tables say; launch errors
/// @note   As that `append`
/// @par Cost  As that `append`; rows that move do so in 16-byte accesses
template <LayerRange Tokens, class Source, class Registry>
cudaError_t append(PagedHeadsView const& pages, DevicePageStep const& step, Tokens const& tokens, Source const& source,
                   PackedPages<Registry> const& cache, PackedSegment<Registry> const* d_segments,
                   RollingScoresView const& records, TokenScores const& scores, std::int32_t first_layer,
                   cudaStream_t stream) noexcept {
  static_assert(!detail::is_layered<Source>, "headaware: packing on a device takes one layout for all layers");
  return detail::guarded([&] {
    auto const layers = layer_span(tokens);
    auto const shape = detail::check_device_append(pages, step, layers, source, cache, d_segments, first_layer);
    detail::check_token_scores(shape, pages, records, scores);
    if (pages.num_sequences == 0 || layers.empty()) return;
    if (pages.max_scored == 0) {
      detail::launch_checked(shape, pages, step, layers, source, cache, d_segments, stream);
      return;
    }
    detail::launch_packed_scored(
        detail::DevicePagedAppend{{pages, cache.page_units}, step.d_copies}, detail::counters_of(pages, step), shape,
        layers, source, cache.channels.common(),
        detail::segments_of(cache, static_cast<std::size_t>(first_layer), layers.size()), d_segments,
        [&](std::size_t) { return cache.rows; }, {records, scores}, step.num_copies, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
