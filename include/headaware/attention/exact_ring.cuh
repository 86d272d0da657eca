#pragma once

/// @file
/// Exact rings beside rolling caches of encoded rows on CUDA: new tokens go into both.

#include <headaware/attention/exact_ring.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rolling.cuh>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>

#include <cuda_runtime_api.h>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Appends new tokens of every sequence on the device into encoded slots and into the ring beside them: the bits
/// of the CPU's `append` into both. Attention follows with two calls of `attend`, to `RingedCache::beside` and
/// `of_ring`, and a merge.
///
/// The ring is written first and counts nothing; the append into the encoded slots after it counts the tokens once for
/// both, if `options.advance` says so (set it to false in all but the last call of a step that goes layer by layer).
/// Other calls that change counters (`start`, `rollback`, `advance`) take `with_ring(slots, ring_slots)`; a prompt is
/// compressed into both, and a fork copies both.
/// @param slots, state, tokens, source, d_counts, max_count, packed, d_segments, options  as the `append` into encoded
///                    rows; `slots` and `ring_slots` from `RollingSlots::view_at`
/// @param ring_slots  of the same layers, heads, sequences and slack, a policy such as `SinkWindow{4, 16}` for every
/// head
/// @param ring        made by `rolling` with `ring_slots`, rows of the tokens' type, buffers on the device
/// @param stream      enqueued here, not synchronised
/// @pre    as both appends
/// @return cudaErrorInvalidValue, before anything is launched, where the CPU's `append` throws (but for lengths and
///         tables, which the host cannot know); launch errors
/// @note   Deterministic; graph-capturable. Two launches; none without sequences. (More than 4,095 blocks that count
///         follow a memset of 4 bytes.) A sequence whose count is out of range or beyond the limit of either is left
///         alone in both, and `state.status` becomes 1
/// @par Cost  As both appends: the tokens that stay are read twice and written twice; no old byte is read or written
template <LayerRange Tokens, class Source, class Registry, class T>
cudaError_t append(RollingSlotsView const& slots, RollingStateView const& state, Tokens const& tokens,
                   Source const& source, std::int32_t const* d_counts, std::int32_t max_count,
                   PackedDestination<RollingSlotsView, Registry> const& packed,
                   PackedSegment<Registry> const* d_segments, RollingSlotsView const& ring_slots,
                   Destination<T, RollingSlotsView> const& ring, AppendOptions const& options,
                   cudaStream_t stream) noexcept {
  // Slots with the limits of both, so that both leave the same sequences alone.
  RollingSlotsView const both = with_ring(slots, ring_slots);
  RollingSlotsView of_ring = ring_slots;
  of_ring.token_limit = both.token_limit;
  AppendOptions without_counting = options;
  without_counting.advance = false;
  return detail::guarded([&] {
    detail::check_ring_slots(slots, ring_slots);
    auto const layers = layer_span(tokens);
    auto const in_slots =
        detail::check_device_append(both, state, layers, source, d_counts, max_count, packed, d_segments, options);
    auto const in_ring =
        detail::check_device_append(of_ring, state, layers, source, d_counts, max_count, ring, without_counting);
    if (slots.num_sequences == 0) return;
    detail::launch_checked(in_ring, of_ring, layers, source, ring, without_counting, stream);
    detail::launch_checked(in_slots, both, layers, source, packed, d_segments, options, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
