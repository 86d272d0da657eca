#pragma once

/// @file
/// Rows that an engine has encoded already into packed caches and back on CUDA, bit for bit, in one launch.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_engine_rows.hpp>
#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/cuda/engine_rows_kernel.cuh>
#include <headaware/cache/engine_rows_plan.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks a move of rows and launches it. @param bounds  of the plan, for this direction
template <class Of, class Byte, class Tensors, class Form, class Registry>
void launch_engine_rows(Of const& token_of, CacheBounds const& bounds, EngineRowsPlan const& plan, void const* d_plan,
                        std::span<LayerKv<Byte> const> layers, Tensors const& tensors,
                        PackedDestination<Form, Registry> const& cache, char const* what, char const* where,
                        cudaStream_t stream) {
  static_assert(!is_layered<Tensors>, "headaware: rows on a device take one layout for all layers");
  std::int32_t const width = check_engine_tensors(bounds, layers, tensors, cache, what, where);
  auto const segments = static_cast<std::int64_t>(cache.segments.size());
  require(plan.num_segments() == segments, "plan's segments", segments, plan.num_segments(), where);
  require(layers.size() <= max_layers, "layers", "at most 256", layers.size(), where);
  if (plan.num_units() == 0) return;
  check_plan_pointer(d_plan, where);
  auto const keys = keys_of(tensors);
  auto const values = values_of(tensors);
  using Parameters =
      EngineRowsParameters<Of, std::remove_const_t<decltype(keys)>, std::remove_const_t<decltype(values)>, Form>;
  Parameters parameters{token_of,
                        keys,
                        values,
                        cache.form,
                        static_cast<EngineRowsSegment const*>(d_plan),
                        plan.num_segments(),
                        plan.num_units(),
                        width,
                        {},
                        {},
                        {}};
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    parameters.engine_keys[layer] = layers[layer].keys;
    parameters.engine_values[layer] = layers[layer].values;
    parameters.rows[layer] = cache.layers[layer];
  }
  std::int64_t const blocks = (plan.num_units() + pack_threads - 1) / pack_threads;
  require(blocks <= max_blocks, "blocks", max_blocks_text, blocks, where);
  launch(where, engine_rows_kernel<Parameters>, static_cast<unsigned>(blocks), pack_threads, 0, stream, parameters);
}

}  // namespace detail

namespace device {

/// @brief Takes the kept tokens of an engine's encoded cache into a packed one, bit for bit, on the device: the bytes
/// of the CPU's `import_rows`, which says how tensors and formats are described.
/// @param compaction  `Compaction::on_device`; of its outputs none is written, as the host has planned
/// @param plan        of the compaction and `kept`; its sizes are read here
/// @param d_plan      device, a copy of `plan.bytes()`, 16-byte aligned: read when the kernel runs
/// @param layers      [num_layers] `LayerKv<std::byte const>`, device pointers, at most 256 layers
/// @param source      how the rows of every layer lie, in bytes: one layout, or `KvLayouts`
/// @param kept        with buffers on the device; of a rolling cache made with `RollingSlots::view_at`
/// @param stream      enqueued here, not synchronised
/// @pre    tables of the source and keep-lists are right, which the host cannot see
/// @return cudaErrorInvalidValue where the CPU's `import_rows` throws, but for what tables say, and on more than 256
///         layers; launch errors
/// @note   Deterministic; graph-capturable. One launch for all layers; none where nothing is kept
/// @par Cost  Each kept row is read once, in accesses of 4 bytes, or 2 or 1 where pointers or strides are aligned to no
///            more, and written once in accesses of 16
template <class Table, LayerRange Layers, class Source, class Form, class Registry>
cudaError_t import_rows(DeviceCompaction<Table> const& compaction, EngineRowsPlan const& plan, void const* d_plan,
                        Layers const& layers, Source const& source, PackedDestination<Form, Registry> const& kept,
                        cudaStream_t stream) noexcept {
  return detail::guarded([&] {
    constexpr auto where = "import_rows";
    require(compaction.num_segments() == plan.num_segments(), "plan's segments", compaction.num_segments(),
            plan.num_segments(), where);
    detail::launch_engine_rows(detail::TokensKept<Table>{compaction.table}, detail::bounds_of(compaction), plan, d_plan,
                               layer_span(layers), source, kept, "destination", where, stream);
  });
}

/// @brief Writes all rows of a packed cache into an engine's tensors, bit for bit, on the device: the bytes of the
/// CPU's `export_rows`, row i as token i of its head.
/// @param plan    of the compaction whose rows the cache holds, and of `kept`; its sizes are read here
/// @param d_plan  device, a copy of `plan.bytes()`, 16-byte aligned: read when the kernel runs
/// @param kept    with buffers on the device; of a rolling cache made with `RollingSlots::view_at`
/// @param layers  [num_layers] `LayerKv<std::byte>`, device pointers, at most 256 layers
/// @param target  how the rows of every layer lie, in bytes: one layout, or `KvLayouts`
/// @param stream  enqueued here, not synchronised
/// @pre    tables of the target are right, which the host cannot see
/// @return cudaErrorInvalidValue where the CPU's `export_rows` throws, but for what tables say, and on more than 256
///         layers; launch errors
/// @note   Deterministic; graph-capturable. One launch for all layers; none where nothing is kept
/// @par Cost  Each row is read once in accesses of 16 bytes, and written once in accesses of 4, or 2 or 1 where
/// pointers
///            or strides are aligned to no more
template <LayerRange Layers, class Target, class Form, class Registry>
cudaError_t export_rows(EngineRowsPlan const& plan, void const* d_plan, PackedDestination<Form, Registry> const& kept,
                        Layers const& layers, Target const& target, cudaStream_t stream) noexcept {
  static_assert(!std::is_const_v<LayerElement<Layers>>, "headaware: rows go out into LayerKv<std::byte>");
  return detail::guarded([&] {
    detail::launch_engine_rows(detail::TokensInOrder{}, plan.bounds_of_rows(), plan, d_plan, layer_span(layers), target,
                               kept, "source", "export_rows", stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
