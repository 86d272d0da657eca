#pragma once

/// @file
/// Rolling caches whose heads keep tokens of high scores beside sinks and a window, on CUDA. Scores and records live in
/// device memory beside lengths and rows; `advance` and `rollback` of `cache/rolling.cuh` serve these caches, too.

#include <headaware/cache/detail/cuda/append_launch.cuh>
#include <headaware/cache/detail/cuda/scored_kernel.cuh>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/scored_append.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Blocks of an append with scores: one a head of a sequence of the appended layers.
/// @param segments    of these layers @param num_copies  blocks after them
inline std::int64_t scored_blocks(std::int64_t segments, std::int64_t num_copies) {
  std::int64_t const blocks = std::max<std::int64_t>(1, segments);
  require(blocks + num_copies <= max_blocks, "blocks", max_blocks_text, blocks + num_copies, "append");
  return blocks;
}
/// Scored slots go by the high-water marks, also where nothing is counted.
inline void require_high_water(RollingStateView const& state) {
  require(state.high_water != nullptr, "state", "pointers, as of RollingStateView::at", "nullptr", "append");
}

/// Launches an append with scores. @pre there are sequences
/// @param buffers, row_stride, num_copies  as `launch_append`
template <class Cache, class U, class Source, class Buffers>
void launch_scored(Cache const& cache, AppendCounters const& counters, AppendShape const& shape,
                   std::int64_t row_stride, std::span<LayerKv<U> const> tokens, Source const& source,
                   Buffers const& buffers, ScoredInputs const& inputs, std::int64_t num_copies, cudaStream_t stream) {
  AppendTables tables{};
  with_append_planes(row_stride, tokens, source, buffers, tables, [&](auto const& keys, auto const& values) {
    using Parameters =
        ScoredAppendParameters<Cache, std::remove_cvref_t<decltype(keys)>, std::remove_cvref_t<decltype(values)>>;
    std::int64_t heads = 0;  // of the appended layers, or more
    for (std::size_t i = 0; i < tokens.size(); ++i) heads += buffers(i).num_kv_heads;
    std::int64_t const blocks = scored_blocks(heads * shape.num_sequences, num_copies);
    AppendCounters own = counters;
    ready_ticket(own, blocks, "append", stream);
    AppendGrid const grid{shape.first_layer, static_cast<std::int32_t>(tokens.size()), 0, 0,
                          static_cast<std::int32_t>(blocks)};
    Parameters const parameters{{grid, cache, own, keys, values}, inputs};
    static_assert(sizeof(parameters) + sizeof(tables) <= max_parameter_bytes, "headaware: too much for one launch");
    launch("append", scored_append_kernel<Parameters>, static_cast<unsigned>(blocks + num_copies), scored_threads, 0,
           stream, parameters, tables);
  });
}

}  // namespace detail

namespace device {

/// @brief Appends new tokens of every sequence with their scores, on the device, to heads of every policy that a
/// rolling cache takes: the rows, scores and records of the CPU's `append` (`cache/scored_append.hpp`), bit for bit.
/// @param slots, state, tokens, source, d_counts, max_count, cache, options  as the `append` without scores
/// @param records  `RollingScores::view_at(d_memory)` of these slots
/// @param scores   device, of the new tokens, in any strides; read when the kernel runs
/// @param stream   enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws (but for lengths and tables, which the host cannot
///         know); launch errors
/// @note   Deterministic; graph-capturable. One launch; none without sequences. (More than 4,095 blocks, one a KV head
///         of each sequence and layer, follow a memset of 4 bytes where they count.)
/// @par Cost  The bytes that stay are read once and written once, and once more where a token moves from its ring to a
///            scored slot: at most one a new token. A warp looks at `scored + slack` records of 16 bytes for each token
///            that enters, and once a call; tokens of a prompt that go are passed over 32 at a time
template <LayerRange Tokens, class Source, class T>
cudaError_t append(RollingSlotsView const& slots, RollingStateView const& state, Tokens const& tokens,
                   Source const& source, std::int32_t const* d_counts, std::int32_t max_count,
                   Destination<T, RollingSlotsView> const& cache, RollingScoresView const& records,
                   TokenScores const& scores, AppendOptions const& options, cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    auto const layers = layer_span(tokens);
    auto const checked = detail::check_device_append(slots, state, layers, source, d_counts, max_count, cache, options);
    detail::check_token_scores(checked.shape, slots, records, scores);
    if (slots.num_sequences == 0) return;
    if (slots.max_scored == 0) {
      detail::launch_checked(checked, slots, layers, source, cache, options, stream);
      return;
    }
    detail::require_high_water(state);
    detail::launch_scored(detail::RollingAppend{slots}, checked.counters, checked.shape, 0, layers, source,
                          detail::rolling_buffers(cache, options.first_layer), {records, scores}, 0, stream);
  });
}

/// @brief Makes sequences continue others, rows, counters, scores and records of scored slots, on the device.
/// @param slots, state, copies, cache  as the `copy_sequences` without scores
/// @param records  `RollingScores::view_at(d_memory)` of these slots
/// @return cudaErrorInvalidValue where the CPU's `copy_sequences` throws; launch errors
/// @note   Graph-capturable with these copies. One launch for every 256 copies, and a memset of 4 bytes before the
///         first.
/// @par Cost  The rows that hold something, and the records, read and written once
template <class T>
cudaError_t copy_sequences(RollingSlotsView const& slots, RollingStateView const& state,
                           std::span<SequenceCopy const> copies, Destination<T, RollingSlotsView> const& cache,
                           RollingScoresView const& records, cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    detail::check_scores(slots, records, "copy_sequences");
    detail::launch_copies(slots, state, copies, cache, records, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
