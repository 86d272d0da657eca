#pragma once

/// @file
/// Rolling caches of encoded rows whose heads keep tokens of high scores, on CUDA: the appends of
/// `cache/scored_append.cuh` into caches made by `packed_rolling`. A row that moves to a scored slot keeps its codes.

#include <headaware/cache/detail/cuda/packed_append_launch.cuh>
#include <headaware/cache/detail/cuda/packed_scored_kernel.cuh>
#include <headaware/cache/packed_rolling.cuh>
#include <headaware/cache/packed_scored.hpp>
#include <headaware/cache/scored_append.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/launch.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Launches an append of encoded rows with scores. @pre there are sequences
/// @param channels, segments, d_segments, rows_of, num_copies  as `launch_packed_append`
template <class Cache, class U, class Source, class Registry, class Rows>
void launch_packed_scored(Cache const& cache, AppendCounters const& counters, AppendShape const& shape,
                          std::span<LayerKv<U> const> tokens, Source const& source, RowChannels const& channels,
                          std::span<PackedSegment<Registry> const> segments, PackedSegment<Registry> const* d_segments,
                          Rows const& rows_of, ScoredInputs const& inputs, std::int64_t num_copies,
                          cudaStream_t stream) {
  std::int64_t const blocks = scored_blocks(std::ssize(segments), num_copies);
  AppendGrid const grid{shape.first_layer, static_cast<std::int32_t>(tokens.size()), 0, 0,
                        static_cast<std::int32_t>(blocks)};
  auto const base = packed_append_parameters<true>(grid, cache, counters, tokens, source, channels,
                                                   blocks_per_row(segments, channels), d_segments, rows_of);
  using Parameters = PackedScoredParameters<std::remove_const_t<decltype(base)>>;
  Parameters parameters{base, inputs};
  ready_ticket(parameters.counters, blocks, "append", stream);
  launch("append", packed_scored_kernel<Parameters>, static_cast<unsigned>(blocks + num_copies), scored_threads, 0,
         stream, parameters);
}

}  // namespace detail

namespace device {

/// @brief Appends new tokens of every sequence with their scores on the device, each encoded in its head's formats: the
/// bits of the CPU's `append` (`cache/packed_scored.hpp`).
/// @param slots, state, tokens, source, d_counts, max_count, cache, d_segments, options  as the `append` of encoded
/// rows
///                 without scores
/// @param records, scores  as the `append` with scores into plain rows
/// @param stream   enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws (but for lengths and tables, which the host cannot
///         know); launch errors
/// @note   As that `append`
/// @par Cost  As that `append`; rows that move do so in 16-byte accesses
template <LayerRange Tokens, class Source, class Registry>
cudaError_t append(RollingSlotsView const& slots, RollingStateView const& state, Tokens const& tokens,
                   Source const& source, std::int32_t const* d_counts, std::int32_t max_count,
                   PackedDestination<RollingSlotsView, Registry> const& cache,
                   PackedSegment<Registry> const* d_segments, RollingScoresView const& records,
                   TokenScores const& scores, AppendOptions const& options, cudaStream_t stream) noexcept {
  static_assert(!detail::is_layered<Source>, "headaware: packing on a device takes one layout for all layers");
  return detail::guarded([&] {
    auto const layers = layer_span(tokens);
    using Given = std::remove_const_t<std::remove_pointer_t<decltype(layers.front().keys)>>;
    static_assert(detail::holds_floats<typename detail::ElementOf<Given>::type>,
                  "headaware: rows to encode hold float, float16 or bfloat16");
    auto checked =
        detail::check_device_append(slots, state, layers, source, d_counts, max_count, cache, d_segments, options);
    detail::check_token_scores(checked.shape, slots, records, scores);
    if (slots.num_sequences == 0) return;
    if (slots.max_scored == 0) {
      detail::launch_checked(checked, slots, layers, source, cache, d_segments, options, stream);
      return;
    }
    detail::require_high_water(state);
    auto const first = static_cast<std::size_t>(options.first_layer);
    detail::launch_packed_scored(
        detail::RollingAppend{slots}, checked.counters, checked.shape, layers, source, cache.channels.common(),
        detail::segments_of(cache, first, layers.size()), d_segments,
        [&](std::size_t i) { return cache.layers[first + i]; }, {records, scores}, 0, stream);
  });
}

/// @brief Makes sequences continue others, encoded rows, counters, scores and records of scored slots, on the device.
/// @param slots, state, copies, cache, d_segments  as the `copy_sequences` of encoded rows without scores
/// @param records  `RollingScores::view_at(d_memory)` of these slots
/// @return cudaErrorInvalidValue where the CPU's `copy_sequences` throws; launch errors
/// @note   Graph-capturable with these copies. One launch for every 256 copies, and a memset of 4 bytes before the
///         first.
/// @par Cost  The rows that hold something, and the records, read and written once
template <class Registry>
cudaError_t copy_sequences(RollingSlotsView const& slots, RollingStateView const& state,
                           std::span<SequenceCopy const> copies,
                           PackedDestination<RollingSlotsView, Registry> const& cache,
                           PackedSegment<Registry> const* d_segments, RollingScoresView const& records,
                           cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    detail::check_scores(slots, records, "copy_sequences");
    detail::launch_packed_copies(slots, state, copies, cache, d_segments, records, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
