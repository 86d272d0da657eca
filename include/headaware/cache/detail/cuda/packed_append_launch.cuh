#pragma once

#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/detail/cuda/packed_append_kernel.cuh>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/pack_plan.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Segments of some layers of a packed cache.
template <class Cache>
auto segments_of(Cache const& cache, std::size_t first_layer, std::size_t num_layers) {
  auto const begin = static_cast<std::size_t>(cache.first_segments[first_layer]);
  auto const end = static_cast<std::size_t>(cache.first_segments[first_layer + num_layers]);
  return std::span(cache.segments).subspan(begin, end - begin);
}

/// Blocks of channels of a row, of any of these segments at most.
template <class Registry>
std::int32_t blocks_per_row(std::span<PackedSegment<Registry> const> segments, RowChannels const& channels) {
  std::int32_t per_row = 1;
  for (PackedSegment<Registry> const& packed : segments) {
    per_row = std::max(per_row, blocks_of(packed.formats.key, channels.head_dim) +
                                    blocks_of(packed.formats.value, channels.value_dim));
  }
  return per_row;
}

/// Parameters of an append of encoded rows. @param channels, d_segments, rows_of  as `launch_packed_append`
template <bool NeedsHighWater, class Cache, class U, class Source, class Registry, class Rows>
auto packed_append_parameters(AppendGrid const& grid, Cache const& cache, AppendCounters const& counters,
                              std::span<LayerKv<U> const> tokens, Source const& source, RowChannels const& channels,
                              std::int32_t per_row, PackedSegment<Registry> const* d_segments, Rows const& rows_of) {
  using T = typename ElementOf<std::remove_const_t<U>>::type;
  auto const keys = keys_of(source);
  auto const values = values_of(source);
  using Parameters = PackedAppendParameters<T, Cache, std::remove_const_t<decltype(keys)>,
                                            std::remove_const_t<decltype(values)>, Registry, NeedsHighWater>;
  Parameters parameters{grid,
                        cache,
                        counters,
                        keys,
                        values,
                        d_segments,
                        channels,
                        per_row,
                        rows_contiguous(keys, channels.head_dim),
                        rows_contiguous(values, channels.value_dim),
                        {},
                        {},
                        {}};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    parameters.source_keys[i] = element_pointer(tokens[i].keys);
    parameters.source_values[i] = element_pointer(tokens[i].values);
    parameters.kept[i] = rows_of(i);
  }
  return parameters;
}

/// @param max_slots   the most tokens of a head that any append can leave
/// @param channels    of all layers
/// @param segments    of the appended layers
/// @param d_segments  of all layers
/// @param rows        (new tokens' layer) to the buffer that its rows lie in
/// @param num_copies  copies on write of the cache, a block each
template <bool NeedsHighWater, class Cache, class U, class Source, class Registry, class Rows>
void launch_packed_append(Cache const& cache, AppendCounters const& counters, AppendShape const& shape,
                          std::int64_t max_slots, std::span<LayerKv<U> const> tokens, Source const& source,
                          RowChannels const& channels, std::span<PackedSegment<Registry> const> segments,
                          PackedSegment<Registry> const* d_segments, Rows const& rows_of, std::int64_t num_copies,
                          cudaStream_t stream) {
  constexpr auto where = "append";
  std::int32_t const per_row = blocks_per_row(segments, channels);
  std::int64_t const rows_per_head = std::clamp<std::int64_t>(max_slots, 1, std::max<std::int64_t>(1, shape.max_count));
  std::int32_t const rows_per_block = std::clamp(pack_threads / per_row, 1, pack_threads);
  std::int64_t const rows = elements(where, {std::ssize(segments), rows_per_head});
  std::int64_t const blocks = std::max<std::int64_t>(1, (rows + rows_per_block - 1) / rows_per_block);
  require(blocks + num_copies <= max_blocks, "blocks", max_blocks_text, blocks + num_copies, where);
  AppendGrid const grid{shape.first_layer, static_cast<std::int32_t>(tokens.size()),
                        static_cast<std::int32_t>(rows_per_head), rows_per_block, static_cast<std::int32_t>(blocks)};
  auto parameters = packed_append_parameters<NeedsHighWater>(grid, cache, counters, tokens, source, channels, per_row,
                                                             d_segments, rows_of);
  ready_ticket(parameters.counters, blocks, where, stream);
  launch(where, packed_append_kernel<decltype(parameters)>, static_cast<unsigned>(blocks + num_copies), pack_threads, 0,
         stream, parameters);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
