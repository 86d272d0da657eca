#pragma once

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/cuda/append_kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
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

/// One tensor of an append. @param row_run  elements in which the cache's rows are aligned
template <class T, class U, class Layout, class Buffers>
AppendPlane<Layout> append_plane_of(Layout const& layout, std::int64_t channels, std::int64_t row_run,
                                    std::span<LayerKv<U> const> tokens, Buffers const& buffers, U* LayerKv<U>::*source,
                                    T* LayerKv<T>::*target, PlanePointers& pointers) {
  std::uintptr_t addresses = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    pointers.source[i] = tokens[i].*source;
    pointers.kept[i] = buffers(i).data.*target;
    addresses |=
        reinterpret_cast<std::uintptr_t>(pointers.source[i]) | reinterpret_cast<std::uintptr_t>(pointers.kept[i]);
  }
  std::int64_t const run = std::gcd(std::gcd(channel_run(layout), row_run), channels);
  auto const width = vector_elements<T>(run, addresses) * static_cast<std::int64_t>(sizeof(T));
  return {layout, static_cast<std::int32_t>(channels), static_cast<std::int32_t>(sizeof(T)),
          static_cast<std::int32_t>(width)};
}

/// @param max_slots   the most tokens of a head that any append can leave
/// @param row_stride  elements in which rows of pages are aligned beyond their channels; 0: none
/// @param num_copies  copies on write of the cache, a block each
template <bool NeedsHighWater, class Cache, class U, class Source, class Buffers>
void launch_append(Cache const& cache, AppendCounters const& counters, AppendShape const& shape, std::int64_t max_slots,
                   std::int64_t row_stride, std::span<LayerKv<U> const> tokens, Source const& source,
                   Buffers const& buffers, std::int64_t num_copies, cudaStream_t stream) {
  using T = std::remove_const_t<U>;
  static_assert(sizeof(T) <= 8 && (sizeof(T) & (sizeof(T) - 1)) == 0, "headaware: elements have 1, 2, 4 or 8 bytes");
  auto const keys = keys_of(source);
  auto const values = values_of(source);
  using Parameters =
      CountedAppend<Cache, std::remove_const_t<decltype(keys)>, std::remove_const_t<decltype(values)>, NeedsHighWater>;
  AppendTables tables{};
  auto const run = [&](std::int64_t channels) { return std::gcd(channels, row_stride); };
  auto const key_plane = append_plane_of<T>(keys, shape.head_dim, run(shape.head_dim), tokens, buffers,
                                            &LayerKv<U>::keys, &LayerKv<T>::keys, tables.planes[0]);
  auto const value_plane = append_plane_of<T>(values, shape.value_dim, run(shape.value_dim), tokens, buffers,
                                              &LayerKv<U>::values, &LayerKv<T>::values, tables.planes[1]);
  std::int64_t const rows_per_head = std::clamp<std::int64_t>(max_slots, 1, std::max<std::int64_t>(1, shape.max_count));
  // One access per thread: a decoding step has few rows, which are to spread over the device.
  std::int64_t const accesses = shape.head_dim * key_plane.element_bytes / key_plane.vector_bytes +
                                shape.value_dim * value_plane.element_bytes / value_plane.vector_bytes;
  auto const rows_per_block =
      static_cast<std::int32_t>(std::clamp<std::int64_t>(block_threads / accesses, 1, max_append_rows));
  std::int64_t const segments = static_cast<std::int64_t>(tokens.size()) * shape.num_sequences * shape.num_kv_heads;
  std::int64_t const rows = segments * rows_per_head;
  std::int64_t const blocks = std::max<std::int64_t>(1, (rows + rows_per_block - 1) / rows_per_block);
  require(blocks + num_copies <= max_blocks, "blocks", max_blocks_text, blocks + num_copies, "append");
  Parameters const parameters{{cache, counters, key_plane, value_plane, shape.first_layer,
                               static_cast<std::int32_t>(tokens.size()), shape.num_kv_heads,
                               static_cast<std::int32_t>(rows_per_head), rows_per_block,
                               static_cast<std::int32_t>(blocks)}};
  static_assert(sizeof(parameters) + sizeof(tables) <= max_parameter_bytes, "headaware: too much for one launch");
  // An earlier append that failed may have left a count.
  if (counters.ticket != nullptr) clear_tickets(counters.ticket, 1, "append", stream);
  launch("append", append_kernel<Parameters>, static_cast<unsigned>(blocks + num_copies), block_threads, 0, stream,
         parameters, tables);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
