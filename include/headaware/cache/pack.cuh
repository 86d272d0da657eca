#pragma once

/// @file
/// Compaction into packed caches on CUDA: kept rows are encoded in their heads' formats on the way, in one launch.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/cuda/pack_kernel.cuh>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/pack.hpp>
#include <headaware/cache/pack_plan.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Compresses a cache on the device into a packed one: the bits of the CPU's `compress`.
/// @param compaction  `Compaction::on_device`; of its outputs none is written, as the host has planned
/// @param plan        of the compaction and `kept`; its sizes are read here
/// @param d_plan      device, a copy of `plan.bytes()`, 16-byte aligned: read when the kernel runs
/// @param layers      [num_layers] `LayerKv`, device pointers, at most 256 layers
/// @param source      how the keys and values of every layer lie: one layout, or `KvLayouts`
/// @param kept        with buffers on the device; of a rolling cache made with `RollingSlots::view_at`
/// @param rotation    `KeyRotation`, or `{}` to keep positions
/// @param stream      enqueued here, not synchronised
/// @pre    tables of the source, positions and keep-lists are right, which the host cannot see
/// @return cudaErrorInvalidValue where the CPU's `compress` throws, but for what tables say, and on more than 256
///         layers; launch errors
/// @note   Deterministic; graph-capturable. One launch; none where nothing is kept
/// @par Cost  Each kept row is read once, in 16-byte accesses where its channels lie side by side and aligned to it,
///            and written once
template <class Table, LayerRange Layers, class Source, class Form, class Registry, class Rotation = KeepPositions>
cudaError_t compress(DeviceCompaction<Table> const& compaction, PackPlan<Registry> const& plan, void const* d_plan,
                     Layers const& layers, Source const& source, PackedDestination<Form, Registry> const& kept,
                     Rotation const& rotation, cudaStream_t stream) noexcept {
  static_assert(!detail::is_layered<Source>, "headaware: packing on a device takes one layout for all layers");
  return detail::guarded([&] {
    constexpr auto where = "compress";
    auto const pointers = layer_span(layers);
    using Given = std::remove_const_t<std::remove_pointer_t<decltype(pointers.front().keys)>>;
    using T = typename detail::ElementOf<Given>::type;
    static_assert(detail::holds_floats<T>, "headaware: rows to encode hold float, float16 or bfloat16");
    auto const bounds = detail::bounds_of(compaction);
    (void)detail::check_packing<Given>(bounds, pointers, source, kept, rotation, false);
    require(kept.channels.alike(), "channels", "one number in all layers", "several", where);
    require(plan.num_segments() == bounds.num_heads * bounds.num_sequences, "plan's segments",
            bounds.num_heads * bounds.num_sequences, plan.num_segments(), where);
    require(pointers.size() <= detail::max_layers, "layers", "at most 256", pointers.size(), where);
    if (plan.num_blocks() == 0) return;
    detail::check_plan_pointer(d_plan, where);
    auto const keys = detail::keys_of(source);
    auto const values = detail::values_of(source);
    RowChannels const channels = kept.channels.common();
    using Parameters = detail::PackParameters<T, Table, std::remove_const_t<decltype(keys)>,
                                              std::remove_const_t<decltype(values)>, Rotation, Registry, Form>;
    Parameters parameters{compaction.table,
                          keys,
                          values,
                          rotation,
                          static_cast<detail::PackSegment<Registry> const*>(d_plan),
                          plan.num_segments(),
                          plan.num_blocks(),
                          channels,
                          detail::rows_contiguous(keys, channels.head_dim),
                          detail::rows_contiguous(values, channels.value_dim),
                          kept.form,
                          {},
                          {},
                          {}};
    for (std::size_t layer = 0; layer < pointers.size(); ++layer) {
      parameters.source_keys[layer] = detail::element_pointer(pointers[layer].keys);
      parameters.source_values[layer] = detail::element_pointer(pointers[layer].values);
      parameters.kept[layer] = kept.layers[layer];
    }
    std::int64_t const blocks = (plan.num_blocks() + detail::pack_threads - 1) / detail::pack_threads;
    require(blocks <= detail::max_blocks, "blocks", detail::max_blocks_text, blocks, where);
    detail::launch(where, detail::pack_kernel<Parameters>, static_cast<unsigned>(blocks), detail::pack_threads, 0,
                   stream, parameters);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
