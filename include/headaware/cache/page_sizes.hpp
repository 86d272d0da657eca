#pragma once

/// @file
/// Tokens per page, layer by layer: pages of one size in bytes hold more tokens of layers whose rows are narrower.
/// @par Source  vllm-project/vllm, vllm/v1/core/kv_cache_utils.py, `unify_kv_cache_spec_page_size`

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Tokens per page: one number of all layers, or one per layer, as `LayerChannels::page_sizes` makes them.
/// Trivially copyable; borrows the numbers.
class PageSizes {
 public:
  PageSizes() = default;
  /// Implicit on purpose: of all layers.
  template <std::integral Int>
  PageSizes(Int page_size) : common_(static_cast<std::int64_t>(page_size)) {}
  /// Implicit on purpose. @param layers  [num_layers]
  template <class Range>
    requires(std::convertible_to<Range const&, std::span<std::int32_t const>>)
  PageSizes(Range const& layers) : layers_(layers), num_layers_(static_cast<std::int64_t>(layers_.size())) {
    if (!std::all_of(layers_.begin(), layers_.end(), [&](std::int32_t l) { return l == layers_.front(); })) return;
    if (!layers_.empty()) common_ = layers_.front();
    layers_ = {};
  }

  /// Of one layer. @pre there is such a layer
  [[nodiscard]] std::int64_t of(std::int64_t layer) const {
    return layers_.empty() ? common_ : layers_[static_cast<std::size_t>(layer)];
  }
  /// Of every layer; 0 where they differ.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t common() const { return common_; }
  /// Whether every head of every layer has `common()`.
  [[nodiscard]] bool alike() const { return layers_.empty() && heads_alike_; }
  /// Whether the heads of each layer have its number; otherwise that is the most of any.
  [[nodiscard]] bool heads_alike() const { return heads_alike_; }
  /// The same numbers as the most of layers whose heads may differ.
  [[nodiscard]] PageSizes of_heads() const {
    PageSizes result = *this;
    result.heads_alike_ = false;
    return result;
  }
  /// @throws ArgumentError on numbers that are not positive, or of another number of layers
  void check(std::int32_t num_layers, char const* where) const {
    require(num_layers_ == 0 || num_layers_ == num_layers, "page sizes", {num_layers, ", one per layer"}, num_layers_,
            where);
    require(common_ > 0 || !layers_.empty(), "page size", "> 0", common_, where);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      require(layers_[l] > 0, "page size", "> 0", layers_[l], {where, ", layer ", l});
    }
  }

 private:
  std::span<std::int32_t const> layers_;  ///< empty where all are alike
  std::int64_t num_layers_ = 0;           ///< that these are of; 0: any number
  std::int64_t common_ = 0;
  bool heads_alike_ = true;
};

/// @brief Bytes of a page, keys and values together, in a pool that all layers share. Where layers differ, pages of
/// keys and of values have one stride, which the widest rows of either fill.
/// @throws ArgumentError beyond 64 bits, or on page sizes of another number of layers
template <class = void>
[[nodiscard]] std::int64_t page_bytes(PageSizes const& page_sizes, LayerBytes const& token, std::int32_t num_layers) {
  constexpr auto where = "page_bytes";
  page_sizes.check(num_layers, where);
  bool alike = page_sizes.alike();
  std::int64_t widest = 0;
  bool values = false;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    TokenBytes const of = token.of(layer);
    alike = alike && of.key == token.of(0).key && of.value == token.of(0).value;
    widest = std::max(widest, detail::elements(where, {page_sizes.of(layer), std::max(of.key, of.value)}));
    values = values || of.value > 0;
  }
  if (num_layers == 0) return 0;
  if (alike) return detail::elements(where, {page_sizes.common(), token.of(0).total()});
  return detail::elements(where, {widest, values ? 2 : 1});
}

HEADAWARE_NAMESPACE_END
