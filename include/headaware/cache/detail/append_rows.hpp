#pragma once

// Appending to rolling and to paged caches: checks, and the CPU's copy of the tokens that stay.

#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/stream_bytes.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Sizes of an append, for all caches and both back ends.
struct AppendShape {
  std::int32_t first_layer = 0;
  std::int32_t num_layers = 0;  ///< of the cache
  std::int32_t num_sequences = 0;
  std::int32_t num_kv_heads = 0;
  std::int64_t max_count = 0;  ///< most new tokens of a sequence
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
  bool writes = false;           ///< some head takes tokens
  std::int64_t page_size = 0;    ///< tokens per page; 0: buffers are not paged
  std::int64_t page_stride = 0;  ///< elements from one page to the next: values may lie between keys
};

/// Buffers of one layer of the cache.
template <class T>
struct CacheBuffers {
  LayerKv<T> data;
  std::int64_t key_elements = 0;
  std::int64_t value_elements = 0;
};

/// Checks what can be checked without reading a tensor. @param buffers  (new tokens' layer) to `CacheBuffers`
template <class U, class Source, class Buffers>
void check_append(AppendShape const& shape, std::span<LayerKv<U> const> tokens, Source const& source,
                  Buffers const& buffers) {
  using T = std::remove_pointer_t<decltype(buffers(0).data.keys)>;
  static_assert(std::is_same_v<std::remove_const_t<U>, T>, "headaware: new tokens and cache hold different elements");
  constexpr auto where = "append";
  auto const layers = static_cast<std::int64_t>(tokens.size());
  require(shape.first_layer >= 0 && shape.first_layer + layers <= shape.num_layers, "layers",
          {"within the cache's ", shape.num_layers}, shape.first_layer + layers, where);
  CacheBounds const bounds{static_cast<std::int32_t>(layers), shape.num_sequences, shape.num_kv_heads, shape.max_count,
                           0};
  auto const keys = keys_of(source);
  auto const values = values_of(source);
  check_source_layout(keys, bounds, shape.head_dim, "append, keys");
  check_source_layout(values, bounds, shape.value_dim, "append, values");
  bool const some = shape.writes && shape.max_count > 0;
  Memory& memory = thread_memory();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    CacheBuffers<T> const cache = buffers(i);
    bool const needed = some && cache.key_elements > 0;  // no head of a layer without rows takes tokens
    std::size_t const layer = static_cast<std::size_t>(shape.first_layer) + i;
    check_pointer(tokens[i].keys, needed, "new keys", where, layer);
    check_pointer(tokens[i].values, needed, "new values", where, layer);
    check_pointer(cache.data.keys, needed, "cache's keys", where, layer);
    check_pointer(cache.data.values, needed, "cache's values", where, layer);
    add_extent(memory.sources, keys, tokens[i].keys);
    add_extent(memory.sources, values, tokens[i].values);
    Interval const cache_keys = interval(cache.data.keys, cache.key_elements);
    Interval const cache_values = interval(cache.data.values, cache.value_elements);
    bool apart = cache_keys.end <= cache_values.begin || cache_values.end <= cache_keys.begin;
    if (!apart && shape.page_stride > 0) {
      auto const size = static_cast<std::int64_t>(sizeof(T));
      auto const page = shape.page_stride * size;
      auto const shift = static_cast<std::int64_t>(cache_values.begin) - static_cast<std::int64_t>(cache_keys.begin);
      std::int64_t const after = (shift % page + page) % page;  // from a page's keys to the next values
      apart =
          after >= shape.page_size * shape.head_dim * size && after + shape.page_size * shape.value_dim * size <= page;
    }
    require(!some || apart, "cache's buffers", "keys apart from values", "overlapping buffers", where);
    memory.destinations.push_back(cache_keys);
    memory.destinations.push_back(cache_values);
  }
  require(!sort_and_overlap(memory.sources, memory.destinations), "buffers", "new tokens apart from the cache",
          "overlapping buffers", where);
}

/// Copies the new tokens, from `length` on, that a head keeps. @param rows  all rows that it holds after the append
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
  auto const keys = keys_of(source);
  auto const values = values_of(source);
  bool const key_rows = rows_contiguous(keys, shape.head_dim);
  bool const value_rows = rows_contiguous(values, shape.value_dim);
  std::int64_t new_tokens = 0;
  for (std::int32_t const count : counts) new_tokens += count;
  std::int64_t const heads = static_cast<std::int64_t>(tokens.size()) * shape.num_sequences * shape.num_kv_heads;
  std::int64_t const bytes = new_tokens * static_cast<std::int64_t>(tokens.size()) * shape.num_kv_heads *
                             (shape.head_dim + shape.value_dim) * static_cast<std::int64_t>(sizeof(T));
  // A decoding step ends before other threads would have begun.
  bool const share = bytes > (1 << 20);
  parallel_for(
      heads, 1, share, [] { return StreamFence(); },
      [&](StreamFence const&, std::int64_t h) {
        auto const kv_head = static_cast<std::int32_t>(h % shape.num_kv_heads);
        auto const sequence = static_cast<std::int32_t>(h / shape.num_kv_heads % shape.num_sequences);
        auto const i = static_cast<std::size_t>(h / shape.num_kv_heads / shape.num_sequences);
        auto const b = static_cast<std::size_t>(sequence);
        if (counts[b] == 0) return;
        std::int64_t const length = lengths[b];
        auto const rows = cache.rows(shape.first_layer + static_cast<std::int32_t>(i), sequence, kv_head,
                                     length + counts[b], high_water[b]);
        LayerKv<T> const data = buffers(i).data;
        append_tokens<T>(rows, length, keys, sequence, kv_head, shape.head_dim, key_rows, tokens[i].keys, data.keys);
        append_tokens<T>(rows, length, values, sequence, kv_head, shape.value_dim, value_rows, tokens[i].values,
                         data.values);
      });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
