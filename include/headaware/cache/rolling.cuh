#pragma once

/// @file
/// Rolling caches on CUDA. Lengths live in device memory, and every call is one launch that reads them there and counts
/// them up, so a step of decoding may be captured in a graph and replayed.

#include <headaware/cache/compact.cuh>
#include <headaware/cache/detail/cuda/append_launch.cuh>
#include <headaware/cache/detail/cuda/rolling_kernels.cuh>
#include <headaware/cache/rolling.hpp>
#include <headaware/detail/cuda/launch.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// @param values  name of `d_values` in messages
inline cudaError_t change_state(char const* where, char const* values, RollingSlotsView const& slots,
                                RollingStateView const& state, std::int32_t const* d_values, StateChange change,
                                cudaStream_t stream) noexcept {
  return guarded([&] {
    require(slots.num_sequences >= 0, "sequences", ">= 0", slots.num_sequences, where);
    if (slots.num_sequences == 0) return;
    bool const whole = state.lengths != nullptr && state.high_water != nullptr && state.status != nullptr;
    require(whole, "state", "pointers, as of RollingStateView::at", "nullptr", where);
    require(d_values != nullptr, values, "a pointer", "nullptr", where);
    auto const blocks =
        static_cast<unsigned>(std::min((slots.num_sequences + block_threads - 1) / block_threads, 1024));
    launch(where, state_kernel<StateParameters>, blocks, block_threads, 0, stream, {slots, state, d_values, change});
  });
}

/// The counters that an append into slots reads, and advances if it is to. @param d_counts  device, [num_sequences]
/// @throws ArgumentError if the state lacks what that needs
inline AppendCounters counters_of(RollingSlotsView const& slots, RollingStateView const& state,
                                  std::int32_t const* d_counts, std::int32_t max_count, bool advance) {
  bool const counts = state.high_water != nullptr && state.ticket != nullptr;
  require(state.lengths != nullptr && (counts || !advance), "state", "pointers, as of RollingStateView::at", "nullptr",
          "append");
  return {state.lengths,
          state.high_water,
          d_counts,
          state.status,
          state.lengths,
          state.high_water,
          advance ? state.ticket : nullptr,
          slots.token_limit,
          max_count,
          slots.num_sequences};
}

/// What an append has checked before it launches anything.
struct CheckedAppend {
  AppendShape shape;
  AppendCounters counters;
};

/// Checks an append on the device. @throws ArgumentError as it refuses
template <class T, class U, class Source>
CheckedAppend check_device_append(RollingSlotsView const& slots, RollingStateView const& state,
                                  std::span<LayerKv<U> const> tokens, Source const& source,
                                  std::int32_t const* d_counts, std::int32_t max_count,
                                  Destination<T, RollingSlotsView> const& cache, AppendOptions const& options) {
  require(max_count >= 0, "max_count", ">= 0", max_count, "append");
  CheckedAppend checked{check_rolling_append(slots, tokens, source, max_count, cache, options), {}};
  require(tokens.size() <= max_layers, "layers", "at most 256", tokens.size(), "append");
  if (slots.num_sequences != 0) {
    checked.counters = counters_of(slots, state, d_counts, max_count, options.advance);
  }
  return checked;
}

/// Launches it. @pre there are sequences
template <class T, class U, class Source>
void launch_checked(CheckedAppend const& checked, RollingSlotsView const& slots, std::span<LayerKv<U> const> tokens,
                    Source const& source, Destination<T, RollingSlotsView> const& cache, AppendOptions const& options,
                    cudaStream_t stream) {
  launch_append<false>(RollingAppend{slots}, checked.counters, checked.shape, slots.max_slots, 0, tokens, source,
                       rolling_buffers(cache, options.first_layer), 0, stream);
}

/// Copies sequences. @param scores  of slots with scored ones
template <class T>
void launch_copies(RollingSlotsView const& slots, RollingStateView const& state, std::span<SequenceCopy const> copies,
                   Destination<T, RollingSlotsView> const& cache, RollingScoresView const& scores,
                   cudaStream_t stream) {
  check_copies(slots, copies, cache);
  require(slots.num_layers <= max_layers, "layers", "at most 256", slots.num_layers, "copy_sequences");
  if (copies.empty()) return;
  bool const whole = state.lengths != nullptr && state.high_water != nullptr && state.ticket != nullptr;
  require(whole, "state", "pointers, as of RollingStateView::at", "nullptr", "copy_sequences");
  CopyTables tables{};
  auto const plane = [&](std::size_t index, T* LayerKv<T>::*tensor, std::int64_t RowChannels::*count) {
    std::uintptr_t addresses = 0;
    std::int64_t run = 0;
    for (std::size_t l = 0; l < cache.layers.size(); ++l) {
      std::int64_t const channels = cache.capacities[l].rows == 0 ? 0 : cache.channels.of(l).*count;
      tables.data[index][l] = cache.layers[l].*tensor;
      tables.channels[index][l] = static_cast<std::int32_t>(channels);
      if (channels == 0) continue;
      addresses |= reinterpret_cast<std::uintptr_t>(cache.layers[l].*tensor);
      run = std::gcd(run, channels);
    }
    constexpr auto element = static_cast<std::int64_t>(sizeof(T));
    auto const width = vector_elements<T>(run, addresses) * element;
    return CopyPlane{static_cast<std::int32_t>(element), static_cast<std::int32_t>(width)};
  };
  auto const keys = plane(0, &LayerKv<T>::keys, &RowChannels::head_dim);
  auto const values = plane(1, &LayerKv<T>::values, &RowChannels::value_dim);
  auto const head_blocks = static_cast<std::int32_t>(
      std::max<std::int64_t>(1, (slots.max_slots + copy_rows_per_block - 1) / copy_rows_per_block));
  clear_tickets(state.ticket, 1, "copy_sequences", stream);
  for (std::size_t done = 0; done < copies.size(); done += max_copies) {
    auto const part = copies.subspan(done, std::min<std::size_t>(max_copies, copies.size() - done));
    std::copy(part.begin(), part.end(), tables.copies);
    CopyParameters const parameters{slots,       state, {keys, values}, static_cast<std::int32_t>(part.size()),
                                    head_blocks, scores};
    std::int64_t const blocks = static_cast<std::int64_t>(part.size()) * slots.num_heads * head_blocks;
    if (blocks == 0) continue;
    require(blocks <= max_blocks, "blocks", max_blocks_text, blocks, "copy_sequences");
    launch("copy_sequences", copy_sequences_kernel<CopyParameters>, static_cast<unsigned>(blocks), block_threads, 0,
           stream, parameters, tables);
  }
}

}  // namespace detail

namespace device {

/// @brief Appends new tokens of every sequence, on the device.
///
/// Only tokens that stay are written: of an append longer than a window and its slack, the last ones (and sinks). A
/// sequence whose count is negative or above `max_count`, or which would exceed the cache's limit, is left alone, and
/// `state.status` becomes 1.
/// @param slots      `RollingSlots::view_at(d_heads)`
/// @param state      counters in device memory: read when the kernel runs, and counted up by its last block unless the
///                   options say otherwise. No other call on the same state may run at the same time
/// @param tokens     keys and values of neighbouring layers, device pointers, at most 256 layers
/// @param source     how each layer's new keys and values lie; its token 0 is the first new one
/// @param d_counts   device, [num_sequences] new tokens of each sequence, read when the kernel runs; nullptr:
///                   `max_count` each
/// @param max_count  bounds the counts; decides the grid
/// @param cache      made by `rolling` with `slots`
/// @param stream     enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws (but for lengths and tables, which the host cannot
///         know); launch errors
/// @note   Deterministic; graph-capturable. One launch; none without sequences. (More than 4,095 blocks that count
///         follow a memset of 4 bytes.)
/// @par Cost  The bytes that stay are read once and written once, in 16-byte accesses where runs and pointers are
///            aligned to it, and about 100 bytes of tables per row; no old byte is read or written
template <LayerRange Tokens, class Source, class T>
cudaError_t append(RollingSlotsView const& slots, RollingStateView const& state, Tokens const& tokens,
                   Source const& source, std::int32_t const* d_counts, std::int32_t max_count,
                   Destination<T, RollingSlotsView> const& cache, AppendOptions const& options,
                   cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    detail::refuse_scored(slots, "append");
    auto const layers = layer_span(tokens);
    auto const checked = detail::check_device_append(slots, state, layers, source, d_counts, max_count, cache, options);
    if (slots.num_sequences == 0) return;
    detail::launch_checked(checked, slots, layers, source, cache, options, stream);
  });
}

/// @brief Counts tokens that `append` has written without counting them.
/// @param slots     `RollingSlots::view_at(d_heads)`
/// @param state     counters in device memory. No other call on the same state may run at the same time
/// @param d_counts  device, [num_sequences], read when the kernel runs; a sequence that cannot take its count is left
///                  alone, and `state.status` becomes 1
/// @param stream    enqueued here, not synchronised
/// @return cudaErrorInvalidValue on missing pointers; launch errors
/// @note   Deterministic; graph-capturable. One launch; none without sequences.
/// @par Cost  O(num_sequences)
inline cudaError_t advance(RollingSlotsView const& slots, RollingStateView const& state, std::int32_t const* d_counts,
                           cudaStream_t stream) noexcept {
  return detail::change_state("advance", "counts", slots, state, d_counts, detail::StateChange::advance, stream);
}

/// @brief Rolls back each sequence's last tokens (speculative decoding). Touches no slot.
/// @param slots     `RollingSlots::view_at(d_heads)`
/// @param state     counters in device memory. No other call on the same state may run at the same time
/// @param d_tokens  device, [num_sequences], read when the kernel runs; where it is negative or more than
///                  `RollingSlotsView::max_rollback` of the sequence, that is left alone, and `state.status` becomes 1
/// @param stream    enqueued here, not synchronised
/// @return cudaErrorInvalidValue on missing pointers; launch errors
/// @note   Deterministic; graph-capturable. One launch; none without sequences.
/// @par Cost  O(num_sequences)
inline cudaError_t rollback(RollingSlotsView const& slots, RollingStateView const& state, std::int32_t const* d_tokens,
                            cudaStream_t stream) noexcept {
  return detail::change_state("rollback", "tokens", slots, state, d_tokens, detail::StateChange::rollback, stream);
}

/// @brief Sets the counters of sequences that `compress` has filled; a length of 0 empties one. Slots with scored ones
/// take 0 alone: `append` fills them.
/// @param slots      `RollingSlots::view_at(d_heads)`
/// @param state      counters in device memory. No other call on the same state may run at the same time
/// @param d_lengths  device, [num_sequences], read when the kernel runs; negative: the sequence stays as it is. Above
///                   the cache's limit: likewise, and `state.status` becomes 1
/// @param stream     enqueued here, not synchronised
/// @return cudaErrorInvalidValue on missing pointers; launch errors
/// @note   Deterministic; graph-capturable. One launch; none without sequences.
/// @par Cost  O(num_sequences)
inline cudaError_t start(RollingSlotsView const& slots, RollingStateView const& state, std::int32_t const* d_lengths,
                         cudaStream_t stream) noexcept {
  return detail::change_state("start", "lengths", slots, state, d_lengths, detail::StateChange::start, stream);
}

/// @brief Makes sequences continue others, rows and counters, on the device.
/// @param copies  host, read before the call returns; no sequence copied to twice, or copied from and to
/// @param cache   made by `rolling` with `slots`, at most 256 layers
/// @return cudaErrorInvalidValue where the CPU's `copy_sequences` throws; launch errors
/// @note   Graph-capturable with these copies. One launch for every 256 copies, and a memset of 4 bytes before the
/// first.
/// @par Cost  The rows that hold something, read and written once
template <class T>
cudaError_t copy_sequences(RollingSlotsView const& slots, RollingStateView const& state,
                           std::span<SequenceCopy const> copies, Destination<T, RollingSlotsView> const& cache,
                           cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    detail::refuse_scored(slots, "copy_sequences");
    detail::launch_copies(slots, state, copies, cache, RollingScoresView{}, stream);
  });
}

}  // namespace device

HEADAWARE_NAMESPACE_END
