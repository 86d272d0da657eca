#pragma once

/// @file
/// Channels of a cache's rows, layer by layer.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Channels of one layer's rows.
struct RowChannels {
  std::int64_t head_dim = 0;   ///< of a key
  std::int64_t value_dim = 0;  ///< of a value; 0: no rows of their own, the values are in the keys' (a latent)

  friend constexpr bool operator==(RowChannels const&, RowChannels const&) = default;
};

/// @brief Channels of the rows of all layers: one number where all are alike, or a model's shape.
class LayerChannels {
 public:
  LayerChannels() = default;
  /// Implicit on purpose: keys and values of as many channels, in all layers.
  template <std::integral Int>
  LayerChannels(Int head_dim) : common_{static_cast<std::int64_t>(head_dim), static_cast<std::int64_t>(head_dim)} {}
  LayerChannels(std::int64_t head_dim, std::int64_t value_dim) : common_{head_dim, value_dim} {}
  /// Implicit on purpose: those of the model's caches.
  template <class Layer = LayerShape>
  LayerChannels(ModelShape const& shape) {
    for (Layer const& l : shape.layers()) {
      RowChannels const rows{l.head_dim, l.kind == LayerKind::latent ? 0 : l.value_dim};
      layers_.push_back(l.has_cache() ? rows : RowChannels{});
      common_ = {std::max(common_.head_dim, layers_.back().head_dim),
                 std::max(common_.value_dim, layers_.back().value_dim)};
    }
    num_layers_ = layers_.size();
    bool const alike = std::all_of(layers_.begin(), layers_.end(), [&](RowChannels const& l) { return l == common_; });
    if (alike) layers_.clear();
  }

  /// Of one layer; of none, zeros, where the model's layer has no cache.
  [[nodiscard]] RowChannels const& of(std::size_t layer) const { return layers_.empty() ? common_ : layers_[layer]; }
  /// Of all layers; where they differ, the most of any.
  [[nodiscard]] RowChannels const& common() const { return common_; }
  /// Whether every layer has `common()`.
  [[nodiscard]] bool alike() const { return layers_.empty(); }
  /// [num_layers]; empty where all are alike.
  template <class Rows = RowChannels>
  [[nodiscard]] std::span<Rows const> layers() const {
    return {layers_.data(), layers_.size()};
  }
  /// Layers that these are of; 0: any number.
  [[nodiscard]] std::size_t num_layers() const { return num_layers_; }
  /// @brief The elements of a page that holds `page_size` tokens of the widest layer, of keys and of values alike:
  /// `PageStorage::page_stride` of a model whose layers differ.
  /// @throws ArgumentError if the page size is not positive, or beyond 64 bits
  [[nodiscard]] std::int64_t page_stride(std::int64_t page_size) const {
    require(page_size > 0, "page size", "> 0", page_size, "LayerChannels::page_stride");
    return detail::elements("LayerChannels::page_stride", {page_size, widest(common_)});
  }
  /// @brief Tokens of each layer that fit such a page, `page_size` of a layer without a cache.
  /// @return [num_layers()]; empty where all layers are alike
  /// @throws ArgumentError if the page size is not positive, or tokens exceed int32
  template <class Size = std::int32_t>
  [[nodiscard]] std::vector<Size> page_sizes(Size page_size) const {
    std::int64_t const stride = page_stride(page_size);
    std::vector<Size> result;
    for (RowChannels const& of : layers_) {
      std::int64_t const tokens = widest(of) > 0 ? stride / widest(of) : page_size;
      require(tokens <= std::numeric_limits<Size>::max(), "page size", {"of at most 2147483647 tokens of any layer"},
              tokens, "LayerChannels::page_sizes");
      result.push_back(static_cast<Size>(tokens));
    }
    return result;
  }
  /// @brief Bytes of one token of every layer in elements of `element_bytes`. @throws ArgumentError beyond 64 bits
  template <class Bytes = LayerBytes>
  [[nodiscard]] Bytes token_bytes(std::size_t element_bytes) const {
    auto const element = static_cast<std::int64_t>(element_bytes);
    auto const bytes = [&](RowChannels const& rows) {
      constexpr auto where = "LayerChannels::token_bytes";
      return TokenBytes{detail::elements(where, {rows.head_dim, element}),
                        detail::elements(where, {rows.value_dim, element})};
    };
    if (alike()) return Bytes(bytes(common_));
    std::vector<TokenBytes> each;
    for (RowChannels const& rows : layers_) each.push_back(bytes(rows));
    return Bytes(std::move(each));
  }
  /// The same keys with values of `value_dim` channels in all layers. @pre alike()
  [[nodiscard]] LayerChannels with_values(std::int64_t value_dim) const { return {common_.head_dim, value_dim}; }

  friend bool operator==(LayerChannels const&, LayerChannels const&) = default;

 private:
  [[nodiscard]] static std::int64_t widest(RowChannels const& of) { return std::max(of.head_dim, of.value_dim); }

  RowChannels common_;
  std::size_t num_layers_ = 0;
  std::vector<RowChannels> layers_;  ///< empty where all are alike
};

/// @brief The elements of one buffer of keys and one of values that hold all layers back to back, on host or device.
/// @param channels  head_dim where all layers are alike, or a `ModelShape`
/// @param rows      (layer) to its rows: `CacheSizes::kept_total` for `ragged`, `RollingSlots::rows_total` for
/// `rolling`
/// @return elements of keys (`head_dim`) and of values (`value_dim`)
/// @throws ArgumentError where a layer's are beyond 64 bits
template <class Rows>
[[nodiscard]] RowChannels buffer_elements(LayerChannels const& channels, std::int32_t num_layers, Rows const& rows) {
  constexpr auto where = "buffer_elements";
  RowChannels total;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    RowChannels const& of = channels.of(static_cast<std::size_t>(layer));
    total.head_dim += detail::elements(where, {rows(layer), of.head_dim});
    total.value_dim += detail::elements(where, {rows(layer), of.value_dim});
  }
  return total;
}

HEADAWARE_NAMESPACE_END
