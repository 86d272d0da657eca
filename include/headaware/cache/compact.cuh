#pragma once

/// @file
/// Compaction on CUDA: one or two launches for a whole model, nothing else. Nothing is allocated on the device, copied
/// from the host or synchronised, so a call may be captured in a graph and replayed with other
/// lengths in `d_lengths`.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/cuda/compact_launch.cuh>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Compresses a cache on the device: copies the kept tokens of every head to their rows of the destination.
///
/// Two calls, as in CUB: with `d_temp == nullptr` the first only sets `temp_bytes`.
/// @param[in]     d_temp      device, at least `temp_bytes`, of any alignment; nullptr: size query
/// @param[in,out] temp_bytes  bytes: some 8 · (layers · sequences · num_kv_heads + 1)
/// @param[in]     compaction  `Compaction::on_device`; its optional outputs are written too, its `d_offsets` read
/// @param[in]     transfer    keys and values of all layers, device pointers, at most 256 layers
/// @param[in]     stream      enqueued here, not synchronised
/// @pre    d_lengths keep no more than `compaction` was made for: else nothing moves and `d_status` says so. Tables of
///         the source and of pages, and positions, are right, and pages that are written apart from those that are
///         read, which the host cannot see: `validate_tables` checks copies of them
/// @return cudaErrorInvalidValue where `validate(compaction, transfer)` throws, on too little temporary
///         storage and on more than 256 layers; launch errors
/// @note   Deterministic; graph-capturable. 2 launches; 1 with `d_offsets` and without outputs. Without segments (no
///         sequence, layer or head) nothing is launched and no output written.
/// @par Cost  Each kept byte is read once and written once, in 16-byte accesses where the layout's
///            runs and all pointers are aligned to it; windows and sinks that lie side by side as runs of bytes
template <class Table, class T, class Source, class Form, class Rotation>
cudaError_t compress(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& compaction,
                     Transfer<T, Source, Form, Rotation> const& transfer, cudaStream_t stream) noexcept {
  return detail::guarded([&] { detail::compress_transfers(d_temp, temp_bytes, compaction, stream, transfer); });
}

/// @brief Compresses a cache whose tokens have scales, all in the same launch.
/// @param scales  the scales of keys and values as tensors of their own, into the same form of cache
template <class Table, class T, class Source, class Form, class Rotation, class S, class ScaleSource>
cudaError_t compress(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& compaction,
                     Transfer<T, Source, Form, Rotation> const& transfer, Transfer<S, ScaleSource, Form> const& scales,
                     cudaStream_t stream) noexcept {
  return detail::guarded([&] { detail::compress_transfers(d_temp, temp_bytes, compaction, stream, transfer, scales); });
}

/// @brief Compresses keys and values alone.
/// @param layers  [num_layers] `LayerKv`, device pointers
/// @param source  how each layer's keys and values lie
/// @param kept    `ragged`, `padded`, `grouped`, `paged` or `rolling`
template <class Table, LayerRange Layers, class Source, class T, class Form>
cudaError_t compress(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& compaction,
                     Layers const& layers, Source const& source, Destination<T, Form> const& kept,
                     cudaStream_t stream) noexcept {
  return detail::guarded(
      [&] { detail::compress_transfers(d_temp, temp_bytes, compaction, stream, transfer(layers, source, kept)); });
}

/// @brief Moves the kept tokens of every head to the head's first rows, in the cache they are in.
/// @param compaction  `Compaction::on_device`; of its outputs `d_kept` and `d_status` are written (the
///                    latter 1 if a length is out of range or a head evicts too few tokens to turn its keys of 16 bits,
///                    see `KeyRotation::evicting`; such heads stay as they are; else 0). `d_kept` of a head that evicts
///                    too few is its length, as all its tokens are still there; of a length out of range it is not
///                    written
/// @param layers      [num_layers] `LayerKv`, device pointers, at most 256 layers
/// @param source      how each layer's keys and values lie; no two heads may share memory
/// @param rotation    `KeyRotation`, or `{}` to keep positions. After the call a key's position is its row
/// @param stream      enqueued here, not synchronised
/// @pre    tables of the source, positions and keep-lists are right, which the host cannot see: `validate_tables`
/// @return cudaErrorInvalidValue where the CPU's `compress_in_place` throws, but for what tables say; launch errors
/// @note   Deterministic; graph-capturable. One launch, no temporary storage. Without segments (no sequence, layer
///         or head) nothing is launched and no output written.
/// @par Cost  Moves only tokens whose place changes. Blocks share a head whose tokens all move by as many rows, such as
///            a window: one per 64 evicted tokens at most; another takes one block per tensor
template <class Table, LayerRange Layers, class Source, class Rotation = KeepPositions>
cudaError_t compress_in_place(DeviceCompaction<Table> const& compaction, Layers const& layers, Source const& source,
                              Rotation const& rotation, cudaStream_t stream) noexcept {
  return detail::guarded(
      [&] { detail::compress_layers_in_place(compaction, layer_span(layers), source, rotation, stream); });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
