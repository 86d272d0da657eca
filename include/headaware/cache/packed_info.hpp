#pragma once

/// @file
/// Tokens and bytes of caches of encoded rows.

#include <headaware/cache/cache_info.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/sizes.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Sums up a cache of encoded rows. Bytes are those of its buffers: codes, scales and minima, rows that are
/// whole `RowUnit`s, and the rows that its form leaves free (pads, slots of a ring). `CacheInfo::ratio` is their share
/// of the full cache in 16 bits.
/// @param sizes  whose rows the cache holds
/// @param cache  with buffers or without
/// @throws ArgumentError if the cache has other layers or KV heads
/// @par Cost  O(layers · sequences · heads)
template <class Form, class Registry>
[[nodiscard]] CacheInfo cache_info(CacheSizes const& sizes, PackedDestination<Form, Registry> const& cache) {
  constexpr auto where = "cache_info";
  auto const layers = static_cast<std::size_t>(sizes.num_layers());
  require(cache.capacities.size() == layers, "cache's layers", layers, cache.capacities.size(), where);
  for (std::size_t l = 0; l < layers; ++l) {
    std::int32_t const heads = sizes.num_kv_heads(static_cast<std::int32_t>(l));
    require(cache.capacities[l].num_kv_heads == heads, "cache's KV heads", heads, cache.capacities[l].num_kv_heads,
            {where, ", layer ", l});
  }
  LayerBytes const token = cache.channels.token_bytes(2);
  CacheInfo info = cache_info(sizes, token);
  for (std::size_t l = 0; l < layers; ++l) {
    info.layers[l].bytes = (cache.first_units[l + 1] - cache.first_units[l]) * std::int64_t{sizeof(RowUnit)};
  }
  info.bytes = cache.total_bytes();
  std::int64_t const full = sizes.bytes_full(token);
  info.ratio = full > 0 ? static_cast<double>(info.bytes) / static_cast<double>(full) : 1;
  return info;
}

HEADAWARE_NAMESPACE_END
