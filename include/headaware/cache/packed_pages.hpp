#pragma once

/// @file
/// Pages of single heads that hold encoded rows: pages of a pool have one size in bytes, and a head as many rows in
/// each as its formats let fit. On the CPU.

#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/append_encoded.hpp>
#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/policy/rolling_policy.hpp>
#include <headaware/policy/window_rule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A pool of pages of encoded rows: page p of the pool is `rows + p * page_units`. Made by `packed_pages`;
/// tables are those of a `PagedHeads` with `page_sizes` as its `head_page_sizes`. Attention reads it by `HeadPagesView`
/// with a page stride of `page_units`, and `PackedCache` of `rows` and `layer(l)`. Lives on the host.
///
/// This is the one form that holds heads of different formats in pages. Block tables as engines have them (`PagedForm`,
/// `vllm_flash`, `PagedHeads::indices`, `PagedHeads::block_table`) count one number of tokens a page for all heads of a
/// layer, which rows of several widths do not fill: an engine whose cache is fp8, `q8_0`, `q4_0` or of 16 bits, one
/// format a layer, gets rows into its tables by `export_rows` and gives them by `import_rows`.
template <class Registry = DefaultFormats>
struct PackedPages {
  LayerChannels channels;                         ///< of the rows before they are encoded
  std::int64_t page_units = 0;                    ///< 16 bytes each, of a page
  std::vector<std::int32_t> page_sizes;           ///< [KV heads of all layers] tokens per page
  std::vector<PackedSegment<Registry>> segments;  ///< [segments], of sequences alike
  std::vector<std::int64_t> first_segments;       ///< [num_layers + 1]
  std::int32_t num_sequences = 0;
  RowUnit* rows = nullptr;  ///< [pages, page_units], host or device

  [[nodiscard]] std::int32_t num_layers() const { return static_cast<std::int32_t>(first_segments.size()) - 1; }
  [[nodiscard]] std::int64_t page_bytes() const { return page_units * std::int64_t{sizeof(RowUnit)}; }
  /// Bytes of the pages in use, codes, scales and minima; shared pages count once. @param pages  with these page sizes
  [[nodiscard]] std::int64_t bytes_held(PagedHeads const& pages) const {
    return detail::elements("PackedPages::bytes_held",
                            {pages.pool().num_pages() - pages.pool().free_pages(), page_bytes()});
  }
  /// KV heads of a layer. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int32_t num_kv_heads(std::int32_t layer) const {
    return num_sequences == 0 ? 0 : static_cast<std::int32_t>(this->layer(layer).size()) / num_sequences;
  }
  /// A layer's segments, [num_sequences, KV heads of the layer], as attention reads them; valid while this lives.
  /// @throws ArgumentError if there is no such layer
  [[nodiscard]] std::span<PackedSegment<Registry> const> layer(std::int32_t layer) const {
    require_index(layer, num_layers(), "layer", "PackedPages");
    auto const l = static_cast<std::size_t>(layer);
    return std::span(segments).subspan(static_cast<std::size_t>(first_segments[l]),
                                       static_cast<std::size_t>(first_segments[l + 1] - first_segments[l]));
  }
  /// @brief The same with a pool. @param pool  [pages, page_units]
  [[nodiscard]] PackedPages with_pool(RowUnit* pool) const {
    PackedPages result = *this;
    result.rows = pool;
    return result;
  }
};

/// @brief Plans pages of encoded rows.
/// @param formats     of all layers and KV heads
/// @param page_units  16-byte units of a page, of all heads: as many as the widest row has, or more
/// @param channels    of the rows before they are encoded: head_dim where all layers are alike, or a `ModelShape`
/// @param value_dim   channels of a value, where all layers are alike; 0: as many as a key has
/// @return the pages without a pool, which needs `page_bytes()` a page
/// @throws ArgumentError on negative numbers, channels that are not positive, and pages that a head's row does not fit
template <class Registry>
[[nodiscard]] PackedPages<Registry> packed_pages(BasicFormatTable<Registry> const& formats, std::int32_t num_sequences,
                                                 std::int64_t page_units, LayerChannels const& channels,
                                                 std::int64_t value_dim = 0) {
  constexpr auto where = "packed_pages";
  require(num_sequences >= 0, "sequences", ">= 0", num_sequences, where);
  LayerHeads const heads = formats.heads();
  PackedPages<Registry> result;
  result.channels = detail::checked_channels(channels, value_dim, heads, where);
  result.page_units = page_units;
  result.num_sequences = num_sequences;
  result.first_segments.push_back(0);
  for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
    RowChannels const rows = result.channels.of(static_cast<std::size_t>(layer));
    std::vector<PackedSegment<Registry>> of_sequence;
    for (std::int32_t kv_head = 0; kv_head < heads.count(layer); ++kv_head) {
      auto const& head = formats.at(layer, kv_head);
      std::int64_t const units = head.row_units(rows.head_dim, rows.value_dim);
      std::int64_t const tokens = page_units / units;
      require(tokens > 0 && tokens <= std::numeric_limits<std::int32_t>::max(), "page's units",
              {">= the ", units, " of a row"}, page_units, {where, ", layer ", layer, ", KV head ", kv_head});
      of_sequence.push_back({head, static_cast<std::int32_t>(units), 0});
      result.page_sizes.push_back(static_cast<std::int32_t>(tokens));
    }
    for (std::int32_t sequence = 0; sequence < num_sequences; ++sequence) {
      result.segments.insert(result.segments.end(), of_sequence.begin(), of_sequence.end());
    }
    result.first_segments.push_back(static_cast<std::int64_t>(result.segments.size()));
  }
  return result;
}

/// @brief Pages of single heads as a form of packed caches, made by `packed_head_pages`: what `transcode` reads and
/// writes. A segment's rows are the sinks of its head and as many of its newest tokens as are kept beside them, of
/// which the pages may hold more than the head's window. Borrows tables and, on the host, the lengths they are of.
struct HeadPagesForm {
  static constexpr bool needs_group = false;
  static constexpr bool one_pool = true;
  PagedHeadsView pages;
  std::int64_t page_units = 0;
  std::int32_t const* lengths = nullptr;     ///< [num_sequences], on the host, where calls check them
  std::int32_t const* high_water = nullptr;  ///< likewise
  bool shares_pages = false;                 ///< whether sequences share any

  [[nodiscard]] HEADAWARE_HOST_DEVICE PagedHead const& head(Segment const& segment) const {
    return pages.head(segment.layer, segment.kv_head);
  }
  /// The tokens of a segment's rows.
  [[nodiscard]] HEADAWARE_HOST_DEVICE static WindowRange tokens(PagedHead const& head, Segment const& segment) {
    std::int64_t const sinks = head.rule.sink < segment.length ? head.rule.sink : segment.length;
    return WindowRange::clamped(sinks, segment.length - (segment.kept - sinks), segment.length);
  }
  /// Whether the pages hold the segment's rows.
  [[nodiscard]] bool matches(Segment const& segment) const {
    std::int64_t const length = lengths[segment.sequence];
    WindowRange const held = pages.held(head(segment), length, high_water[segment.sequence]);
    return segment.length == length && (held.is_whole() || tokens(head(segment), segment).begin >= held.begin);
  }
  /// Whether they hold what a policy keeps: one of as many sinks, unless all tokens are kept or none.
  template <class P>
  [[nodiscard]] bool matches(Segment const& segment, P const& policy) const {
    if (!matches(segment)) return false;
    if (segment.kept == 0 || segment.kept == segment.length) return true;
    if constexpr (RollingPolicy<P>) {
      return window_rule(policy).sink == head(segment).rule.sink;
    } else {
      return false;
    }
  }
  /// Rows that a head's pages have room for.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t head_capacity(Segment const& segment, LayerCapacity const&) const {
    return head(segment).entries() * head(segment).page_size.value();
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE HeadPagesRows rows(Segment const& segment, LayerCapacity const&) const {
    PagedHead const& of = head(segment);
    return pages.rows(of, segment.sequence, tokens(of, segment), page_units);
  }
};
static_assert(std::is_trivially_copyable_v<HeadPagesForm>);

namespace detail {

/// Checks that tables and pages are of the same heads.
template <class Registry>
void check_pages_of_heads(PagedHeadsView const& view, PackedPages<Registry> const& cache, char const* where) {
  require(cache.num_layers() == view.num_layers, "pages' layers", view.num_layers, cache.num_layers(), where);
  require(cache.num_sequences == view.num_sequences, "pages' sequences", view.num_sequences, cache.num_sequences,
          where);
  require(std::ssize(cache.page_sizes) == view.num_heads, "pages' KV heads", view.num_heads, cache.page_sizes.size(),
          where);
  auto size = cache.page_sizes.begin();
  for (std::int32_t layer = 0; layer < view.num_layers && view.num_sequences > 0; ++layer) {
    auto const end = size + cache.num_kv_heads(layer);
    std::int32_t const most = size == end ? 0 : *std::max_element(size, end);
    bool const same = size == end || (view.page_sizes.of(layer) == most && !view.page_sizes.heads_alike());
    require(same, "tables' page sizes", {"those of the pages, at most ", most}, view.page_sizes.of(layer),
            {where, ", layer ", layer});
    size = end;
  }
  (void)elements(where, {view.num_pages, cache.page_units, std::int64_t{sizeof(RowUnit)}});
}

/// Checks an append. @return its sizes
template <class U, class Source, class Registry>
AppendShape check_packed_pages(PagedHeadsView const& view, std::int64_t max_count, std::span<LayerKv<U> const> tokens,
                               Source const& source, PackedPages<Registry> const& cache, std::int32_t first_layer) {
  constexpr auto where = "append";
  check_pages_of_heads(view, cache, where);
  check_pointer<RowUnit>(cache.rows, false, "pages", where, static_cast<std::size_t>(first_layer));
  AppendShape const shape{.first_layer = first_layer,
                          .num_sequences = view.num_sequences,
                          .heads = view.layer_heads(),
                          .max_count = max_count,
                          .writes = view.max_tokens_held > 0};
  using T = std::remove_const_t<U>;
  constexpr auto per_unit = static_cast<std::int64_t>(sizeof(RowUnit) / sizeof(T));
  // The pool is every layer's.
  check_append(shape, tokens, source, [&](std::size_t i) {
    auto* const pool = reinterpret_cast<T*>(cache.rows);
    std::size_t const layer = static_cast<std::size_t>(first_layer) + i;
    return CacheBuffers<T>{{pool, pool},
                           view.num_pages * cache.page_units * per_unit,
                           0,
                           cache.channels.of(layer),
                           cache.num_kv_heads(static_cast<std::int32_t>(layer))};
  });
  return shape;
}

/// Checks an append on the CPU.
template <class U, class Source, class Registry>
AppendShape check_host_append(PagedHeads const& pages, PageStep const& step, std::span<LayerKv<U> const> tokens,
                              Source const& source, PackedPages<Registry> const& cache, std::int32_t first_layer) {
  using T = std::remove_const_t<U>;
  static_assert(holds_floats<T>, "headaware: rows to encode hold float, float16 or bfloat16");
  PagedHeadsView const view = pages.view();
  check_step(view, step);
  AppendShape const shape = check_packed_pages(view, step.max_count, tokens, source, cache, first_layer);
  auto const buffers = [&](std::size_t i) {
    CacheBuffers<T> result;
    result.num_kv_heads = cache.num_kv_heads(first_layer + static_cast<std::int32_t>(i));
    return result;
  };
  check_append_tables(source, shape, buffers, tokens.size(), step.counts);
  return shape;
}

/// Copies shared pages and encodes new tokens, which have been checked.
template <class U, class Source, class Registry>
void append_checked(AppendShape const& shape, PagedHeads const& pages, PageStep const& step,
                    std::span<LayerKv<U> const> tokens, Source const& source, PackedPages<Registry> const& cache) {
  for (PageCopy const& copy : step.copies) {
    if (!is_of_append(copy, shape, tokens.size())) continue;
    std::int64_t const units = cache.layer(copy.layer)[static_cast<std::size_t>(copy.kv_head)].units;
    std::memcpy(cache.rows + copy.to * cache.page_units, cache.rows + copy.from * cache.page_units,
                static_cast<std::size_t>(copy.tokens * units) * sizeof(RowUnit));
  }
  append_encoded(
      shape, PagedAppend{pages.view(), cache.page_units}, tokens, source, cache.channels,
      std::span<PackedSegment<Registry> const>(cache.segments), [&](std::size_t) { return cache.rows; }, step.lengths,
      step.high_water, step.counts);
}

}  // namespace detail

/// @brief Encodes new tokens into the pages that `PagedHeads::append` has given them, on the CPU: a prompt, or the
/// tokens of a step.
/// @param pages, step, tokens, source, first_layer  as the `append` into plain rows; float, float16 or bfloat16
/// @param cache  made by `packed_pages` for these heads and sequences, with a pool
/// @throws ArgumentError before anything is written, as that `append`, and on pages of other heads
/// @par Cost  O(bytes that stay) and copies on write
template <LayerRange Tokens, class Source, class Registry>
void append(PagedHeads const& pages, PageStep const& step, Tokens const& tokens, Source const& source,
            PackedPages<Registry> const& cache, std::int32_t first_layer = 0) {
  detail::refuse_scored_pages(pages.view().max_scored, "append");
  auto const layers = layer_span(tokens);
  auto const shape = detail::check_host_append(pages, step, layers, source, cache, first_layer);
  detail::append_checked(shape, pages, step, layers, source, cache);
}

/// @brief Makes pages of single heads a cache that `transcode` reads or writes, so that heads get other formats, in
/// other pages, as those of another width hold other numbers of tokens:
///
/// Other tables, a `PagedHeads` with the new formats' `PackedPages::page_sizes`, get pages by `append` of the
/// sequences' lengths; then `transcode(compaction, packed_head_pages(pages, pages.view(), cache),
/// packed_head_pages(other_pages, other_pages.view(), other_cache))`, or into any other form. Rows of tokens between
/// windows and what the compaction keeps are not carried over, although the other tables count slack as held: to roll
/// back afterwards, the compaction is of policies whose windows are wider by the slack.
/// @param pages  whose tables the cache has; its lengths are the compaction's
/// @param view   `pages.view()`, or `pages.view_at()` for the device
/// @param cache  made by `packed_pages` for these heads and sequences, with a pool; without, `with_buffer` gives one of
///               `num_pages * page_units`
/// @return the cache, valid until the tables change
/// @throws ArgumentError on pages of other heads, or of heads with scored slots
/// @par Cost  O(entries of the tables)
template <class Registry>
[[nodiscard]] PackedDestination<HeadPagesForm, Registry> packed_head_pages(PagedHeads const& pages,
                                                                           PagedHeadsView const& view,
                                                                           PackedPages<Registry> const& cache) {
  detail::refuse_scored_pages(view.max_scored, "packed_head_pages");
  detail::check_pages_of_heads(view, cache, "packed_head_pages");
  auto const table = pages.table();
  bool const shares = std::any_of(table.begin(), table.end(),
                                  [&](std::int32_t page) { return page >= 0 && pages.pool().references(page) > 1; });
  RollingState const& state = pages.state();
  HeadPagesForm const form{view, cache.page_units, state.lengths().data(), state.high_water().data(), shares};
  PackedDestination<HeadPagesForm, Registry> result{form, cache.channels, {}, cache.segments, cache.first_segments, {0},
                                                    {}};
  std::int64_t const units = std::int64_t{view.num_pages} * cache.page_units;
  for (std::int32_t layer = 0; layer < cache.num_layers(); ++layer) {
    result.capacities.push_back({.rows = pages.slots().rows_total(layer), .num_kv_heads = cache.num_kv_heads(layer)});
    result.first_units.push_back(units);
  }
  return cache.rows == nullptr ? result : result.with_buffer(cache.rows);
}

HEADAWARE_NAMESPACE_END
