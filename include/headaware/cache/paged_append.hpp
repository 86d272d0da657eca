#pragma once

/// @file
/// Appending to pages of single heads on the CPU.

#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The pool of keys and of values, shared by all layers: [num_pages, page_size, channels], or pages of
/// `page_stride` elements, of which a layer fills the first with its own page size and channels. Host or device memory.
template <class T>
struct PageStorage {
  T* keys = nullptr;
  T* values = nullptr;
  std::int64_t head_dim = 0;     ///< of every layer; where they differ, the most of any
  std::int64_t value_dim = 0;    ///< likewise; 0: of latents alone, which have no values of their own
  std::int64_t page_stride = 0;  ///< elements from a page to the next; 0: page_size * channels, if layers are alike
  /// `LayerChannels::layers()` of a model whose layers differ: `page_stride` has room for `PagedHeads::page_size`
  /// tokens of each (`LayerChannels::page_stride`). Borrowed
  std::span<RowChannels const> layers{};
};

namespace detail {

/// A head of a sequence during an append, with the rows that its scored slots take.
struct PagedScoredHead {
  static constexpr bool in_pages = true;
  RollingHead head;
  HeadPagesRows held;    ///< all that pages of tokens hold after the append
  HeadPagesRows before;  ///< and before it, of a head with scored slots

  /// Where a scored slot's row begins.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t slot_offset(std::int64_t slot, std::int64_t channels) const {
    return held.slot_offset(slot, channels);
  }
  /// Where the row of a token begins that was in the ring before: in a page that no part of the append writes to.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t token_offset(std::int64_t token, std::int64_t channels) const {
    return before.token_offset(token, channels);
  }
  /// Slots, from the first on, whose pages were shared before: all that a sequence of `length` tokens uses, or none.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t moved_slots(std::int64_t length) const {
    std::int64_t const used = head.scored_used(length);
    return used > 0 && held.slot_page(0) != before.slot_page(0) ? used : 0;
  }
  /// Where such a slot's row began.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t moved_offset(std::int64_t slot, std::int64_t channels) const {
    return before.slot_offset(slot, channels);
  }
};

/// A cache in pages of single heads as appends write it.
struct PagedAppend {
  using ScoredHead = PagedScoredHead;
  PagedHeadsView view;
  std::int64_t page_stride = 0;  ///< elements; 0: page_size * channels, layers being alike

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t slack() const { return view.slack; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t max_scored() const { return view.max_scored; }
  /// A head of a sequence of `length` tokens that `count` are appended to. @param high_water  before
  HEADAWARE_HOST_DEVICE ScoredHead scored_head(Segment const& segment, std::int64_t length, std::int64_t count,
                                               std::int64_t high_water) const {
    PagedHead const head = view.head(segment.layer, segment.kv_head);
    ScoredHead result{head.rolling(view.slack), rows(head, segment.sequence, length + count, high_water), {}};
    if (head.scored == 0) return result;
    result.before = rows(head, segment.sequence, length, high_water);
    result.before.pages += head.all_entries();
    return result;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE LayerHeads layer_heads() const { return view.layer_heads(); }
  /// Rows of all that a head's pages hold of a sequence of `length` tokens.
  HEADAWARE_HOST_DEVICE HeadPagesRows rows(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head,
                                           std::int64_t length, std::int64_t high_water) const {
    return rows(view.head(layer, kv_head), sequence, length, high_water);
  }
  HEADAWARE_HOST_DEVICE HeadPagesRows rows(PagedHead const& head, std::int64_t sequence, std::int64_t length,
                                           std::int64_t high_water) const {
    return view.rows(head, sequence, view.held(head, length, high_water > length ? high_water : length), page_stride);
  }
  HEADAWARE_HOST_DEVICE std::int64_t page_offset(std::int64_t page, std::int64_t channels) const {
    return page * (page_stride != 0 ? page_stride : view.page_sizes.common() * channels);
  }
};

/// Throws if the tables have changed since the step: they may give a page to another head, or to none.
inline void check_generation(PagedHeadsView const& view, std::uint64_t generation) {
  require(generation == view.generation, "step", {"the tables' last change, ", view.generation},
          {"change ", generation}, "append");
}

/// Checks that a step is of the tables as they are.
inline void check_step(PagedHeadsView const& view, PageStep const& step) {
  check_generation(view, step.generation);
  for (auto const* each : {&step.counts, &step.lengths, &step.high_water}) {
    require(static_cast<std::int64_t>(each->size()) == view.num_sequences, "step's sequences", view.num_sequences,
            each->size(), "append");
  }
}

/// The pool, which is every layer's. @param first_layer  cache layer of the new tokens' first
template <class T>
auto paged_buffers(PagedHeadsView const& view, PageStorage<T> const& storage, std::int32_t first_layer) {
  auto const elements = [pages = view.num_pages, stride = storage.page_stride](std::int64_t page) {
    return pages == 0 ? 0 : (pages - 1) * (stride != 0 ? stride : page) + page;
  };
  CacheBuffers<T> const pool{
      {storage.keys, storage.values}, 0, 0, {storage.head_dim, storage.value_dim}, view.num_kv_heads,
      view.first_heads == nullptr};
  return [pool, elements, sizes = view.page_sizes, layers = storage.layers,
          first = static_cast<std::size_t>(first_layer)](std::size_t i) {
    CacheBuffers<T> result = pool;
    if (!layers.empty()) result.channels = layers[first + i];
    if (result.channels.head_dim == 0) result.num_kv_heads = 0;  // the layer has no cache
    result.page_size = sizes.of(static_cast<std::int64_t>(first + i));
    result.key_elements = elements(result.page_size * result.channels.head_dim);
    result.value_elements = elements(result.page_size * result.channels.value_dim);
    return result;
  };
}

template <class T, class U, class Source>
AppendShape check_paged_append(PagedHeadsView const& view, std::int64_t max_count, std::span<LayerKv<U> const> tokens,
                               Source const& source, PageStorage<T> const& storage, std::int32_t first_layer) {
  constexpr auto where = "append";
  // Latents alone have no values of their own.
  require_channels(storage.head_dim, storage.value_dim != 0 ? storage.value_dim : 1, where);
  bool const layers_fit = storage.layers.empty() || static_cast<std::int64_t>(storage.layers.size()) == view.num_layers;
  require(layers_fit, "layers of the storage's channels", view.num_layers, storage.layers.size(), where);
  bool const alike = storage.layers.empty() && view.page_sizes.alike();
  require(alike || storage.page_stride > 0, "page stride", "one that the pages of all layers fit, as they differ",
          storage.page_stride, where);
  auto const check_page = [&](std::int64_t size, RowChannels const& row, Text const& place) {
    std::int64_t const page = elements(where, {size, std::max(row.head_dim, row.value_dim)});
    require(storage.page_stride == 0 || storage.page_stride >= page, "page stride", {">= ", page}, storage.page_stride,
            place);
    std::int64_t const stride = storage.page_stride != 0 ? storage.page_stride : page;
    check_extent(where, page, std::array{LayoutDirection{view.num_pages, stride}});
  };
  RowChannels const common{storage.head_dim, storage.value_dim};
  if (alike) check_page(view.page_sizes.common(), common, where);
  std::int64_t const end = std::min<std::int64_t>(view.num_layers, first_layer + std::ssize(tokens));
  for (std::int64_t layer = std::max(first_layer, 0); layer < end && !alike; ++layer) {
    RowChannels const& row = storage.layers.empty() ? common : storage.layers[static_cast<std::size_t>(layer)];
    check_page(view.page_sizes.of(layer), row, {where, ", layer ", layer});
  }
  AppendShape const shape{.first_layer = first_layer,
                          .num_sequences = view.num_sequences,
                          .heads = view.layer_heads(),
                          .max_count = max_count,
                          .writes = view.max_tokens_held > 0,
                          .page_stride = storage.page_stride};
  check_append(shape, tokens, source, paged_buffers(view, storage, first_layer));
  return shape;
}

/// Checks an append on the CPU.
template <class T, class U, class Source>
AppendShape check_host_append(PagedHeads const& pages, PageStep const& step, std::span<LayerKv<U> const> tokens,
                              Source const& source, PageStorage<T> const& storage, std::int32_t first_layer) {
  PagedHeadsView const view = pages.view();
  check_step(view, step);
  AppendShape const shape = check_paged_append(view, step.max_count, tokens, source, storage, first_layer);
  check_append_tables(source, shape, paged_buffers(view, storage, first_layer), tokens.size(), step.counts);
  return shape;
}

/// Whether a copy on write is one of the layers of an append.
inline bool is_of_append(PageCopy const& copy, AppendShape const& shape, std::size_t layers) {
  return copy.layer >= shape.first_layer && copy.layer < shape.first_layer + static_cast<std::int64_t>(layers);
}

/// Copies shared pages and writes new tokens, which have been checked.
template <class T, class U, class Source>
void append_checked(AppendShape const& shape, PagedHeads const& pages, PageStep const& step,
                    std::span<LayerKv<U> const> tokens, Source const& source, PageStorage<T> const& storage) {
  PagedAppend const cache{pages.view(), storage.page_stride};
  auto const buffers = paged_buffers(cache.view, storage, shape.first_layer);
  for (PageCopy const& copy : step.copies) {
    if (!is_of_append(copy, shape, tokens.size())) continue;
    auto const move = [&](T* tensor, std::int64_t channels) {
      if (channels == 0) return;
      std::memcpy(tensor + cache.page_offset(copy.to, channels), tensor + cache.page_offset(copy.from, channels),
                  static_cast<std::size_t>(copy.tokens * channels) * sizeof(T));
    };
    RowChannels const channels = buffers(static_cast<std::size_t>(copy.layer - shape.first_layer)).channels;
    move(storage.keys, channels.head_dim);
    move(storage.values, channels.value_dim);
  }
  append_rows(shape, cache, tokens, source, buffers, step.lengths, step.high_water, step.counts);
}

}  // namespace detail

/// @brief Writes new tokens into the pages that `PagedHeads::append` has given them, on the CPU.
///
/// Every token whose page is held is written, so that whole pages may be read. Where heads have scored slots:
/// `cache/paged_scored.hpp`.
/// @param pages        the tables after the step
/// @param step         of `PagedHeads::append`
/// @param tokens       keys and values of neighbouring layers, host pointers
/// @param source       how each layer's new keys and values lie: any `KvLayout`, its token 0 the first new one
/// @param storage      the pool's pages
/// @param first_layer  cache layer of the first of the new tokens' layers; each layer of a step once
/// @throws ArgumentError before anything is written, on a step after which the tables have changed or of other tables,
///         on shapes that disagree, missing or misaligned pointers, host tables that have no places for the new tokens,
///         and new tokens that overlap the pool
/// @par Cost  O(bytes that stay) and copies on write; all cores with OpenMP where it is more than 1 MiB
template <LayerRange Tokens, class Source, class T>
void append(PagedHeads const& pages, PageStep const& step, Tokens const& tokens, Source const& source,
            PageStorage<T> const& storage, std::int32_t first_layer = 0) {
  detail::refuse_scored_pages(pages.view().max_scored, "append");
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(pages, step, layers, source, storage, first_layer);
  detail::append_checked(shape, pages, step, layers, source, storage);
}

HEADAWARE_NAMESPACE_END
