#pragma once

/// @file
/// Appending to pages of single heads on CUDA: the host edits tables, the device writes tokens, in one launch.

#include <headaware/cache/detail/cuda/append_launch.cuh>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A `PageStep` in device memory; borrowed.
struct DevicePageStep {
  std::int32_t const* d_lengths = nullptr;     ///< [num_sequences] `PageStep::lengths`
  std::int32_t const* d_high_water = nullptr;  ///< [num_sequences] `PageStep::high_water`
  std::int32_t const* d_counts = nullptr;      ///< [num_sequences] `PageStep::counts`
  PageCopy const* d_copies = nullptr;          ///< [num_copies] `PageStep::copies`; nullptr where there are none
  std::int32_t num_copies = 0;
  std::int32_t max_count = 0;        ///< bounds the counts; decides the grid
  std::int32_t* d_status = nullptr;  ///< optional: becomes 1 if a count is out of range, whose sequence is left alone
  /// `PageStep::generation`, compared with the tables' when a call is made. Left at `generation_not_known` it is not
  /// compared: tables that have changed since may then give pages to another head, or to none, unnoticed.
  std::uint64_t generation = generation_not_known;
};

namespace detail {

struct DevicePagedAppend : PagedAppend {
  PageCopy const* copies = nullptr;

  /// Loads the head's record in one piece.
  __device__ HeadPagesRows rows(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head, std::int64_t length,
                                std::int64_t high_water) const {
    PagedHead const head = view.head(layer, kv_head);
    return PagedAppend::rows(head, sequence, length, high_water);
  }
};

/// Checks what can be checked of a step that lies in device memory.
inline void check_step(PagedHeadsView const& pages, DevicePageStep const& step) {
  constexpr auto where = "append";
  require(step.max_count >= 0, "max_count", ">= 0", step.max_count, where);
  require(step.num_copies >= 0 && (step.num_copies == 0 || step.d_copies != nullptr), "copies", "as many as counted",
          step.num_copies, where);
  if (step.generation != generation_not_known) check_generation(pages, step.generation);
  bool const missing = step.d_lengths == nullptr || step.d_high_water == nullptr || step.d_counts == nullptr ||
                       pages.heads == nullptr || pages.table == nullptr;
  require(pages.num_sequences == 0 || !missing, "tables", "pointers", "nullptr", where);
}

/// The counters that an append into pages reads; the host advances them.
inline AppendCounters counters_of(PagedHeadsView const& pages, DevicePageStep const& step) {
  AppendCounters counters;
  counters.lengths = step.d_lengths;
  counters.high_water = step.d_high_water;
  counters.counts = step.d_counts;
  counters.status = step.d_status;
  counters.token_limit = pages.token_limit;
  counters.max_count = step.max_count;
  counters.num_sequences = pages.num_sequences;
  return counters;
}

/// Checks an append on the device.
template <class T, class U, class Source>
AppendShape check_device_append(PagedHeadsView const& pages, DevicePageStep const& step,
                                std::span<LayerKv<U> const> tokens, Source const& source, PageStorage<T> const& storage,
                                std::int32_t first_layer) {
  check_step(pages, step);
  AppendShape const shape = check_paged_append(pages, step.max_count, tokens, source, storage, first_layer);
  require(tokens.size() <= max_layers, "layers", "at most 256", tokens.size(), "append");
  return shape;
}

/// Launches it. @pre there are sequences and layers
template <class T, class U, class Source>
void launch_checked(AppendShape const& shape, PagedHeadsView const& pages, DevicePageStep const& step,
                    std::span<LayerKv<U> const> tokens, Source const& source, PageStorage<T> const& storage,
                    cudaStream_t stream) {
  DevicePagedAppend const cache{{pages, storage.page_stride}, step.d_copies};
  launch_append<true>(cache, counters_of(pages, step), shape, pages.max_tokens_held, storage.page_stride, tokens,
                      source, paged_buffers(pages, storage, shape.first_layer), step.num_copies, stream);
}

}  // namespace detail

namespace device {

/// @brief Writes new tokens into the pages that `PagedHeads::append` has given them, on the device.
/// @param pages        `PagedHeads::view_at` of the tables after the step
/// @param step         in device memory, read when the kernel runs
/// @param tokens       keys and values of neighbouring layers, device pointers, at most 256 layers
/// @param source       how each layer's new keys and values lie; its token 0 is the first new one
/// @param storage      the pool's pages, device pointers
/// @param first_layer  cache layer of the first of the new tokens' layers; each layer of a step once
/// @param stream       enqueued here, not synchronised
/// @pre    tables that `source` reads name places for the new tokens (`validate_tables`)
/// @return cudaErrorInvalidValue where the CPU's `append` throws, but for what tables say; launch errors
/// @note   Deterministic; graph-capturable: a graph may be replayed with other tables, lengths and counts in the same
///         memory, and with as many copies (`PagedHeads::padded_copies`). One launch; none without sequences.
/// @par Cost  The bytes that stay are read once and written once, in 16-byte accesses where runs and pointers are
///            aligned to it; of old bytes, only those of copies on write
template <LayerRange Tokens, class Source, class T>
cudaError_t append(PagedHeadsView const& pages, DevicePageStep const& step, Tokens const& tokens, Source const& source,
                   PageStorage<T> const& storage, std::int32_t first_layer, cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    detail::refuse_scored_pages(pages.max_scored, "append");
    auto const layers = layer_span(tokens);
    auto const shape = detail::check_device_append(pages, step, layers, source, storage, first_layer);
    if (pages.num_sequences == 0 || layers.empty()) return;
    detail::launch_checked(shape, pages, step, layers, source, storage, stream);
  });
}

}  // namespace device

HEADAWARE_NAMESPACE_END
