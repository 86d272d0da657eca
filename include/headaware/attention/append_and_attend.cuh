#pragma once

/// @file
/// A step's new tokens appended to a cache and attended to in one launch, for engines that hand over a layer's
/// new keys and values with its queries.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/mma_launch.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/head_pages_step.cuh>
#include <headaware/attention/rolling_step.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rolling.cuh>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Sets the positions of queries that masks need. @param lengths  device, before the append
inline void take_first_positions(AttentionShape const& shape, std::int32_t const* lengths, AttentionOptions& options) {
  require(options.first_positions == nullptr, "first_positions", "nullptr: they are the lengths", "a pointer",
          "append_and_attend");
  if (shape.query_tokens > 1 || options.window != 0) options.first_positions = lengths;
}

/// A layer of a cache as it is after an append of a step's tokens.
/// @param layer         `RollingLayer`, `PagedLayer` or `CodedRollingLayer`
/// @param keys, values  of the cache, where new rows are copied to
template <class E, class Step, class Layer>
auto appended_view(Step const& step, Layer const& layer, AppendCounters const& counters, E* keys, E* values) {
  auto const& keys_layout = keys_of(step.source);
  auto const& values_layout = values_of(step.source);
  return AppendedView<Layer, E, std::remove_cvref_t<decltype(keys_layout)>,
                      std::remove_cvref_t<decltype(values_layout)>, std::remove_cvref_t<decltype(step.rotation)>>{
      layer,
      counters,
      {element_pointer(step.tokens.keys), element_pointer(step.tokens.values), keys, values, keys_layout,
       values_layout},
      step.rotation};
}

/// @param cache  of an `AppendedView`
template <class Q, class QLayout, class Cache, class O, class OLayout>
void launch_append_and_attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                              AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                              AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                              AttentionOptions const& options, cudaStream_t stream) {
  bool const launched =
      attend_mma(d_temp, temp_bytes, shape, AttentionQueries{element_pointer(queries.data), queries.layout}, cache,
                 AttentionOutput{element_pointer(output.data), output.layout, output.lse}, bounds, options, stream);
  require(launched, "device", "compute capability 8.0 or later, and code for it", "another", "append_and_attend");
}

}  // namespace detail

namespace device {

/// @brief Appends a step's new tokens to one layer of a rolling cache and computes attention of its queries over what
/// the cache holds then: `append` and `attend` in one launch, with their results to the bit where nothing is rotated.
///
/// Every new token is written, and seen by its own query and by later ones of its sequence. Sequences that `append`
/// refuses set `state.status`, and their queries see what the cache holds without new tokens.
/// @param[in]     d_temp      device, as of `attend`; nullptr: size query
/// @param[in,out] temp_bytes  bytes; depends on `shape`, the layer's rows and `T` alone
/// @param[in]     shape       counts of the layer; `query_tokens` new tokens of each sequence, at most the
///                            cache's slack and 1
/// @param[in]     queries     device, [sequences, num_query_heads, query_tokens, head_dim], by the layout
/// @param[in]     step        new keys and values, in device memory, and counters
/// @param[in]     cache       made by `rolling` with the step's slots; device pointers
/// @param[out]    output      device, [sequences, num_query_heads, query_tokens, value_dim], by the layout, and
///                            log-sum-exp; must overlap no input
/// @param[in]     options     as of `attend`, without `first_positions`: they are the sequences' lengths
/// @param[in]     stream      enqueued here, not synchronised
/// @return cudaErrorInvalidValue where `append` or `attend` returns it, and for what takes two calls: channels that are
///         no multiples of 16 or more than 256, new rows or a cache that 16-byte loads cannot read, devices before
///         compute capability 8.0; launch errors
/// @note   Deterministic; graph-capturable with fixed arguments. One `d_temp` serves one call at a time.
/// @par Cost  One launch, whether it counts the new tokens or not. New rows are read where they lie by the blocks that
///            attend to them, and written by one of them: no block waits for another.
/// @par Source  Su et al., RoFormer, arXiv:2104.09864 (rotation)
template <class Q, class QLayout, class T, class Source, class Rotation, class O, class OLayout>
cudaError_t append_and_attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                              AttentionQueries<Q, QLayout> const& queries, RollingStep<T, Source, Rotation> const& step,
                              Destination<T, RollingSlotsView> const& cache, AttentionOutput<O, OLayout> const& output,
                              AttentionOptions options, cudaStream_t stream) noexcept {
  using E = typename detail::ElementOf<T>::type;
  static_assert(detail::is_mma_element<E>, "headaware: append_and_attend takes rows of 16 bits; others take append, "
                                           "then attend");
  return detail::guarded([&] {
    std::int32_t const layer = step.options.first_layer;
    if (d_temp == nullptr) detail::check_attention_shape(shape, options);
    detail::check_step(shape, step, cache);
    LayerKv<T> const& buffers = cache.layers[static_cast<std::size_t>(layer)];
    AttentionBounds const bounds{cache.capacities[static_cast<std::size_t>(layer)].rows, nullptr};
    if (shape.num_sequences == 0 || shape.query_tokens == 0) {
      if (d_temp == nullptr) temp_bytes = 0;
      return;
    }
    auto const max_count = static_cast<std::int32_t>(shape.query_tokens);
    if (d_temp != nullptr) {
      detail::take_first_positions(shape, step.state.lengths, options);
      detail::check_append_and_attend(shape, queries, step, cache, output, options);
    }
    auto const counters =
        d_temp == nullptr ? detail::AppendCounters{}
                          : detail::counters_of(step.slots, step.state, step.d_counts, max_count, step.options.advance);
    auto* const keys = detail::element_pointer(buffers.keys);
    auto* const values = detail::element_pointer(buffers.values);
    auto const view = detail::appended_view(step, detail::RollingLayer{step.slots, layer}, counters, keys, values);
    detail::launch_append_and_attend(d_temp, temp_bytes, shape, queries, KeptCache{keys, values, view}, output, bounds,
                                     options, stream);
  });
}

/// @brief The same of a cache in pages of single heads: what `append` into pages and `attend` of `HeadPagesView` do, in
/// one launch, with their results to the bit where nothing is rotated, a KV head has up to 16 query rows and either all
/// sequences have `query_tokens` new tokens or that is 1.
///
/// Pages that others still share are copied on the way (`DevicePageStep::d_copies`), and attention reads them where
/// they were. Sequences that `append` refuses set `DevicePageStep::d_status`, and their queries see what the pages held
/// before.
/// @param[in]     d_temp, temp_bytes, queries, output, options, stream  as above
/// @param[in]     shape    counts of the layer; `query_tokens` new tokens of each sequence, at most the tables' slack
///                         and 1
/// @param[in]     step     new keys and values and tables, in device memory
/// @param[in]     storage  the pool's pages, device pointers
/// @param[in]     bounds   of the layer, as of `attend`: rows after the step. Where the pages show more, nothing is
///                         written, and `d_status` says so
/// @return as above; a page stride that is no multiple of 8 elements takes two calls, too
/// @note   Deterministic; graph-capturable: a graph may be replayed with other tables, lengths and counts in the same
///         memory, and with as many copies (`PagedHeads::padded_copies`)
/// @par Cost  As above. Where `step` allows for copies, every block looks through all of them for each KV head of each
///            sequence that it works on: leave out copies of other layers
template <class Q, class QLayout, class T, class Source, class Rotation, class O, class OLayout>
cudaError_t append_and_attend(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                              AttentionQueries<Q, QLayout> const& queries,
                              HeadPagesStep<T, Source, Rotation> const& step, PageStorage<T> const& storage,
                              AttentionOutput<O, OLayout> const& output, AttentionBounds const& bounds,
                              AttentionOptions options, cudaStream_t stream) noexcept {
  using E = typename detail::ElementOf<T>::type;
  static_assert(detail::is_mma_element<E>, "headaware: append_and_attend takes rows of 16 bits; others take append, "
                                           "then attend");
  return detail::guarded([&] {
    if (d_temp == nullptr) detail::check_attention_shape(shape, options);
    detail::check_step(shape, step, storage);
    require(bounds.max_rows >= 0, "max_rows", ">= 0", bounds.max_rows, "append_and_attend");
    if (shape.num_sequences == 0 || shape.query_tokens == 0) {
      if (d_temp == nullptr) temp_bytes = 0;
      return;
    }
    if (d_temp != nullptr) {
      detail::take_first_positions(shape, step.step.d_lengths, options);
      detail::check_append_and_attend(shape, queries, step, storage, output, options);
    }
    detail::PagedLayer const layer{step.pages, step.step.d_copies, storage.page_stride, step.step.num_copies,
                                   step.layer};
    auto* const keys = detail::element_pointer(storage.keys);
    auto* const values = detail::element_pointer(storage.values);
    auto const view = detail::appended_view(step, layer, detail::counters_of(step.pages, step.step), keys, values);
    detail::launch_append_and_attend(d_temp, temp_bytes, shape, queries, KeptCache{keys, values, view}, output, bounds,
                                     options, stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
