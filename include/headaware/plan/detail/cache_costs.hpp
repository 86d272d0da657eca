#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Costs of a token of one KV head, [num_layers]: empty where those of all layers with KV heads are alike, or some are
/// not known (0).
template <class = void>
[[nodiscard]] std::vector<std::int64_t> differing_costs(std::vector<std::int64_t> costs, LayerHeads const& heads) {
  std::int64_t least = 0;
  std::int64_t most = -1;
  for (std::size_t layer = 0; layer < costs.size(); ++layer) {
    if (heads.count(static_cast<std::int64_t>(layer)) == 0) continue;
    least = most < 0 ? costs[layer] : std::min(least, costs[layer]);
    most = std::max(most, costs[layer]);
  }
  if (least == most || least <= 0) costs.clear();
  return costs;
}

/// Costs in channels, of key and value together.
template <class = void>
[[nodiscard]] std::vector<std::int64_t> channel_costs(ModelShape const& layers, LayerHeads const& heads) {
  std::vector<std::int64_t> costs;
  for (LayerShape const& l : layers.layers()) costs.push_back(l.token_bytes(1).total());
  return differing_costs(std::move(costs), heads);
}

/// What the KV heads of some layers cost, and the most that they hold.
struct CacheCosts {
  HeadCounts counts{};
  std::int64_t context = 0;             ///< tokens of the sequence
  std::vector<std::int64_t> rows{};     ///< [num_layers] of one token of a KV head; empty: 1, so that costs are tokens
  std::vector<std::int64_t> windows{};  ///< [num_layers], 0 where the layer does not slide; empty: none does
  char const* unit = "tokens";

  [[nodiscard]] LayerHeads heads() const { return counts.view(); }
  [[nodiscard]] std::int64_t row(std::int32_t layer) const {
    return rows.empty() ? 1 : rows[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] std::int64_t window(std::int32_t layer) const {
    return windows.empty() ? 0 : windows[static_cast<std::size_t>(layer)];
  }
  /// Tokens that a head which keeps all holds.
  [[nodiscard]] std::int64_t visible(std::int32_t layer) const {
    return window(layer) != 0 ? std::min(window(layer), context) : context;
  }
  /// Whether all layers are alike.
  [[nodiscard]] bool alike() const { return rows.empty() && windows.empty() && heads().first_heads == nullptr; }

  /// Of `tokens(layer)` in every head of a layer.
  template <class Tokens>
  [[nodiscard]] std::int64_t of(Tokens const& tokens) const {
    std::int64_t sum = 0;
    for (std::int32_t layer = 0; layer < heads().num_layers; ++layer) {
      std::int64_t const more = elements("plan_policies", {heads().count(layer), row(layer), tokens(layer)});
      if (sum_overflows(sum, more)) refuse_size("cost of the cache", "plan_policies");
      sum += more;
    }
    return sum;
  }
  [[nodiscard]] std::int64_t of_one_token() const {
    return of([](std::int32_t) { return std::int64_t{1}; });
  }
  [[nodiscard]] std::int64_t of_all() const {
    return of([&](std::int32_t layer) { return visible(layer); });
  }

  /// Those of some layers.
  [[nodiscard]] CacheCosts select(std::span<std::int32_t const> layers) const {
    CacheCosts result = *this;
    std::vector<std::int32_t> selected;
    for (std::int32_t const layer : layers) selected.push_back(heads().count(layer));
    result.counts = HeadCounts(selected);
    auto const pick = [&](std::vector<std::int64_t> const& from, std::vector<std::int64_t>& to) {
      to.clear();
      for (std::int32_t const layer : layers) {
        if (!from.empty()) to.push_back(from[static_cast<std::size_t>(layer)]);
      }
    };
    pick(rows, result.rows);
    pick(windows, result.windows);
    return result;
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
