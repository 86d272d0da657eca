#pragma once

// The tensors of all layers as launches take them: one plane if layers are alike, else one per kind of layer.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/layer_kinds.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The addresses of a tensor in all layers of a kind, joined by `|`.
/// @param in_kind  (layer)
template <class From, class To, class InKind>
std::uintptr_t joined_addresses(std::size_t layers, From const& from, To const& to, InKind const& in_kind) {
  std::uintptr_t addresses = 0;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    if (!in_kind(layer)) continue;
    addresses |= reinterpret_cast<std::uintptr_t>(from(layer)) | reinterpret_cast<std::uintptr_t>(to(layer));
  }
  return addresses;
}

/// A layout with the channels of its rows: what tells kinds of layers apart.
template <class Layout>
struct LayoutAndChannels {
  Layout layout;
  std::int64_t channels;
  friend bool operator==(LayoutAndChannels const& a, LayoutAndChannels const& b) {
    return a.channels == b.channels && same(a.layout, b.layout);
  }
};

/// @brief The plane of every layer: one if all are alike, else one per kind.
/// @param rows  (layer) to `LayoutAndChannels`; no channels: the layer has no such tensor
/// @param make  (LayoutAndChannels, joined addresses of the kind's tensors) to the plane
template <bool Layered, class Rows, class From, class To, class Make>
auto planes_of(std::size_t layers, char const* where, Rows const& rows, From const& from, To const& to,
               Make const& make) {
  auto const skip = [&](std::size_t layer) { return rows(layer).channels == 0; };
  if constexpr (Layered) {
    using Plane = std::remove_const_t<decltype(make(rows(0), std::uintptr_t{}))>;
    return sort_layers<Plane>(layers, where, skip, rows, [&](std::size_t first) {
      auto const kind = rows(first);
      auto const in_kind = [&](std::size_t layer) { return rows(layer) == kind; };
      return make(kind, joined_addresses(layers, from, to, in_kind));
    });
  } else {
    std::size_t first = 0;
    while (first + 1 < layers && skip(first)) ++first;
    std::int64_t const channels = rows(first).channels;
    for (std::size_t layer = first; layer < layers; ++layer) {
      std::int64_t const here = rows(layer).channels;
      require(here == 0 || here == channels, "channels of layers that have one layout", channels, here,
              {where, ", layer ", layer, " (per_layer gives each its own)"});
    }
    return make(rows(first), joined_addresses(layers, from, to, [&](std::size_t layer) { return !skip(layer); }));
  }
}

/// Layout and channels of a layer's keys, and of its values.
struct KeysOf {
  template <class Source>
  auto operator()(Source const& source, RowChannels const& channels) const {
    return LayoutAndChannels<decltype(keys_of(source))>{keys_of(source), channels.head_dim};
  }
};
struct ValuesOf {
  template <class Source>
  auto operator()(Source const& source, RowChannels const& channels) const {
    return LayoutAndChannels<decltype(values_of(source))>{values_of(source), channels.value_dim};
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
