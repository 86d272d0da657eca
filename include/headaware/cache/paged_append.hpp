#pragma once

/// @file
/// Appending to pages of single heads on the CPU.

#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads.hpp>
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

/// @brief The pool of keys and of values, shared by all layers: [num_pages, page_size, channels]. Host or device
/// memory.
template <class T>
struct PageStorage {
  T* keys = nullptr;
  T* values = nullptr;
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
  std::int64_t page_stride = 0;  ///< elements from a page to the next; 0: page_size * channels
};

namespace detail {

/// A cache in pages of single heads as appends write it.
struct PagedAppend {
  PagedHeadsView view;
  std::int64_t page_stride = 0;  ///< elements; 0: page_size * channels

  /// Rows of all that a head's pages hold of a sequence of `length` tokens.
  HEADAWARE_HOST_DEVICE HeadPagesRows rows(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head,
                                           std::int64_t length, std::int64_t high_water) const {
    PagedHead const& head = view.head(layer, kv_head);
    return view.rows(head, sequence, view.held(head, length, high_water > length ? high_water : length), page_stride);
  }
  HEADAWARE_HOST_DEVICE std::int64_t page_offset(std::int64_t page, std::int64_t channels) const {
    return page * (page_stride != 0 ? page_stride : view.page_size.value() * channels);
  }
};

/// Throws if the tables have changed since the step: they may give a page to another head, or to none.
inline void check_generation(PagedHeadsView const& view, std::uint64_t generation) {
  require(generation == view.generation, "step", {"the tables' last change, ", view.generation},
          {"change ", generation}, "append");
}

/// Buffers of the pool, which all layers share.
template <class T>
auto paged_buffers(PagedHeadsView const& view, PageStorage<T> const& storage) {
  auto const elements = [&](std::int64_t channels) {
    std::int64_t const page = view.page_size.value() * channels;
    return view.num_pages == 0 ? 0
                               : (view.num_pages - 1) * (storage.page_stride != 0 ? storage.page_stride : page) + page;
  };
  CacheBuffers<T> const buffers{
      {storage.keys, storage.values}, elements(storage.head_dim), elements(storage.value_dim)};
  return [buffers](std::size_t) { return buffers; };
}

template <class T, class U, class Source>
AppendShape check_paged_append(PagedHeadsView const& view, std::int64_t max_count, std::span<LayerKv<U> const> tokens,
                               Source const& source, PageStorage<T> const& storage, std::int32_t first_layer) {
  constexpr auto where = "append";
  require_channels(storage.head_dim, storage.value_dim, where);
  std::int64_t const size = view.page_size.value();
  std::int64_t const row = elements(where, {size, std::max(storage.head_dim, storage.value_dim)});
  require(storage.page_stride == 0 || storage.page_stride >= row, "page stride", {">= ", row}, storage.page_stride,
          where);
  AppendShape const shape{first_layer, view.num_layers,    view.num_sequences, view.num_kv_heads,
                          max_count,   storage.head_dim,   storage.value_dim,  view.max_tokens_held > 0,
                          size,        storage.page_stride};
  auto const check_pool = [&](std::int64_t channels) {
    std::int64_t const stride = storage.page_stride != 0 ? storage.page_stride : size * channels;
    check_extent(where, size * channels, std::array{LayoutDirection{view.num_pages, stride}});
  };
  check_pool(storage.head_dim);
  check_pool(storage.value_dim);
  check_append(shape, tokens, source, paged_buffers(view, storage));
  return shape;
}

}  // namespace detail

/// @brief Writes new tokens into the pages that `PagedHeads::append` has given them, on the CPU.
///
/// Every token whose page is held is written, so that whole pages may be read.
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
  PagedHeadsView const view = pages.view();
  detail::check_generation(view, step.generation);
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_paged_append(view, step.max_count, layers, source, storage, first_layer);
  for (auto const* each : {&step.counts, &step.lengths, &step.high_water}) {
    require(static_cast<std::int64_t>(each->size()) == view.num_sequences, "step's sequences", view.num_sequences,
            each->size(), "append");
  }
  detail::check_source_tables(source, view.num_sequences, detail::tokens_in(step.counts), "append, keys",
                              "append, values");
  detail::PagedAppend const cache{view, storage.page_stride};
  for (PageCopy const& copy : step.copies) {
    if (copy.layer < first_layer || copy.layer >= first_layer + static_cast<std::int32_t>(layers.size())) continue;
    auto const move = [&](T* tensor, std::int64_t channels) {
      std::memcpy(tensor + cache.page_offset(copy.to, channels), tensor + cache.page_offset(copy.from, channels),
                  static_cast<std::size_t>(copy.tokens * channels) * sizeof(T));
    };
    move(storage.keys, storage.head_dim);
    move(storage.values, storage.value_dim);
  }
  detail::append_rows(shape, cache, layers, source, detail::paged_buffers(view, storage), step.lengths, step.high_water,
                      step.counts);
}

HEADAWARE_NAMESPACE_END
