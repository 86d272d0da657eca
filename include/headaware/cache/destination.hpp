#pragma once

/// @file
/// Forms of a compressed cache: which row of which buffer holds a kept token. All forms store a token as a contiguous
/// row of channels.

#include <headaware/cache/adjacent_rows.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/page_sizes.hpp>
#include <headaware/cache/paged_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/cache/sizes.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Ragged: `[Σ kept, head_dim]` per layer, heads back to back, no gaps.
/// FlashAttention reads it as a variable-length batch of `sequences * num_kv_heads` one-head sequences.
struct RaggedForm {
  static constexpr bool needs_group = false;
  /// Rows that one head may fill; a ragged head is only bounded by its layer.
  HEADAWARE_HOST_DEVICE std::int64_t head_capacity(Segment const&, LayerCapacity const& capacity) const {
    return capacity.rows;
  }
  /// Rows of a segment, from the layer's base pointer.
  HEADAWARE_HOST_DEVICE AdjacentRows rows(Segment const& segment, LayerCapacity const&) const {
    return {segment.first_row, segment.kept};
  }
};

/// @brief Padded: `[sequences, num_kv_heads, max_kept(layer), head_dim]`. Pads are not written, and
/// attention must mask them: the lengths are `CacheSizes::kept`.
struct PaddedForm {
  static constexpr bool needs_group = false;
  Alignment alignment = Alignment::left;

  HEADAWARE_HOST_DEVICE std::int64_t head_capacity(Segment const&, LayerCapacity const& capacity) const {
    return capacity.head_rows;
  }
  HEADAWARE_HOST_DEVICE AdjacentRows rows(Segment const& segment, LayerCapacity const& capacity) const {
    return AdjacentRows::padded(std::int64_t{segment.sequence} * capacity.num_kv_heads + segment.kv_head,
                                capacity.head_rows, segment.kept, alignment);
  }
};

/// @brief Grouped: the `Full` heads as `[sequences, full_heads, full_head_rows, head_dim]`, then the
/// others as `[sequences, window_heads, head_rows, head_dim]`, left-aligned; pruned heads have no
/// place. Sizes: `CacheSizes::grouped_capacity`. Attention reads each group as a padded cache of its heads
/// (`PaddedView`).
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819
struct GroupedForm {
  static constexpr bool needs_group = true;
  std::int32_t num_sequences = 0;

  HEADAWARE_HOST_DEVICE std::int64_t head_capacity(Segment const& segment, LayerCapacity const& capacity) const {
    return segment.full_group ? capacity.full_head_rows : capacity.head_rows;
  }
  HEADAWARE_HOST_DEVICE AdjacentRows rows(Segment const& segment, LayerCapacity const& capacity) const {
    if (segment.full_group) {
      std::int64_t const head = std::int64_t{segment.sequence} * capacity.full_heads + segment.group_head;
      return {head * capacity.full_head_rows, segment.kept};
    }
    std::int64_t const full_rows = std::int64_t{num_sequences} * capacity.full_heads * capacity.full_head_rows;
    std::int64_t const head = std::int64_t{segment.sequence} * capacity.window_heads + segment.group_head;
    return {full_rows + head * capacity.head_rows, segment.kept};
  }
};

/// @brief The cache that compaction writes: a form, and every layer's buffers. Made by `ragged`, `padded`,
/// `grouped`, `paged` and `rolling`; lives on the host whatever its pointers point to.
template <class T, class F>
struct Destination {
  using Element = T;
  using Form = F;

  Form form;
  LayerChannels channels;
  std::vector<LayerKv<T>> layers;
  std::vector<LayerCapacity> capacities;  ///< [num_layers]
  std::int64_t num_pages = 0;             ///< paged: pages of a layer's pool; 0: not known
};

namespace detail {

template <class = void>
void require_channels(std::int64_t head_dim, std::int64_t value_dim, char const* where) {
  require(head_dim > 0, "channels of a key", "> 0", head_dim, where);
  require(value_dim > 0, "channels of a value", "> 0", value_dim, where);
  // Kernels count channels in 32 bits.
  constexpr std::int64_t most = 0x7fffffff;
  require(head_dim <= most, "channels of a key", "at most 2147483647", head_dim, where);
  require(value_dim <= most, "channels of a value", "at most 2147483647", value_dim, where);
}

/// The channels that a caller names: of values as many as of keys unless said otherwise.
/// @throws ArgumentError on channels that are not positive, or that are of a model with other layers
template <class = void>
LayerChannels checked_channels(LayerChannels const& channels, std::int64_t value_dim, LayerHeads const& heads,
                               char const* where) {
  require(value_dim == 0 || channels.alike(), "value_dim", "0, as the shape says the channels of every layer",
          value_dim, where);
  LayerChannels result = value_dim != 0 ? channels.with_values(value_dim) : channels;
  auto const layers = static_cast<std::size_t>(heads.num_layers);
  bool const as_many = channels.num_layers() == 0 || channels.num_layers() == layers;
  require(as_many, "layers of the shape", layers, channels.num_layers(), where);
  if (layers > 0 && heads.total() == 0) return result;  // no layer has a cache
  if (result.alike()) {
    bool const latent = value_dim == 0 && result.common().value_dim == 0;
    require_channels(result.common().head_dim, latent ? 1 : result.common().value_dim, where);
    return result;
  }
  for (std::size_t layer = 0; layer < layers; ++layer) {
    std::int32_t const count = heads.count(static_cast<std::int64_t>(layer));
    require((count > 0) == (result.of(layer).head_dim > 0), "channels of a layer",
            count > 0 ? "> 0, as it has KV heads" : "0, as it has no KV heads", result.of(layer).head_dim,
            {where, ", layer ", layer});
  }
  return result;
}

/// A destination that has no buffers yet. @param capacity  (layer) to its `LayerCapacity`
template <class T, class Form, class Capacity>
Destination<T, Form> without_buffers(char const* where, Form const& form, LayerHeads const& heads,
                                     LayerChannels const& channels, std::int64_t value_dim, Capacity const& capacity) {
  Destination<T, Form> result{form, checked_channels(channels, value_dim, heads, where), {}, {}, 0};
  for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
    result.capacities.push_back(capacity(layer));
    result.capacities.back().num_kv_heads = heads.count(layer);
  }
  return result;
}

/// Cuts one buffer of keys and one of values into layers, back to back.
template <class T, class Form>
Destination<T, Form> with_buffers(Destination<T, Form> destination, T* keys, T* values) {
  for (std::size_t layer = 0; layer < destination.capacities.size(); ++layer) {
    destination.layers.push_back({keys, values});
    keys += destination.capacities[layer].rows * destination.channels.of(layer).head_dim;
    values += destination.capacities[layer].rows * destination.channels.of(layer).value_dim;
  }
  return destination;
}

template <class T, class Form>
Destination<T, Form> with_layers(Destination<T, Form> destination, std::span<LayerKv<T> const> layers,
                                 char const* where) {
  require(layers.size() == destination.capacities.size(), "layers", destination.capacities.size(), layers.size(),
          where);
  destination.layers.assign(layers.begin(), layers.end());
  return destination;
}

template <class T>
Destination<T, RaggedForm> ragged_form(CacheSizes const& sizes, LayerChannels const& channels, std::int64_t value_dim) {
  auto const capacity = [&](std::int32_t layer) { return LayerCapacity{.rows = sizes.kept_total(layer)}; };
  return without_buffers<T>("ragged", RaggedForm{}, sizes.heads(), channels, value_dim, capacity);
}

template <class T>
Destination<T, PaddedForm> padded_form(CacheSizes const& sizes, LayerChannels const& channels, std::int64_t value_dim,
                                       Alignment alignment) {
  auto const capacity = [&](std::int32_t layer) {
    return LayerCapacity{.rows = sizes.layer_segments(layer) * sizes.max_kept(layer),
                         .head_rows = sizes.max_kept(layer)};
  };
  return without_buffers<T>("padded", PaddedForm{alignment}, sizes.heads(), channels, value_dim, capacity);
}

template <class T>
Destination<T, GroupedForm> grouped_form(CacheSizes const& sizes, LayerChannels const& channels,
                                         std::int64_t value_dim) {
  return without_buffers<T>("grouped", GroupedForm{sizes.num_sequences()}, sizes.heads(), channels, value_dim,
                            [&](std::int32_t layer) { return sizes.grouped_capacity(layer); });
}

}  // namespace detail

/// @brief A ragged cache in one buffer of keys and one of values, layers back to back: row
/// `sizes.offsets()[segment] + i` has the segment's `i`-th kept token.
/// @param keys       [sizes.kept_total(), head_dim]
/// @param values     [sizes.kept_total(), value_dim]
/// @param channels   head_dim where all layers are alike, or a `ModelShape`
/// @param value_dim  channels of a value, where all layers are alike; 0: as many as a key has
/// @throws ArgumentError if channels are not positive
template <class T>
[[nodiscard]] Destination<T, RaggedForm> ragged(CacheSizes const& sizes, T* keys, T* values,
                                                LayerChannels const& channels, std::int64_t value_dim = 0) {
  return detail::with_buffers(detail::ragged_form<T>(sizes, channels, value_dim), keys, values);
}

/// @brief A ragged cache with buffers of its own for each layer: [sizes.kept_total(layer), head_dim].
template <LayerRange Layers>
[[nodiscard]] Destination<LayerElement<Layers>, RaggedForm> ragged(CacheSizes const& sizes, Layers const& layers,
                                                                   LayerChannels const& channels,
                                                                   std::int64_t value_dim = 0) {
  return detail::with_layers(detail::ragged_form<LayerElement<Layers>>(sizes, channels, value_dim), layer_span(layers),
                             "ragged");
}

/// Rows that all layers of a padded cache hold together: Σ sequences · num_kv_heads · max_kept(layer).
template <class = void>
[[nodiscard]] std::int64_t padded_rows(CacheSizes const& sizes) {
  std::int64_t rows = 0;
  for (std::int32_t layer = 0; layer < sizes.num_layers(); ++layer)
    rows += sizes.layer_segments(layer) * sizes.max_kept(layer);
  return rows;
}

/// @brief A padded cache in one buffer of keys and one of values, layers back to back.
/// @param keys    [padded_rows(sizes), head_dim]
/// @param values  [padded_rows(sizes), value_dim]
template <class T>
[[nodiscard]] Destination<T, PaddedForm> padded(CacheSizes const& sizes, T* keys, T* values,
                                                LayerChannels const& channels, Alignment alignment = Alignment::left,
                                                std::int64_t value_dim = 0) {
  return detail::with_buffers(detail::padded_form<T>(sizes, channels, value_dim, alignment), keys, values);
}

/// @brief A padded cache with buffers of its own for each layer:
/// [sequences, num_kv_heads, sizes.max_kept(layer), head_dim].
template <LayerRange Layers>
[[nodiscard]] Destination<LayerElement<Layers>, PaddedForm> padded(CacheSizes const& sizes, Layers const& layers,
                                                                   LayerChannels const& channels,
                                                                   Alignment alignment = Alignment::left,
                                                                   std::int64_t value_dim = 0) {
  return detail::with_layers(detail::padded_form<LayerElement<Layers>>(sizes, channels, value_dim, alignment),
                             layer_span(layers), "padded");
}

/// Rows that all layers of a grouped cache hold together.
template <class = void>
[[nodiscard]] std::int64_t grouped_rows(CacheSizes const& sizes) {
  std::int64_t rows = 0;
  for (std::int32_t layer = 0; layer < sizes.num_layers(); ++layer) rows += sizes.grouped_capacity(layer).rows;
  return rows;
}

/// @brief A grouped cache in one buffer of keys and one of values, layers back to back, in each
/// layer the full group's tensor before the streaming group's.
/// @param keys    [grouped_rows(sizes), head_dim]
/// @param values  [grouped_rows(sizes), value_dim]
template <class T>
[[nodiscard]] Destination<T, GroupedForm> grouped(CacheSizes const& sizes, T* keys, T* values,
                                                  LayerChannels const& channels, std::int64_t value_dim = 0) {
  return detail::with_buffers(detail::grouped_form<T>(sizes, channels, value_dim), keys, values);
}

/// @brief A grouped cache with buffers of its own for each layer: [sizes.grouped_capacity(layer).rows, head_dim].
template <LayerRange Layers>
[[nodiscard]] Destination<LayerElement<Layers>, GroupedForm> grouped(CacheSizes const& sizes, Layers const& layers,
                                                                     LayerChannels const& channels,
                                                                     std::int64_t value_dim = 0) {
  return detail::with_layers(detail::grouped_form<LayerElement<Layers>>(sizes, channels, value_dim), layer_span(layers),
                             "grouped");
}

/// @brief A paged cache: each layer's pool of pages, and the block table that says which page holds
/// which part of which head. The engine's allocator fills the table; `consecutive_pages` does for
/// an empty pool.
/// @param layers      each layer's pool; all may be the same pool
/// @param form        block table and page size; read where the back end runs
/// @param num_pages   pages of a pool, if known: the CPU back end checks the table against it; 0: not known, and a page
///                    beyond the pool goes unnoticed
/// @param page_sizes  [num_layers] tokens per page of each layer (`LayerChannels::page_sizes`); empty: the form's
/// @pre   every page of the table belongs to one head, is none that the call reads, and is one of the pool. The CPU
///        back end checks this, the last where `num_pages` is given; for a device `validate_tables` does, with copies
///        of the tables
/// @throws ArgumentError if there is not one pool or page size per layer, or page size or channels are not positive
template <LayerRange Layers>
[[nodiscard]] Destination<LayerElement<Layers>, PagedForm> paged(CacheSizes const& sizes, Layers const& layers,
                                                                 PagedForm const& form, LayerChannels const& channels,
                                                                 std::int64_t num_pages = 0, std::int64_t value_dim = 0,
                                                                 std::span<std::int32_t const> page_sizes = {}) {
  LayerChannels const rows = detail::checked_channels(channels, value_dim, sizes.heads(), "paged");
  PageSizes const tokens = page_sizes.empty() ? PageSizes(form.page_size.value()) : PageSizes(page_sizes);
  tokens.check(sizes.num_layers(), "paged");
  std::int64_t page = 0;  // elements that the rows of any layer fill
  for (std::int32_t layer = 0; layer < sizes.num_layers(); ++layer) {
    RowChannels const& of = rows.of(static_cast<std::size_t>(layer));
    page = std::max(page, detail::elements("paged", {tokens.of(layer), std::max(of.head_dim, of.value_dim)}));
  }
  auto const capacity = [&](std::int32_t layer) {
    std::int64_t const page_size = tokens.of(layer);
    std::int64_t const head_rows =
        form.indptr == nullptr ? detail::elements("paged", {form.table_stride, page_size}) : sizes.max_kept(layer);
    require(sizes.max_kept(layer) <= head_rows, "block table row",
            {"room for ", sizes.max_kept(layer), " tokens of layer ", layer}, head_rows, "paged");
    return LayerCapacity{.rows = num_pages * page_size,
                         .head_rows = head_rows,
                         .page_size = page_size == form.page_size ? 0 : static_cast<std::int32_t>(page_size)};
  };
  require(form.block_table != nullptr || sizes.kept_total() == 0, "block table", "a pointer", "nullptr", "paged");
  require(form.page_stride == 0 || form.page_stride >= page, "page stride", {">= ", page}, form.page_stride, "paged");
  require(num_pages >= 0, "pages", ">= 0", num_pages, "paged");
  (void)detail::elements("paged", {num_pages, std::max(form.page_stride, page)});
  auto result =
      detail::without_buffers<LayerElement<Layers>>("paged", form, sizes.heads(), channels, value_dim, capacity);
  result.num_pages = num_pages;
  return detail::with_layers(std::move(result), layer_span(layers), "paged");
}

/// @brief CSR block table as FlashInfer takes it, heads folded into the batch.
struct PageIndices {
  std::vector<std::int32_t> indptr;         ///< [segments + 1]
  std::vector<std::int32_t> indices;        ///< [pages]
  std::vector<std::int32_t> last_page_len;  ///< [segments]: tokens of a head's last page; 0 without pages
};

/// @brief Hands out the pages `first_page, first_page + 1, …` to the segments in their order.
/// @throws ArgumentError if a page size is not positive, the first page negative, or page numbers exceed int32
template <class = void>
[[nodiscard]] PageIndices consecutive_pages(CacheSizes const& sizes, PageSizes const& page_sizes,
                                            std::int32_t first_page = 0) {
  std::int64_t const pages = sizes.pages_total(page_sizes);
  require(first_page >= 0, "first page", ">= 0", first_page, "consecutive_pages");
  require(pages + first_page <= std::int64_t{2147483647}, "pages", "numbers that fit int32", pages + first_page,
          "consecutive_pages");
  PageIndices result;
  result.indptr.push_back(0);
  for (std::int64_t s = 0; s < sizes.num_segments(); ++s) {
    std::int64_t const kept = sizes.kept(s);
    std::int64_t const page_size = page_sizes.of(sizes.segment(s).layer);
    auto const count = static_cast<std::int32_t>(detail::pages_for(kept, page_size));
    for (std::int32_t i = 0; i < count; ++i) {
      result.indices.push_back(first_page + result.indptr.back() + i);
    }
    result.indptr.push_back(result.indptr.back() + count);
    result.last_page_len.push_back(count == 0 ? 0
                                              : static_cast<std::int32_t>(kept - std::int64_t{count - 1} * page_size));
  }
  return result;
}

HEADAWARE_NAMESPACE_END
