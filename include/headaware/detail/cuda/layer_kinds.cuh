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
  Item kinds[max_layer_kinds + 1];  ///< the last, all zeros, is of layers without such a tensor
  std::uint8_t kind_of[max_layers];

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
  LayerKinds<Item> result{};
  std::size_t first[max_layer_kinds] = {};
  std::size_t count = 0;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    std::size_t kind = skip(layer) ? max_layer_kinds : 0;
    while (kind < count && !same(key(first[kind]), key(layer))) ++kind;
    if (kind == count && !skip(layer)) {
      require(count < max_layer_kinds, "kinds of layers", {"at most ", max_layer_kinds, ", layouts and channels alike"},
              "more", where);
      first[count++] = layer;
      result.kinds[kind] = item(layer);
    }
    result.kind_of[layer] = static_cast<std::uint8_t>(kind);
  }
  return result;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
