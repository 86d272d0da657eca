#pragma once

/// @file
/// The buffers of a cache's layers.

#include <headaware/config.hpp>

#include <span>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Base pointers of one layer's keys and values: host or device, as the back end has it.
template <class T>
struct LayerKv {
  T* keys = nullptr;
  T* values = nullptr;
};

namespace detail {

template <class T, template <class> class Record>
inline constexpr bool is_record = false;
template <class T, template <class> class Record>
inline constexpr bool is_record<Record<T>, Record> = true;

/// Anything that holds `Record<T>` side by side.
template <class Range, template <class> class Record>
concept RangeOf = requires(Range const& range) {
  std::span(range);
}
&&is_record<std::remove_cv_t<typename decltype(std::span(std::declval<Range const&>()))::element_type>, Record>;

}  // namespace detail

/// @brief Anything that holds `LayerKv<T>` side by side, one per layer: a vector, an array, a span.
template <class Layers>
concept LayerRange = detail::RangeOf<Layers, LayerKv>;

/// @brief `T` of the `LayerKv<T>` that a range holds.
template <LayerRange Layers>
using LayerElement = std::remove_pointer_t<decltype(std::span(std::declval<Layers const&>()).front().keys)>;

/// @brief The layers as a span; its elements are `LayerKv<T> const`.
template <LayerRange Layers>
[[nodiscard]] auto layer_span(Layers const& layers) {
  using Layer = std::remove_cv_t<typename decltype(std::span(layers))::element_type>;
  return std::span<Layer const>(layers);
}

HEADAWARE_NAMESPACE_END
