#pragma once

/// @file
/// Rolling caches of encoded rows on CUDA. Lengths live in device memory, as those of `cache/rolling.cuh`, whose
/// `advance`, `rollback` and `start` serve these caches, too.

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/cuda/packed_append_launch.cuh>
#include <headaware/cache/detail/cuda/packed_rolling_kernel.cuh>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks an append on a device before it is launched.
template <class U, class Source, class Registry>
CheckedAppend check_device_append(RollingSlotsView const& slots, RollingStateView const& state,
                                  std::span<LayerKv<U> const> tokens, Source const& source,
                                  std::int32_t const* d_counts, std::int32_t max_count,
                                  PackedDestination<RollingSlotsView, Registry> const& cache,
                                  PackedSegment<Registry> const* d_segments, AppendOptions const& options) {
  constexpr auto where = "append";
  require(max_count >= 0, "max_count", ">= 0", max_count, where);
  CheckedAppend checked{check_packed_append(slots, tokens, source, max_count, cache, options), {}};
  require(tokens.size() <= max_layers, "layers", "at most 256", tokens.size(), where);
  require(cache.channels.alike(), "channels", "one number in all layers", "several", where);
  require_pointer(d_segments, "segments", where);
  if (slots.num_sequences != 0) {
    checked.counters = counters_of(slots, state, d_counts, max_count, options.advance);
  }
  return checked;
}

/// Launches it. @pre there are sequences
template <class U, class Source, class Registry>
void launch_checked(CheckedAppend const& checked, RollingSlotsView const& slots, std::span<LayerKv<U> const> tokens,
                    Source const& source, PackedDestination<RollingSlotsView, Registry> const& cache,
                    PackedSegment<Registry> const* d_segments, AppendOptions const& options, cudaStream_t stream) {
  auto const first = static_cast<std::size_t>(options.first_layer);
  launch_packed_append<false>(
      RollingAppend{slots}, checked.counters, checked.shape, slots.max_slots, tokens, source, cache.channels.common(),
      segments_of(cache, first, tokens.size()), d_segments, [&](std::size_t i) { return cache.layers[first + i]; }, 0,
      stream);
}

/// Copies sequences. @param scores  of slots with scored ones
template <class Registry>
void launch_packed_copies(RollingSlotsView const& slots, RollingStateView const& state,
                          std::span<SequenceCopy const> copies,
                          PackedDestination<RollingSlotsView, Registry> const& cache,
                          PackedSegment<Registry> const* d_segments, RollingScoresView const& scores,
                          cudaStream_t stream) {
  constexpr auto where = "copy_sequences";
  check_packed_rolling(slots, cache, where);
  check_copies(slots.num_sequences, copies);
  require(slots.num_layers <= max_layers, "layers", "at most 256", slots.num_layers, where);
  if (copies.empty()) return;
  require_pointer(d_segments, "segments", where);
  bool const whole = state.lengths != nullptr && state.high_water != nullptr && state.ticket != nullptr;
  require(whole, "state", "pointers, as of RollingStateView::at", "nullptr", where);
  PackedCopyParameters<Registry> parameters{slots, state, d_segments, 0, 1, scores, {}, {}};
  parameters.blocks_per_head = static_cast<std::int32_t>(
      std::max<std::int64_t>(1, (slots.max_slots + copy_rows_per_block - 1) / copy_rows_per_block));
  std::copy(cache.layers.begin(), cache.layers.end(), parameters.rows);
  clear_tickets(state.ticket, 1, where, stream);
  for (std::size_t done = 0; done < copies.size(); done += max_copies) {
    auto const part = copies.subspan(done, std::min<std::size_t>(max_copies, copies.size() - done));
    std::copy(part.begin(), part.end(), parameters.copies);
    parameters.num_copies = static_cast<std::int32_t>(part.size());
    std::int64_t const blocks = static_cast<std::int64_t>(part.size()) * slots.num_heads * parameters.blocks_per_head;
    if (blocks == 0) continue;
    require(blocks <= max_blocks, "blocks", max_blocks_text, blocks, where);
    launch(where, packed_copy_kernel<PackedCopyParameters<Registry>>, static_cast<unsigned>(blocks), block_threads, 0,
           stream, parameters);
  }
}

}  // namespace detail

namespace device {

/// @brief Appends new tokens of every sequence on the device, each encoded in its head's formats: the bits of the CPU's
/// `append`.
/// @param slots, state, d_counts, max_count, options  as the `append` into plain rows
/// @param tokens      keys and values of neighbouring layers, device pointers, at most 256 layers; float, `__half` or
///                    `__nv_bfloat16`, or `float16` and `bfloat16`
/// @param source      how all layers' new keys and values lie; its token 0 is the first new one
/// @param cache       made by `packed_rolling` with `slots`, all layers of as many channels, with buffers on the device
/// @param d_segments  device, a copy of `cache.segments`, read when the kernel runs
/// @param stream      enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws (but for lengths and tables, which the host cannot
///         know); launch errors
/// @note   Deterministic; graph-capturable. One launch; none without sequences. (More than 4,095 blocks that count
///         follow a memset of 4 bytes.)
/// @par Cost  The tokens that stay are read once, in 16-byte accesses where their channels lie side by side and aligned
///            to it, and written once; no old byte is read or written
template <LayerRange Tokens, class Source, class Registry>
cudaError_t append(RollingSlotsView const& slots, RollingStateView const& state, Tokens const& tokens,
                   Source const& source, std::int32_t const* d_counts, std::int32_t max_count,
                   PackedDestination<RollingSlotsView, Registry> const& cache,
                   PackedSegment<Registry> const* d_segments, AppendOptions const& options,
                   cudaStream_t stream) noexcept {
  static_assert(!detail::is_layered<Source>, "headaware: packing on a device takes one layout for all layers");
  return detail::guarded([&] {
    detail::refuse_scored(slots, "append");
    auto const layers = layer_span(tokens);
    using Given = std::remove_const_t<std::remove_pointer_t<decltype(layers.front().keys)>>;
    using T = typename detail::ElementOf<Given>::type;
    static_assert(detail::holds_floats<T>, "headaware: rows to encode hold float, float16 or bfloat16");
    auto const checked =
        detail::check_device_append(slots, state, layers, source, d_counts, max_count, cache, d_segments, options);
    if (slots.num_sequences == 0) return;
    detail::launch_checked(checked, slots, layers, source, cache, d_segments, options, stream);
  });
}

/// @brief Makes sequences continue others, encoded rows and counters, on the device.
/// @param copies      host, read before the call returns; no sequence copied to twice, or copied from and to
/// @param cache       made by `packed_rolling` with `slots`, at most 256 layers
/// @param d_segments  device, a copy of `cache.segments`, read when the kernel runs
/// @return cudaErrorInvalidValue where the CPU's `copy_sequences` throws; launch errors
/// @note   Graph-capturable with these copies. One launch for every 256 copies, and a memset of 4 bytes before the
///         first.
/// @par Cost  The rows that hold something, read and written once, 16 bytes at a time
template <class Registry>
cudaError_t copy_sequences(RollingSlotsView const& slots, RollingStateView const& state,
                           std::span<SequenceCopy const> copies,
                           PackedDestination<RollingSlotsView, Registry> const& cache,
                           PackedSegment<Registry> const* d_segments, cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    detail::refuse_scored(slots, "copy_sequences");
    detail::launch_packed_copies(slots, state, copies, cache, d_segments, RollingScoresView{}, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
