#pragma once

/// @file
/// The sizes of a cache in pages of single heads.

#include <headaware/cache/page_sizes.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The sizes of a paged cache.
struct PagedHeadsShape {
  std::int32_t num_sequences = 0;
  std::int32_t page_size = 16;  ///< tokens per page, of every layer unless `page_sizes` says otherwise
  std::int32_t num_pages = 0;   ///< pages of the pool that all layers and heads share
  RollingLimits limits{};       ///< `max_tokens` sizes the block table's rows of heads which keep all
  /// [num_layers] tokens per page of each layer: `LayerChannels::page_sizes` of a model whose layers differ
  std::vector<std::int32_t> page_sizes{};
  /// [KV heads of all layers] tokens per page of each head, instead: `PackedPages::page_sizes`, as the rows of formats
  /// that differ fill a page with different numbers of tokens
  std::vector<std::int32_t> head_page_sizes{};

  /// Tokens per page of every layer; where heads of a layer differ, the most of any.
  [[nodiscard]] PageSizes layer_page_sizes() const {
    PageSizes const sizes = page_sizes.empty() ? PageSizes(page_size) : PageSizes(page_sizes);
    return head_page_sizes.empty() ? sizes : sizes.of_heads();
  }
  /// Tokens per page of a head. @pre settled
  [[nodiscard]] std::int64_t page_size_of(LayerHeads const& heads, std::int32_t layer, std::int32_t kv_head) const {
    if (head_page_sizes.empty()) return layer_page_sizes().of(layer);
    return head_page_sizes[static_cast<std::size_t>(heads.first(layer) + kv_head)];
  }
  /// @brief Checks the page sizes, and sets those of layers where heads have their own.
  /// @throws ArgumentError on page sizes that are not positive or not one per layer or head
  void settle(LayerHeads const& heads) {
    constexpr auto where = "PagedHeads";
    if (!head_page_sizes.empty()) {
      require(static_cast<std::int64_t>(head_page_sizes.size()) == heads.total(), "page sizes of heads",
              {heads.total(), ", one per KV head"}, head_page_sizes.size(), where);
      page_sizes.assign(static_cast<std::size_t>(heads.num_layers), 1);
      for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
        for (std::int32_t kv_head = 0; kv_head < heads.count(layer); ++kv_head) {
          auto const size = static_cast<std::int32_t>(page_size_of(heads, layer, kv_head));
          require(size > 0, "page size", "> 0", size, {where, ", layer ", layer, ", KV head ", kv_head});
          std::int32_t& most = page_sizes[static_cast<std::size_t>(layer)];
          most = std::max(most, size);
        }
      }
    }
    layer_page_sizes().check(heads.num_layers, where);
  }
};

HEADAWARE_NAMESPACE_END
