#pragma once

// Appending to rolling and to paged caches: checks, and the CPU's copy of the tokens that stay.

#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/stream_bytes.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Sizes of an append, for all caches and both back ends.
struct AppendShape {
  std::int32_t first_layer = 0;
  std::int32_t num_sequences = 0;
  LayerHeads heads;              ///< of the cache's layers, where the back end runs
  std::int64_t max_count = 0;    ///< new tokens of a sequence, at most
  bool writes = false;           ///< some head takes tokens
  std::int64_t page_stride = 0;  ///< elements from one page to the next: values may lie between keys
};

/// Buffers of one layer of the cache.
template <class T>
struct CacheBuffers {
  LayerKv<T> data;
  std::int64_t key_elements = 0;
  std::int64_t value_elements = 0;
  RowChannels channels;
  std::int32_t num_kv_heads = 0;  ///< of the layer; where the host may not know, of the layer that has most
  bool heads_known = true;
  std::int64_t page_size = 0;  ///< tokens per page; 0: the buffers are not paged
};

/// New tokens of the sequence that has most.
template <class = void>
[[nodiscard]] std::int64_t most_of(std::span<std::int32_t const> counts) {
  return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
}

/// The heads that a layout says it has, if they are no more than any layer has.
template <class Layout>
std::int32_t heads_of(Layout const& layout, std::int32_t most) {
  if constexpr (requires { layout.num_kv_heads(); }) {
    if (layout.num_kv_heads() <= most) return static_cast<std::int32_t>(layout.num_kv_heads());
  }
  return most;
}

/// Checks what can be checked without reading a tensor. @param buffers  (new tokens' layer) to `CacheBuffers`
template <class U, class Source, class Buffers>
void check_append(AppendShape const& shape, std::span<LayerKv<U> const> tokens, Source const& source,
                  Buffers const& buffers) {
  using T = std::remove_pointer_t<decltype(buffers(0).data.keys)>;
  static_assert(std::is_same_v<std::remove_const_t<U>, T>, "headaware: new tokens and cache hold different elements");
  constexpr auto where = "append";
  auto const layers = static_cast<std::int64_t>(tokens.size());
  require(shape.first_layer >= 0 && shape.first_layer + layers <= shape.heads.num_layers, "layers",
          {"within the cache's ", shape.heads.num_layers}, shape.first_layer + layers, where);
  check_layers_of_source(source, tokens.size(), where);
  CacheBounds const bounds{.num_sequences = shape.num_sequences, .max_length = shape.max_count};
  bool const some = shape.writes && shape.max_count > 0;
  Memory& memory = thread_memory();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    CacheBuffers<T> const cache = buffers(i);
    if (cache.num_kv_heads == 0) continue;
    bool const with_values = cache.channels.value_dim > 0;
    auto const keys = keys_of(layer_source(source, i));
    auto const values = values_of(layer_source(source, i));
    if (i == 0 || is_layered<Source> || shape.heads.first_heads != nullptr) {
      OfLayer<Source> const of_layer{i};
      check_source_layout(keys, bounds, cache.heads_known ? cache.num_kv_heads : heads_of(keys, cache.num_kv_heads),
                          cache.channels.head_dim, {where, ", keys", of_layer});
      if (with_values) {
        check_source_layout(values, bounds,
                            cache.heads_known ? cache.num_kv_heads : heads_of(values, cache.num_kv_heads),
                            cache.channels.value_dim, {where, ", values", of_layer});
      }
    }
    bool const needed = some && cache.key_elements > 0;  // no head of a layer without rows takes tokens
    std::size_t const layer = static_cast<std::size_t>(shape.first_layer) + i;
    check_pointer(tokens[i].keys, needed, "new keys", where, layer);
    check_pointer(cache.data.keys, needed, "cache's keys", where, layer);
    add_extent(memory.sources, keys, tokens[i].keys);
    Interval const cache_keys = interval(cache.data.keys, cache.key_elements);
    memory.destinations.push_back(cache_keys);
    if (!with_values) continue;
    check_pointer(tokens[i].values, needed, "new values", where, layer);
    check_pointer(cache.data.values, needed, "cache's values", where, layer);
    add_extent(memory.sources, values, tokens[i].values);
    Interval const cache_values = interval(cache.data.values, cache.value_elements);
    bool apart = cache_keys.end <= cache_values.begin || cache_values.end <= cache_keys.begin;
    if (!apart && shape.page_stride > 0) {
      auto const size = static_cast<std::int64_t>(sizeof(T));
      auto const page = shape.page_stride * size;
      auto const shift = static_cast<std::int64_t>(cache_values.begin) - static_cast<std::int64_t>(cache_keys.begin);
      std::int64_t const after = (shift % page + page) % page;  // from a page's keys to the next values
      apart = after >= cache.page_size * cache.channels.head_dim * size &&
              after + cache.page_size * cache.channels.value_dim * size <= page;
    }
    require(!some || apart, "cache's buffers", "keys apart from values", "overlapping buffers", where);
    memory.destinations.push_back(cache_values);
  }
  require(!sort_and_overlap(memory.sources, memory.destinations), "buffers", "new tokens apart from the cache",
          "overlapping buffers", where);
}

/// Host tables that new tokens' layouts read must name places for them.
template <class Source, class Buffers>
void check_append_tables(Source const& source, AppendShape const& shape, Buffers const& buffers, std::size_t layers,
                         std::span<std::int32_t const> counts) {
  auto const check = [&](auto const& of_layer) {
    check_source_tables(of_layer, shape.num_sequences, tokens_in(counts), "append, keys", "append, values");
  };
  if constexpr (is_layered<Source>) {
    for (std::size_t i = 0; i < layers; ++i) {
      if (buffers(i).num_kv_heads > 0) check(source.layouts[i]);
    }
  } else {
    check(source);
  }
}

/// Copies the tokens from `length` on that a head holds. @param rows  of all that it holds after the append
template <class T, class Layout, class Rows>
void append_tokens(Rows const& rows, std::int64_t length, Layout const& layout, std::int32_t sequence,
                   std::int32_t kv_head, std::int64_t channels, bool contiguous, T const* source, T* cache) {
  for (std::int64_t i = rows.tokens.kept_before(length), n = rows.rows(); i < n; ++i) {
    T* const to = cache + rows.offset(i, channels);
    std::int64_t const from = rows.position(i) - length;
    if (contiguous) {
      // No later step writes this row again, and attention reads all rows of the head.
      stream_bytes(to, source + layout.offset(sequence, kv_head, from, 0),
                   static_cast<std::size_t>(channels) * sizeof(T));
    } else {
      for (std::int64_t c = 0; c < channels; ++c) to[c] = source[layout.offset(sequence, kv_head, from, c)];
    }
  }
}

/// @brief Writes new tokens to their rows.
/// @param cache    `rows(layer, sequence, kv_head, length, high_water)`: all rows that a head holds of a sequence of
///                 `length` tokens, the new ones included
/// @param buffers  (new tokens' layer) to `CacheBuffers`
/// @param lengths, high_water, counts  [num_sequences] before the append; new tokens
template <class Cache, class U, class Source, class Buffers>
void append_rows(AppendShape const& shape, Cache const& cache, std::span<LayerKv<U> const> tokens, Source const& source,
                 Buffers const& buffers, std::span<std::int32_t const> lengths,
                 std::span<std::int32_t const> high_water, std::span<std::int32_t const> counts) {
  using T = std::remove_const_t<U>;
  std::int64_t new_tokens = 0;
  for (std::int32_t const count : counts) new_tokens += count;
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    CacheBuffers<T> const to = buffers(i);
    elements += to.num_kv_heads * (to.channels.head_dim + to.channels.value_dim);
  }
  // A step of decoding is over before other threads would have begun.
  bool const share = new_tokens * elements * static_cast<std::int64_t>(sizeof(T)) > (1 << 20);
  LayerHeads const& heads = shape.heads;
  std::int64_t const first = heads.first(shape.first_layer);
  std::int64_t const end = heads.first(shape.first_layer + static_cast<std::int64_t>(tokens.size()));
  parallel_for((end - first) * shape.num_sequences, 1, share, [] { return StreamFence(); },
               [&](StreamFence const&, std::int64_t h) {
                 Segment const segment = segment_at(first * shape.num_sequences + h, shape.num_sequences, heads);
                 auto const b = static_cast<std::size_t>(segment.sequence);
                 if (counts[b] == 0) return;
                 auto const i = static_cast<std::size_t>(segment.layer - shape.first_layer);
                 std::int64_t const length = lengths[b];
                 auto const rows =
                     cache.rows(segment.layer, segment.sequence, segment.kv_head, length + counts[b], high_water[b]);
                 CacheBuffers<T> const to = buffers(i);
                 auto const append = [&](auto const& layout, std::int64_t channels, U const* from, T* data) {
                   append_tokens<T>(rows, length, layout, segment.sequence, segment.kv_head, channels,
                                    rows_contiguous(layout, channels), from, data);
                 };
                 append(keys_of(layer_source(source, i)), to.channels.head_dim, tokens[i].keys, to.data.keys);
                 if (to.channels.value_dim == 0) return;
                 append(values_of(layer_source(source, i)), to.channels.value_dim, tokens[i].values, to.data.values);
               });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
