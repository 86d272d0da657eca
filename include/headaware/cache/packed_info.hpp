#pragma once

/// @file
/// Tokens and bytes of caches of encoded rows.

#include <headaware/cache/cache_info.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/scored_records.hpp>
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

/// @brief Sums up a rolling cache of encoded rows with an exact ring beside it. Bytes are those of both buffers; tokens
/// and rows are the cache's, as the ring's are copies of some.
/// @param ring           the ring's slots, of the same layers and KV heads
/// @param element_bytes  of the ring's elements: 2 for float16
/// @throws ArgumentError if the cache or the ring has other layers or KV heads
/// @par Cost  O(layers · sequences · heads)
template <class Registry>
[[nodiscard]] CacheInfo cache_info(CacheSizes const& sizes, PackedDestination<RollingSlotsView, Registry> const& cache,
                                   RollingSlots const& ring, std::size_t element_bytes) {
  constexpr auto where = "cache_info, ring";
  CacheInfo info = cache_info(sizes, cache);
  require(ring.num_layers() == sizes.num_layers(), "layers of the ring", sizes.num_layers(), ring.num_layers(), where);
  LayerBytes const token = cache.channels.token_bytes(element_bytes);
  for (LayerInfo& layer : info.layers) {
    std::int32_t const heads = sizes.num_kv_heads(layer.layer_idx);
    std::int32_t const of_ring = ring.heads().count(layer.layer_idx);
    require(of_ring == heads, "KV heads of the ring", heads, of_ring, {where, ", layer ", layer.layer_idx});
    std::int64_t const bytes =
        detail::elements(where, {ring.rows_total(layer.layer_idx), token.of(layer.layer_idx).total()});
    layer.bytes += bytes;
    info.bytes += bytes;
  }
  std::int64_t const full = sizes.bytes_full(cache.channels.token_bytes(2));
  info.ratio = full > 0 ? static_cast<double>(info.bytes) / static_cast<double>(full) : 1;
  return info;
}

/// @brief Sums up a rolling cache of encoded rows with the scores and records of its scored slots, whose bytes count as
/// its own. @param scores  of the cache's slots
/// @throws ArgumentError if the cache has other layers or KV heads, or the records other layers
/// @par Cost  O(layers · sequences · heads)
template <class Registry>
[[nodiscard]] CacheInfo cache_info(CacheSizes const& sizes, PackedDestination<RollingSlotsView, Registry> const& cache,
                                   RollingScores const& scores) {
  constexpr auto where = "cache_info, scores";
  CacheInfo info = cache_info(sizes, cache);
  require(scores.num_layers() == sizes.num_layers(), "layers of the scores", sizes.num_layers(), scores.num_layers(),
          where);
  for (LayerInfo& layer : info.layers) layer.bytes += scores.bytes_held(layer.layer_idx);
  info.bytes += scores.bytes_held();
  std::int64_t const full = sizes.bytes_full(cache.channels.token_bytes(2));
  info.ratio = full > 0 ? static_cast<double>(info.bytes) / static_cast<double>(full) : 1;
  return info;
}

/// @brief Bytes of a rolling cache of encoded rows and of the exact ring beside it, known before there is any buffer.
/// @param ring           the ring's slots @param element_bytes  of the ring's elements: 2 for float16
/// @throws ArgumentError beyond 64 bits
template <class Registry>
[[nodiscard]] std::int64_t bytes_held(PackedDestination<RollingSlotsView, Registry> const& cache,
                                      RollingSlots const& ring, std::size_t element_bytes) {
  return cache.total_bytes() + ring.bytes_held(cache.channels.token_bytes(element_bytes));
}

HEADAWARE_NAMESPACE_END
