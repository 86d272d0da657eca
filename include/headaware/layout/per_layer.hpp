#pragma once

/// @file
/// Layouts of tensors that differ by layer.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One layout per layer, in place of one for all: where layers have other KV heads or channels. Borrows; layers
/// without a cache may have any.
/// @tparam Layout  a `KvLayout`, or `KvLayouts`
template <class Layout>
struct LayerLayouts {
  std::span<Layout const> layouts;  ///< [num_layers]
};

/// @brief Makes `LayerLayouts` of anything that holds layouts side by side. @param layouts  [num_layers]; borrowed
template <class Layouts>
[[nodiscard]] auto per_layer(Layouts const& layouts) {
  using Layout = std::remove_cv_t<typename decltype(std::span(layouts))::element_type>;
  return LayerLayouts<Layout>{std::span<Layout const>(layouts)};
}
/// The same of a span, which borrows itself.
template <class Layout>
[[nodiscard]] auto per_layer(std::span<Layout> layouts) {
  return LayerLayouts<std::remove_cv_t<Layout>>{layouts};
}
/// Layouts that would be gone: name them first.
template <class Layouts>
void per_layer(Layouts const&& layouts) = delete;

namespace detail {

/// Whether a type holds layouts side by side.
template <class Source>
inline constexpr bool is_layout_range = requires(Source const& source) {
  std::span(source);
};

/// The layout of one layer: a single one serves all.
template <class Source>
constexpr Source const& layer_source(Source const& source, std::size_t) {
  static_assert(!is_layout_range<Source>, "headaware: layouts of single layers go in as ha::per_layer(layouts)");
  return source;
}
template <class Layout>
constexpr Layout const& layer_source(LayerLayouts<Layout> const& source, std::size_t layer) {
  return source.layouts[layer];
}

template <class Source>
inline constexpr bool is_layered = false;
template <class Layout>
inline constexpr bool is_layered<LayerLayouts<Layout>> = true;

/// The place of an error about one layer's layout; nothing where one layout serves all.
template <class Source>
struct OfLayer {
  std::size_t layer;
  std::string operator()() const { return is_layered<Source> ? ", layer " + std::to_string(layer) : std::string(); }
};

template <class Source>
void check_layers_of_source(Source const& source, std::size_t num_layers, char const* where) {
  if constexpr (is_layered<Source>) {
    require(source.layouts.size() == num_layers, "layouts", {num_layers, ", one per layer"}, source.layouts.size(),
            where);
  }
}

/// Calls `f` with every layout of a source: the one, or those of layers with KV heads. @param sizes  `CacheSizes`
template <class Source, class Sizes, class F>
void for_each_layout(Source const& source, Sizes const&, F const& f) {
  f(source);
}
template <class Layout, class Sizes, class F>
void for_each_layout(LayerLayouts<Layout> const& source, Sizes const& sizes, F const& f) {
  for (std::size_t layer = 0; layer < source.layouts.size(); ++layer) {
    if (sizes.num_kv_heads(static_cast<std::int32_t>(layer)) > 0) f(source.layouts[layer]);
  }
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
