#pragma once

/// @file
/// A step's new tokens encoded, appended to a rolling cache of encoded rows and attended to in one launch.

#include <headaware/attention/append_and_attend.cuh>
#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/mma_numbers.cuh>
#include <headaware/attention/rolling_step.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rolling.cuh>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/format/table.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Places the storage of attention, and rows that blocks encode for themselves: only the block with the first tile of a
/// segment's queries writes to the cache, and up to 8 query rows are one tile.
/// @return whether there is any
template <class Registry>
bool place_new_rows(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                    std::span<PackedSegment<Registry> const> segments, std::size_t attend_bytes,
                    std::byte*& attend_temp, CodedRollingLayer& layer) {
  std::int64_t units = 0;
  for (PackedSegment<Registry> const& each : segments) units = std::max<std::int64_t>(units, each.units);
  layer.block_units = shape.query_rows() <= 8 ? 0 : shape.query_tokens * units;
  return place_buffers(d_temp, temp_bytes, "append_and_attend",
                       TempBuffer{attend_temp, static_cast<std::int64_t>(attend_bytes)},
                       TempBuffer{layer.scratch, max_mma_blocks * layer.block_units});
}

}  // namespace detail

namespace device {

/// @brief Encodes a step's new tokens into one layer of a rolling cache of encoded rows and computes attention of its
/// queries over what the cache holds then: `append` and `attend` in one launch, with their bits.
/// @param[in]     d_temp, temp_bytes, shape, queries, output, options, stream  as of the `append_and_attend` of plain
///                            rows; the storage depends on the layer's formats, too
/// @param[in]     step        new keys and values, of any type that `append` encodes, in device memory, and counters
/// @param[in]     cache       made by `packed_rolling` with the step's slots, all layers of as many channels; device
///                            pointers
/// @param[in]     d_segments  device, a copy of `cache.segments`, read when the kernel runs
/// @return cudaErrorInvalidValue where `append` or `attend` returns it, and for what takes two calls: channels that are
///         no multiples of 16 or more than 256, new rows that 16-byte loads cannot read, devices before compute
///         capability 8.0; launch errors
/// @note   Deterministic; graph-capturable with fixed arguments. One `d_temp` serves one call at a time.
/// @par Cost  One launch. New rows are encoded by the blocks that attend to them, before these read the first row; one
///            of them writes to the cache, and no block waits for another.
template <class Q, class QLayout, class T, class Source, class Registry, class O, class OLayout>
cudaError_t append_and_attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                              AttentionQueries<Q, QLayout> const& queries, RollingStep<T, Source> const& step,
                              PackedDestination<RollingSlotsView, Registry> const& cache,
                              PackedSegment<Registry> const* d_segments, AttentionOutput<O, OLayout> const& output,
                              AttentionOptions options, cudaStream_t stream) noexcept {
  static_assert(detail::holds_floats<typename detail::ElementOf<T>::type>,
                "headaware: rows to encode hold float, float16 or bfloat16");
  static_assert(detail::MmaFormats<Registry>::known, "headaware: append_and_attend takes the library's formats; others "
                                                     "take append, then attend");
  return detail::guarded([&] {
    std::int32_t const layer = step.options.first_layer;
    auto const max_count = static_cast<std::int32_t>(shape.query_tokens);
    if (d_temp == nullptr) detail::check_attention_shape(shape, options);
    detail::check_step(shape, step, cache);
    auto const l = static_cast<std::size_t>(layer);
    AttentionBounds const bounds{cache.capacities[l].rows, nullptr};
    if (shape.num_sequences == 0 || shape.query_tokens == 0) {
      if (d_temp == nullptr) temp_bytes = 0;
      return;
    }
    detail::AppendCounters counters;
    PackedSegment<Registry> const* segments = nullptr;
    RowUnit* rows = nullptr;
    if (d_temp != nullptr) {
      counters = detail::check_device_append(step.slots, step.state, std::span<LayerKv<T const> const>(&step.tokens, 1),
                                             step.source, step.d_counts, max_count, cache, d_segments, step.options)
                     .counters;
      rows = cache.layers[l];
      segments = d_segments + cache.first_segments[l];
      detail::take_first_positions(shape, step.state.lengths, options);
      auto const view = RollingView::of_chunk(step.slots, layer, step.state.lengths, shape.query_tokens, step.d_counts);
      detail::check_attention(shape, queries, PackedCache<Registry, RollingView>{rows, segments, view}, output,
                              options);
      detail::check_new_rows(shape, step.tokens, step.source);
    }
    detail::CodedRollingLayer of{{step.slots, layer}, nullptr, 0};
    auto const launch = [&](void* temp, std::size_t& bytes) {
      using E = typename detail::ElementOf<T>::type;
      auto const view = detail::appended_view<E>(step, of, counters, nullptr, nullptr);
      detail::launch_append_and_attend(temp, bytes, shape, queries,
                                       PackedCache<Registry, std::remove_const_t<decltype(view)>>{rows, segments, view},
                                       output, bounds, options, stream);
    };
    std::size_t bytes = 0;
    std::byte* temp = nullptr;
    launch(nullptr, bytes);
    if (detail::place_new_rows(d_temp, temp_bytes, shape, cache.layer(layer), bytes, temp, of)) launch(temp, bytes);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
