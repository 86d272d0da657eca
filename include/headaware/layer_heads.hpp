#pragma once

/// @file
/// Numbers of KV heads in models whose layers have different ones.

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Numbers the KV heads of all layers one after the other, layer by layer. Trivially copyable; borrows
/// `first_heads`.
struct LayerHeads {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;  ///< of every layer; where they differ, of the layer that has most
  /// [num_layers + 1] heads of all layers before, where the back end runs; nullptr: every layer has `num_kv_heads`
  std::int32_t const* first_heads = nullptr;
  std::int32_t num_heads = 0;  ///< of all layers, which the host may not read from `first_heads`; unused without them

  /// Number of a layer's first head. @pre 0 <= layer <= num_layers
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t first(std::int64_t layer) const {
    return first_heads != nullptr ? first_heads[layer] : layer * num_kv_heads;
  }
  /// Heads of a layer. @pre 0 <= layer < num_layers
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int32_t count(std::int64_t layer) const {
    return first_heads != nullptr ? first_heads[layer + 1] - first_heads[layer] : num_kv_heads;
  }
  /// Heads of all layers.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t total() const {
    return first_heads != nullptr ? num_heads : std::int64_t{num_layers} * num_kv_heads;
  }
  /// @brief The layer of a head, of heads that each stand for `repeat` neighbours: of `index / repeat`.
  /// @pre 0 <= index < total() * repeat
  /// @par Cost  O(1) where all layers are alike, else O(log(layers))
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int32_t layer_of(std::int64_t index, std::int64_t repeat) const {
    if (first_heads == nullptr) return static_cast<std::int32_t>(index / num_kv_heads / repeat);
    std::int32_t low = 0;  // the last layer that begins at or before the head
    std::int32_t high = num_layers;
    while (high - low > 1) {
      std::int32_t const middle = low + (high - low) / 2;
      if (first_heads[middle] * repeat <= index) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

namespace detail {

/// KV heads of a table's layers, or of anything else that has them.
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table>
HEADAWARE_HOST_DEVICE LayerHeads layer_heads(Table const& table) {
  if constexpr (requires { table.heads(); }) {
    return table.heads();
  } else {
    return {table.num_layers(), table.num_kv_heads()};
  }
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
