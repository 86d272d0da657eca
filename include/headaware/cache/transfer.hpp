#pragma once

/// @file
/// One tensor pair to compress: where its keys and values are, how they lie, and where they go.

#include <headaware/cache/destination.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>

#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Whether keys in a form of cache must keep their positions.
template <class Form>
inline constexpr bool keeps_positions = requires {
  requires Form::keeps_positions;
};

}  // namespace detail

/// @brief Source and destination of the keys and values of all layers. Made by `transfer`.
///
/// A cache with scales is two transfers of one call: the elements, and the scales as tensors of
/// their own whose "channels" are a token's scales.
template <class T, class Source, class Form, class Rotation = KeepPositions>
struct Transfer {
  std::vector<LayerKv<T const>> layers;  ///< [num_layers] base pointers
  Source source;                         ///< one layout, or `KvLayouts` where keys and values differ
  Destination<T, Form> kept;
  Rotation rotation{};

  /// @brief Adds a rotation of keys to the positions of their rows in the compressed cache. Not for a rolling
  /// cache, whose slots and positions differ from the next token on.
  /// One rotation serves all layers of a call: layers of other frequencies go into a call of their own
  /// (`PolicyTable::select_layers`); a latent's keys are not turned.
  ///
  /// For keys that have not been turned before in 16 bits: each turn rounds them, and where a call's output is the next
  /// one's source the errors add up unnoticed (`KeyRotation::evicting` has figures). Turn once, from the cache as the
  /// model wrote it, or keep keys of 32 bits.
  [[nodiscard]] Transfer<T, Source, Form, KeyRotation> rotate_keys(KeyRotation const& key_rotation) const {
    static_assert(!detail::keeps_positions<Form>, "headaware: keys of a rolling cache keep their positions, as new "
                                                  "tokens go on counting them: compress without rotate_keys");
    return {layers, source, kept, key_rotation};
  }
};

/// @brief Describes a move of keys and values. The pointers are copied: `layers` may go.
/// @param layers  [num_layers] `LayerKv<T const>` or `LayerKv<T>`, host or device pointers
/// @param source  how each layer's keys and values lie
/// @param kept    where they go: `ragged`, `padded`, `grouped`, `paged` or `rolling`
template <LayerRange Layers, class Source, class T, class Form>
[[nodiscard]] Transfer<T, Source, Form> transfer(Layers const& layers, Source const& source,
                                                 Destination<T, Form> const& kept) {
  auto const span = layer_span(layers);
  static_assert(std::is_same_v<std::remove_const_t<std::remove_pointer_t<decltype(span.front().keys)>>, T>,
                "headaware: source and destination hold different element types");
  Transfer<T, Source, Form> result{{}, source, kept, {}};
  result.layers.reserve(span.size());
  for (auto const& layer : span) result.layers.push_back({layer.keys, layer.values});
  return result;
}

HEADAWARE_NAMESPACE_END
