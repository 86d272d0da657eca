#pragma once

/// @file
/// Pages of single heads that keep tokens of high scores, on CUDA: the host edits tables, the device chooses the tokens
/// that stay and writes rows, in one launch.

#include <headaware/cache/detail/cuda/paged_scored_kernel.cuh>
#include <headaware/cache/detail/cuda/scored_kernel.cuh>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/paged_scored.hpp>
#include <headaware/cache/scored_append.cuh>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Writes new tokens, which come with their scores, into the pages that `PagedHeads::append` has given them, on
/// the device: the rows, scores and records of the CPU's `append` (`cache/paged_scored.hpp`), bit for bit.
/// @param pages, step, tokens, source, storage, first_layer  as the `append` without scores
/// @param records  `RollingScores::view_at(d_memory)`, of `RollingScores(pages.slots())`
/// @param scores   device, of the new tokens, in any strides; read when the kernel runs
/// @param stream   enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws, but for what tables say; launch errors
/// @note   As the `append` without scores: deterministic, graph-capturable, one launch
/// @par Cost  The bytes that stay are read once and written once, and once more where a token moves from the window's
///            pages to a scored slot: at most one a new token. Of old bytes, those of copies on write: of a head's
///            pages of scored slots all, by one block, with the first token after a fork. Records as the `append` with
///            scores to a rolling cache
template <LayerRange Tokens, class Source, class T>
cudaError_t append(PagedHeadsView const& pages, DevicePageStep const& step, Tokens const& tokens, Source const& source,
                   PageStorage<T> const& storage, RollingScoresView const& records, TokenScores const& scores,
                   std::int32_t first_layer, cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    auto const layers = layer_span(tokens);
    auto const shape = detail::check_device_append(pages, step, layers, source, storage, first_layer);
    detail::check_token_scores(shape, pages, records, scores);
    if (pages.num_sequences == 0 || layers.empty()) return;
    if (pages.max_scored == 0) {
      detail::launch_checked(shape, pages, step, layers, source, storage, stream);
      return;
    }
    detail::launch_scored(detail::DevicePagedAppend{{pages, storage.page_stride}, step.d_copies},
                          detail::counters_of(pages, step), shape, storage.page_stride, layers, source,
                          detail::paged_buffers(pages, storage, first_layer), {records, scores}, step.num_copies,
                          stream);
  });
}

/// @brief Makes an empty sequence continue another: edits the tables, and copies scores and records on the device.
/// @param pages, from, to  as `PagedHeads::fork`
/// @param d_heads  device, a copy of `PagedHeads::head_bytes()`, read when the kernel runs
/// @param records  `RollingScores::view_at(d_memory)`, of `RollingScores(pages.slots())`
/// @param stream   enqueued here, not synchronised: of the appends before and after
/// @return cudaErrorInvalidValue where the CPU's `fork` throws; launch errors. The tables are then unchanged
/// @note   One launch; none without scored slots
/// @par Cost  As the CPU's; the records are read and written once
inline cudaError_t fork(PagedHeads& pages, std::int32_t from, std::int32_t to, void const* d_heads,
                        RollingScoresView const& records, cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    constexpr auto where = "fork";
    PagedHeadsView const view = pages.view_at(d_heads, nullptr);
    detail::check_scores(view.max_scored, view.slots_id, records, where);
    require(view.max_scored == 0 || d_heads != nullptr, "heads", "a pointer", "nullptr", where);
    pages.fork(from, to, [&] {
      if (view.max_scored == 0) return;
      detail::launch(where, detail::copy_records_kernel<PagedHeadsView>, static_cast<unsigned>(view.num_heads),
                     detail::scored_threads, 0, stream, view, records, SequenceCopy{from, to});
    });
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
