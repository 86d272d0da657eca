#pragma once

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/cuda/append_kernel.cuh>
#include <headaware/cache/detail/cuda/layer_planes.cuh>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/layer_kinds.cuh>
#include <headaware/detail/cuda/vector_access.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

template <class Cache, class Keys, class Values, bool NeedsHighWater>
struct CountedAppend : AppendParameters<Cache, Keys, Values> {
  static constexpr bool needs_high_water = NeedsHighWater;
};

/// One tensor of an append.
/// @param rows        (new tokens' layer) to `LayoutAndChannels`; no channels: the layer has no such tensor
/// @param row_stride  elements in which rows of pages are aligned beyond their channels; 0: none
template <bool Layered, class T, class U, class Rows, class Buffers>
auto append_plane_of(Rows const& rows, std::int64_t row_stride, std::span<LayerKv<U> const> tokens,
                     Buffers const& buffers, U* LayerKv<U>::*source, T* LayerKv<T>::*target, PlanePointers& pointers) {
  std::uintptr_t addresses = 0;
  std::int64_t run = 0;
  std::int64_t most = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    auto const each = rows(i);
    if (each.channels == 0) continue;
    pointers.source[i] = tokens[i].*source;
    pointers.kept[i] = buffers(i).data.*target;
    addresses |=
        reinterpret_cast<std::uintptr_t>(pointers.source[i]) | reinterpret_cast<std::uintptr_t>(pointers.kept[i]);
    run = std::gcd(run, std::gcd(std::gcd(channel_run(each.layout), row_stride), each.channels));
    most = std::max(most, each.channels);
  }
  // Rows of all layers move in accesses of one width.
  auto const width = vector_elements<T>(run, addresses) * static_cast<std::int64_t>(sizeof(T));
  auto const make = [](auto const& each, std::uintptr_t) {
    return AppendRows<decltype(each.layout)>{each.layout, static_cast<std::int32_t>(each.channels)};
  };
  auto const none = [](std::size_t) -> void const* { return nullptr; };
  auto const of_layers = planes_of<Layered>(tokens.size(), "append", rows, none, none, make);
  return AppendPlane<std::remove_const_t<decltype(of_layers)>>{of_layers, static_cast<std::int32_t>(sizeof(T)),
                                                               static_cast<std::int32_t>(width),
                                                               static_cast<std::int32_t>(most)};
}

/// Calls `f(keys, values)` with both tensors of an append, `AppendPlane`s. @param row_stride  as `append_plane_of`
template <class U, class Source, class Buffers, class F>
void with_append_planes(std::int64_t row_stride, std::span<LayerKv<U> const> tokens, Source const& source,
                        Buffers const& buffers, AppendTables& tables, F const& f) {
  using T = std::remove_const_t<U>;
  static_assert(sizeof(T) <= 8 && (sizeof(T) & (sizeof(T) - 1)) == 0, "headaware: elements have 1, 2, 4 or 8 bytes");
  auto const rows_of = [&](auto const& of) {
    return [&](std::size_t i) {
      CacheBuffers<T> const cache = buffers(i);
      auto const all = of(layer_source(source, i), cache.channels);
      return LayoutAndChannels<decltype(all.layout)>{all.layout, cache.num_kv_heads == 0 ? 0 : all.channels};
    };
  };
  constexpr bool layered = is_layered<Source>;
  f(append_plane_of<layered, T>(rows_of(KeysOf{}), row_stride, tokens, buffers, &LayerKv<U>::keys, &LayerKv<T>::keys,
                                tables.planes[0]),
    append_plane_of<layered, T>(rows_of(ValuesOf{}), row_stride, tokens, buffers, &LayerKv<U>::values,
                                &LayerKv<T>::values, tables.planes[1]));
}

/// @param max_slots   the most tokens of a head that any append can leave
/// @param row_stride  elements in which rows of pages are aligned beyond their channels; 0: none
/// @param num_copies  copies on write of the cache, a block each
template <bool NeedsHighWater, class Cache, class U, class Source, class Buffers>
void launch_append(Cache const& cache, AppendCounters const& counters, AppendShape const& shape, std::int64_t max_slots,
                   std::int64_t row_stride, std::span<LayerKv<U> const> tokens, Source const& source,
                   Buffers const& buffers, std::int64_t num_copies, cudaStream_t stream) {
  AppendTables tables{};
  with_append_planes(row_stride, tokens, source, buffers, tables, [&](auto const& key_plane, auto const& value_plane) {
    using Parameters = CountedAppend<Cache, std::remove_cvref_t<decltype(key_plane)>,
                                     std::remove_cvref_t<decltype(value_plane)>, NeedsHighWater>;
    std::int64_t const rows_per_head =
        std::clamp<std::int64_t>(max_slots, 1, std::max<std::int64_t>(1, shape.max_count));
    // One access a thread: a step of decoding has few rows, and they are to spread over the device.
    auto const accesses_of = [](auto const& plane) {
      return std::int64_t{plane.max_channels} * plane.element_bytes / plane.vector_bytes;
    };
    std::int64_t const accesses = std::max<std::int64_t>(1, accesses_of(key_plane) + accesses_of(value_plane));
    auto const rows_per_block =
        static_cast<std::int32_t>(std::clamp<std::int64_t>(block_threads / accesses, 1, max_append_rows));
    std::int64_t heads = 0;  // of the appended layers, or more
    for (std::size_t i = 0; i < tokens.size(); ++i) heads += buffers(i).num_kv_heads;
    std::int64_t const segments = heads * shape.num_sequences;
    std::int64_t const rows = segments * rows_per_head;
    std::int64_t const blocks = std::max<std::int64_t>(1, (rows + rows_per_block - 1) / rows_per_block);
    require(blocks + num_copies <= max_blocks, "blocks", max_blocks_text, blocks + num_copies, "append");
    AppendGrid const grid{shape.first_layer, static_cast<std::int32_t>(tokens.size()),
                          static_cast<std::int32_t>(rows_per_head), rows_per_block, static_cast<std::int32_t>(blocks)};
    AppendCounters own = counters;
    ready_ticket(own, blocks, "append", stream);
    Parameters const parameters{{grid, cache, own, key_plane, value_plane}};
    static_assert(sizeof(parameters) + sizeof(tables) <= max_parameter_bytes, "headaware: too much for one launch");
    launch("append", append_kernel<Parameters>, static_cast<unsigned>(blocks + num_copies), block_threads, 0, stream,
           parameters, tables);
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
