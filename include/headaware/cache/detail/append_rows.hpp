#pragma once

// What appending to rolling and to paged caches shares: checks, and the CPU's copy of the tokens that stay.

#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/stream_bytes.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// What an append is about, whichever cache and back end.
struct AppendShape {
  std::int32_t first_layer = 0;
  std::int32_t num_layers = 0;  ///< of the cache
  std::int32_t num_sequences = 0;
  std::int32_t num_kv_heads = 0;
  std::int64_t max_count = 0;  ///< new tokens of a sequence, at most
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
  bool writes = false;           ///< some head takes tokens
  std::int64_t page_size = 0;    ///< tokens; > 0: buffers are pages,
  std::int64_t page_stride = 0;  ///< so many elements from each other: values may lie between keys
};

/// Checks what can be checked without reading a tensor. @param cache  [new tokens' layers]; @param elements  of a
/// layer's buffers: keys, values
template <class T, class U, class Source>
void check_append(AppendShape const& shape, std::vector<LayerKv<U>> const& tokens, Source const& source,
                  LayerKv<T> const* cache, LayerKv<std::int64_t const> const& elements) {
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
  Memory memory;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    bool const needed = some && elements.keys[i] > 0;  // no head of a layer without rows takes tokens
    auto const check = [&](auto const* data, char const* what) {
      bool const aligned = reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0;
      if (!aligned || (needed && data == nullptr)) {
        check_pointer(data, needed, what, "append, layer " + std::to_string(shape.first_layer + static_cast<int>(i)));
      }
    };
    check(tokens[i].keys, "new keys");
    check(tokens[i].values, "new values");
    check(cache[i].keys, "cache's keys");
    check(cache[i].values, "cache's values");
    add_extent(memory.sources, keys, tokens[i].keys);
    add_extent(memory.sources, values, tokens[i].values);
    Interval const cache_keys = interval(cache[i].keys, elements.keys[i]);
    Interval const cache_values = interval(cache[i].values, elements.values[i]);
    bool apart = cache_keys.end <= cache_values.begin || cache_values.end <= cache_keys.begin;
    if (!apart && shape.page_stride > 0) {
      auto const size = static_cast<std::int64_t>(sizeof(T));
      auto const page = shape.page_stride * size;
      auto const shift = static_cast<std::int64_t>(cache_values.begin) - static_cast<std::int64_t>(cache_keys.begin);
      std::int64_t const behind = (shift % page + page) % page;  // from a page's keys to the values next behind them
      apart = behind >= shape.page_size * shape.head_dim * size &&
              behind + shape.page_size * shape.value_dim * size <= page;
    }
    if (some && !apart) require(false, "cache's buffers", "keys apart from values", "overlapping buffers", where);
    memory.destinations.push_back(cache_keys);
    memory.destinations.push_back(cache_values);
  }
  if (overlap(memory.sources, memory.destinations)) {
    require(false, "buffers", "new tokens apart from the cache", "overlapping buffers", where);
  }
}

/// Copies one head's tokens that stay. @param element_offset  token to element of the cache's tensor
template <class T, class Layout, class Offset>
void append_tokens(Survivors const& tokens, Layout const& layout, std::int32_t sequence, std::int32_t kv_head,
                   std::int64_t channels, bool contiguous, T const* source, T* cache, Offset const& element_offset) {
  for (std::int64_t i = 0, n = tokens.count(); i < n; ++i) {
    std::int64_t const token = tokens.token(i);
    T* const to = cache + element_offset(token);
    std::int64_t const from = token - tokens.first;
    if (contiguous) {
      // The next step will not write this row again, and attention reads it among all that the head keeps.
      stream_bytes(to, source + layout.offset(sequence, kv_head, from, 0),
                   static_cast<std::size_t>(channels) * sizeof(T));
    } else {
      for (std::int64_t c = 0; c < channels; ++c) to[c] = source[layout.offset(sequence, kv_head, from, c)];
    }
  }
}

/// @brief Writes new tokens to where `placement` puts them.
/// @param placement  `survivors(layer, kv_head, length, written, count)` and
///                   `offset(layer, sequence, kv_head, token, channels)`, elements from the layer's buffer
/// @param count      (sequence) to number of new tokens
template <class Placement, class T, class U, class Source, class Length, class Written, class Count>
void append_rows(AppendShape const& shape, Placement const& placement, std::vector<LayerKv<U>> const& tokens,
                 Source const& source, LayerKv<T> const* cache, Length const& length, Written const& written,
                 Count const& count) {
  auto const keys = keys_of(source);
  auto const values = values_of(source);
  bool const key_rows = rows_contiguous(keys, shape.head_dim);
  bool const value_rows = rows_contiguous(values, shape.value_dim);
  std::int64_t new_tokens = 0;
  for (std::int32_t b = 0; b < shape.num_sequences; ++b) new_tokens += count(b);
  std::int64_t const heads = static_cast<std::int64_t>(tokens.size()) * shape.num_sequences * shape.num_kv_heads;
  std::int64_t const bytes = new_tokens * static_cast<std::int64_t>(tokens.size()) * shape.num_kv_heads *
                             (shape.head_dim + shape.value_dim) * static_cast<std::int64_t>(sizeof(T));
  // A step of decoding is over before other threads would have begun.
  bool const share = bytes > (1 << 20);
  parallel_for(
      heads, 1, share, [] { return StreamFence(); },
      [&](StreamFence const&, std::int64_t h) {
        auto const kv_head = static_cast<std::int32_t>(h % shape.num_kv_heads);
        auto const sequence = static_cast<std::int32_t>(h / shape.num_kv_heads % shape.num_sequences);
        auto const i = static_cast<std::size_t>(h / shape.num_kv_heads / shape.num_sequences);
        std::int32_t const layer = shape.first_layer + static_cast<std::int32_t>(i);
        if (count(sequence) == 0) return;
        Survivors const staying =
            placement.survivors(layer, kv_head, length(sequence), written(sequence), count(sequence));
        auto const write = [&](auto const& layout, std::int64_t channels, bool contiguous, T const* from, T* to) {
          append_tokens(staying, layout, sequence, kv_head, channels, contiguous, from, to, [&](std::int64_t token) {
            return placement.offset(layer, sequence, kv_head, token, channels);
          });
        };
        write(keys, shape.head_dim, key_rows, tokens[i].keys, cache[i].keys);
        write(values, shape.value_dim, value_rows, tokens[i].values, cache[i].values);
      });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
