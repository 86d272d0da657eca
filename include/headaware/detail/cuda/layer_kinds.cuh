#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/error.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Kinds of layers whose tensors one launch tells apart: models have two or three.
inline constexpr std::int32_t max_layer_kinds = 8;

/// One `Item` per kind of layer, and the kind of every layer, as kernel parameters.
template <class Item>
struct LayerKinds {
  std::int32_t used = 1;  ///< kinds
  std::int32_t num_layers = 0;
  std::uint8_t kind_of[max_layers] = {};
  Item kinds[max_layer_kinds + 1] = {};  ///< the first, all zeros, is of layers without such a tensor

  [[nodiscard]] HEADAWARE_HOST_DEVICE Item const& of(std::int64_t layer) const { return kinds[kind_of[layer]]; }
};

template <class T>
inline constexpr bool is_layer_kinds = false;
template <class Item>
inline constexpr bool is_layer_kinds<LayerKinds<Item>> = true;

/// What holds of one layer: a single item holds of all.
template <class Item>
HEADAWARE_HOST_DEVICE Item const& of_layer(Item const& item, std::int64_t) {
  return item;
}
template <class Item>
HEADAWARE_HOST_DEVICE Item const& of_layer(LayerKinds<Item> const& items, std::int64_t layer) {
  return items.of(layer);
}

/// Copies what a block reads of the items to shared memory. Does not synchronise.
template <class Item>
__device__ void share_items(Item const& from, Item& to) {
  share_words(from, to);
}
template <class Item>
__device__ void share_items(LayerKinds<Item> const& from, LayerKinds<Item>& to) {
  // One warp: every thread that takes part reads how much there is.
  if (threadIdx.x >= warp_threads) return;
  std::int32_t const num_layers = from.num_layers;
  std::int32_t const words = from.used * static_cast<std::int32_t>(sizeof(Item) / 4);
  auto const lane = static_cast<std::int32_t>(threadIdx.x);
  for (std::int32_t i = lane; i < num_layers; i += warp_threads) to.kind_of[i] = from.kind_of[i];
  auto const* const source = reinterpret_cast<std::uint32_t const*>(from.kinds);
  auto* const target = reinterpret_cast<std::uint32_t*>(to.kinds);
  for (std::int32_t i = lane; i < words; i += warp_threads) target[i] = source[i];
}

template <class T>
bool same(T const& a, T const& b) {
  if constexpr (requires {
                  { a == b } -> std::convertible_to<bool>;
                }) {
    return a == b;
  } else {
    static_assert(std::is_trivially_copyable_v<T>);
    return std::memcmp(&a, &b, sizeof(T)) == 0;
  }
}

/// Sorts layers into kinds. Layers with `skip(layer)` have an item of zeros.
/// @param key   (layer) to what tells kinds apart
/// @param item  (layer) to the item of its kind, of the first such layer
/// @throws ArgumentError on more than `max_layer_kinds`
template <class Item, class Skip, class Key, class MakeItem>
LayerKinds<Item> sort_layers(std::size_t layers, char const* where, Skip const& skip, Key const& key,
                             MakeItem const& item) {
  LayerKinds<Item> result;
  result.num_layers = static_cast<std::int32_t>(layers);
  std::size_t first[max_layer_kinds + 1] = {};
  for (std::size_t layer = 0; layer < layers; ++layer) {
    if (skip(layer)) continue;
    std::int32_t kind = 1;
    while (kind < result.used && !same(key(first[kind]), key(layer))) ++kind;
    if (kind == result.used) {
      require(kind <= max_layer_kinds, "kinds of layers", {"at most ", max_layer_kinds, ", layouts and channels alike"},
              "more", where);
      first[result.used++] = layer;
      result.kinds[kind] = item(layer);
    }
    result.kind_of[layer] = static_cast<std::uint8_t>(kind);
  }
  return result;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
