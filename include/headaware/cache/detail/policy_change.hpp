#pragma once

// Whether the pages that are held serve other policies.

#include <headaware/cache/paged_head.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @throws ArgumentError unless layers have as many KV heads as before
inline void require_same_heads(LayerHeads const& before, LayerHeads const& now, char const* where) {
  require(now.num_layers == before.num_layers, "layers", before.num_layers, now.num_layers, where);
  for (std::int32_t layer = 0; layer < before.num_layers; ++layer) {
    require(now.count(layer) == before.count(layer), "KV heads", before.count(layer), now.count(layer), where);
  }
}

/// Least high-water mark at which the pages that a sequence holds of one head serve another rule; beyond `all_tokens`
/// if none does.
/// @param now     of pages of as many tokens
/// @param window  the first page held of the window of `before`
/// @param pages   pages of the sequence's tokens
inline std::int64_t high_water_serving(PagedHead const& before, PagedHead const& now, std::int64_t window,
                                       std::int64_t pages, std::int64_t slack) {
  // Held are [0, sinks) and [begin, pages).
  std::int64_t const sinks = std::min<std::int64_t>(pages, before.sink_pages);
  std::int64_t const begin = std::min(pages, window) <= sinks ? 0 : std::min(pages, window);
  if (std::min<std::int64_t>(pages, now.sink_pages) > sinks && begin > 0) return std::int64_t{all_tokens} + 1;
  if (now.ring_pages == 0 || now.sink_pages >= begin) return 0;
  return now.rule.high_water_holding(begin * now.page_size.value(), slack);
}

/// Least high-water mark at which the pages that a sequence holds serve other heads: at most `length + slack` if they
/// do. @param before, now  of all layers
inline std::int64_t high_water_with(std::span<PagedHead const> before, std::span<PagedHead const> now,
                                    std::int64_t length, std::int64_t high_water, std::int32_t slack) {
  std::int64_t result = length;
  for (std::size_t i = 0; i < before.size(); ++i) {
    std::int64_t const window = before[i].first_held(high_water, slack);
    result = std::max(result, high_water_serving(before[i], now[i], window, before[i].pages(length), slack));
  }
  return result;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
