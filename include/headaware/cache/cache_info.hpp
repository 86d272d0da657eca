#pragma once

/// @file
/// Tokens and bytes of a cache, before and after compression, in all and per layer.

#include <headaware/cache/sizes.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Fewest, most and mean tokens that heads hold.
struct LengthSummary {
  std::int64_t min = 0;
  std::int64_t max = 0;
  double mean = 0;
};

/// @brief One layer of a cache.
struct LayerInfo {
  std::int32_t layer_idx = 0;
  LengthSummary lengths{};  ///< over sequences and KV heads
  std::int64_t rows = 0;    ///< (token, KV head) pairs held
  std::int64_t bytes = 0;
};

/// @brief A whole cache.
struct CacheInfo {
  std::vector<LayerInfo> layers;
  LengthSummary lengths;   ///< over layers, sequences and KV heads
  std::int64_t rows = 0;   ///< (token, KV head) pairs held
  std::int64_t bytes = 0;  ///< bytes of keys and values held, exact
  double ratio = 1;        ///< bytes held / `CacheSizes::bytes_full`; 1 for an empty cache
};

namespace detail {

/// Summary of a cache whose segment `s` of layer `l` holds `held(l, s)` tokens.
template <class Held>
CacheInfo summarize_cache(CacheSizes const& sizes, LayerBytes const& token, Held const& held) {
  CacheInfo info;
  bool first = true;
  for (std::int32_t layer = 0; layer < sizes.num_layers(); ++layer) {
    LayerInfo layer_info{.layer_idx = layer};
    std::int64_t const segments = sizes.layer_segments(layer);
    std::int64_t& rows = layer_info.rows;
    for (std::int64_t s = 0; s < segments; ++s) {
      std::int64_t const tokens = held(layer, s);
      rows += tokens;
      layer_info.lengths.min = s == 0 ? tokens : std::min(layer_info.lengths.min, tokens);
      layer_info.lengths.max = std::max(layer_info.lengths.max, tokens);
    }
    layer_info.lengths.mean = segments == 0 ? 0 : static_cast<double>(rows) / static_cast<double>(segments);
    layer_info.bytes = detail::elements("cache_info", {rows, token.of(layer).total()});
    info.rows += rows;
    if (segments == 0 && sizes.num_segments() > 0) {  // holds nothing, since it has no cache
      info.layers.push_back(layer_info);
      continue;
    }
    info.lengths.min = first ? layer_info.lengths.min : std::min(info.lengths.min, layer_info.lengths.min);
    info.lengths.max = std::max(info.lengths.max, layer_info.lengths.max);
    info.layers.push_back(layer_info);
    first = false;
  }
  std::int64_t const heads = sizes.num_segments();
  info.lengths.mean = heads == 0 ? 0 : static_cast<double>(info.rows) / static_cast<double>(heads);
  info.bytes = detail::sum_layer_bytes("cache_info", sizes.num_layers(), token, [&](std::int32_t layer) {
    return info.layers[static_cast<std::size_t>(layer)].rows;
  });
  std::int64_t const full = sizes.bytes_full(token);
  if (full > 0) info.ratio = static_cast<double>(info.bytes) / static_cast<double>(full);
  return info;
}

}  // namespace detail

/// @brief Sums up the compressed cache (ragged: no pads, no partly filled pages).
/// @par Cost  O(layers · sequences · heads)
template <class = void>
[[nodiscard]] CacheInfo cache_info(CacheSizes const& sizes, LayerBytes const& token) {
  return detail::summarize_cache(
      sizes, token, [&](std::int32_t layer, std::int64_t s) { return sizes.kept(sizes.first_segment(layer) + s); });
}

/// @brief Sums up the cache before compression: every head holds every token that its layer sees.
template <class = void>
[[nodiscard]] CacheInfo full_cache_info(CacheSizes const& sizes, LayerBytes const& token) {
  return detail::summarize_cache(sizes, token, [&](std::int32_t layer, std::int64_t s) {
    return sizes.full_length(layer, static_cast<std::int32_t>(s / sizes.num_kv_heads(layer)));
  });
}

/// @brief Formats a table for people, one line per layer.
template <class = void>
[[nodiscard]] std::string to_string(CacheInfo const& info) {
  auto const line = [](char const* name, LengthSummary const& lengths, std::int64_t bytes) {
    char buffer[128];
    std::snprintf(buffer, sizeof(buffer), "%8s %10lld %10lld %12.1f %16lld\n", name,
                  static_cast<long long>(lengths.min), static_cast<long long>(lengths.max), lengths.mean,
                  static_cast<long long>(bytes));
    return std::string(buffer);
  };
  std::string text = "   layer min tokens max tokens  mean tokens       bytes held\n";
  for (LayerInfo const& layer : info.layers) {
    text += line(std::to_string(layer.layer_idx).c_str(), layer.lengths, layer.bytes);
  }
  text += line("all", info.lengths, info.bytes);
  char ratio[64];
  std::snprintf(ratio, sizeof(ratio), "held: %.4f of the full cache\n", info.ratio);
  return text + ratio;
}

HEADAWARE_NAMESPACE_END
