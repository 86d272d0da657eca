#pragma once

/// @file
/// A decoding step's new tokens on their way into pages of single heads, handed over to attention together with the
/// queries.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/attention/rolling_step.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The new tokens of a step, of one layer, and the pages that `PagedHeads::append` has given them.
/// @tparam T, Source, Rotation  as of `RollingStep`
template <class T, class Source, class Rotation = KeepPositions>
struct HeadPagesStep {
  PagedHeadsView pages;     ///< `PagedHeads::view_at` of the tables after the step
  DevicePageStep step;      ///< in device memory; `max_count` at most `query_tokens`
  LayerKv<T const> tokens;  ///< device, the layer's new keys and values
  Source source;            ///< of [sequences, num_kv_heads, query_tokens, channels]
  std::int32_t layer = 0;
  /// Turns new keys and queries to their tokens' positions, which follow each sequence's length. Without it both are
  /// rotated already, or never
  Rotation rotation{};
};
template <class T, class Source>
HeadPagesStep(PagedHeadsView, DevicePageStep, LayerKv<T>, Source) -> HeadPagesStep<std::remove_const_t<T>, Source>;
template <class T, class Source>
HeadPagesStep(PagedHeadsView, DevicePageStep, LayerKv<T>, Source, std::int32_t)
    -> HeadPagesStep<std::remove_const_t<T>, Source>;
template <class T, class Source, class Rotation>
HeadPagesStep(PagedHeadsView, DevicePageStep, LayerKv<T>, Source, std::int32_t, Rotation)
    -> HeadPagesStep<std::remove_const_t<T>, Source, Rotation>;

namespace detail {

/// Checks a step, for the checks of `append` and of `attend` to follow.
template <class T, class Source, class Rotation>
void check_step(AttentionShape const& shape, HeadPagesStep<T, Source, Rotation> const& step,
                PageStorage<T> const& storage) {
  constexpr auto where = "append_and_attend";
  PagedHeadsView const& pages = step.pages;
  require_index(step.layer, pages.num_layers, "layer", where);
  require(shape.num_sequences == pages.num_sequences, "sequences", pages.num_sequences, shape.num_sequences, where);
  bool const own = !storage.layers.empty();
  auto const layer = static_cast<std::size_t>(step.layer);
  require(!own || std::ssize(storage.layers) == pages.num_layers, "layers of the storage's channels", pages.num_layers,
          storage.layers.size(), where);
  check_step_rows(shape, own ? storage.layers[layer] : RowChannels{storage.head_dim, storage.value_dim}, step.rotation);
}

/// Checks all of a call of `append_and_attend` but its storage. @param options  with the positions that masks need
template <class Q, class QLayout, class T, class Source, class Rotation, class O, class OLayout>
void check_append_and_attend(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries,
                             HeadPagesStep<T, Source, Rotation> const& step, PageStorage<T> const& storage,
                             AttentionOutput<O, OLayout> const& output, AttentionOptions const& options) {
  constexpr auto where = "append_and_attend";
  check_step(step.pages, step.step);
  require(step.step.max_count <= shape.query_tokens, "max_count", {"at most ", shape.query_tokens}, step.step.max_count,
          where);
  auto const view =
      HeadPagesView::of_chunk(step.pages, step.layer, step.step.d_lengths, shape.query_tokens, storage.page_stride);
  KeptCache const cache{storage.keys, storage.values, view};
  check_attention(shape, queries, cache, output, options);
  check_cache_pointers(cache, step.pages.max_tokens_held > 0);
  (void)check_paged_append(step.pages, step.step.max_count, std::span<LayerKv<T const> const>(&step.tokens, 1),
                           step.source, storage, step.layer);
  check_new_rows(shape, step.tokens, step.source);
  check_cache_rows(LayerKv<T>{storage.keys, storage.values});
  require(storage.page_stride % 8 == 0, "page stride", "a multiple of 8 (else call append, then attend)",
          storage.page_stride, where);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
