#pragma once

// Which heads share which part of a budget, and what they cost.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/detail/cache_costs.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// What the heads of these errors cost. @param budget  nullptr: none, so by channels where rows differ
/// @param choice  by bytes: costs are bytes of 16 bits
/// @throws ArgumentError if the budget is in bytes of another model's rows, or channels are not known
[[nodiscard]] inline CacheCosts cache_costs(KvErrors const& errors, Budget const* budget, std::int64_t context,
                                            FormatChoice const& choice = {}) {
  constexpr auto where = "plan_policies";
  CacheCosts costs{.counts = kv_head_counts(errors), .context = context};
  for (LayerShape const& l : errors.layers.layers()) costs.windows.push_back(l.has_cache() ? l.window : 0);
  bool const none = std::all_of(costs.windows.begin(), costs.windows.end(), [](auto window) { return window == 0; });
  if (none) costs.windows.clear();
  if (choice.by_bytes()) {
    for (RowChannels const& rows : known_channels(errors.layers, errors.num_layers, choice.head_dim, where)) {
      costs.rows.push_back(choice.pages(choice.sixteen_bits, rows, 1).bytes);
    }
    costs.unit = "bytes";
    return costs;
  }
  if (budget == nullptr || budget->unit() != Budget::Unit::bytes) {
    costs.rows = channel_costs(errors.layers, costs.heads());
    if (!costs.rows.empty()) costs.unit = "channels";
    return costs;
  }
  auto const rows = budget->row_bytes();
  costs.rows.assign(rows.begin(), rows.end());
  if (rows.empty()) return costs;
  costs.unit = "bytes";
  auto const layers = static_cast<std::int64_t>(rows.size());
  require(layers == errors.num_layers, "layers of the budget's bytes", errors.num_layers, layers, where);
  for (std::int32_t layer = 0; layer < errors.num_layers; ++layer) {
    require(costs.heads().count(layer) == 0 || costs.row(layer) > 0, "bytes of a token",
            "> 0, as the layer has a cache", costs.row(layer), {where, ", layer ", layer});
  }
  return costs;
}

/// The heads that share parts of the budget, and what is left of it.
class BudgetParts {
 public:
  BudgetParts(CacheCosts const& costs, PlanOptions const& options, std::int64_t total)
      : whole_(total), layer_shares_(options.layer_shares) {
    constexpr auto where = "plan_policies";
    LayerHeads const heads = costs.heads();
    std::int32_t const ranks = options.ranks;
    require(ranks > 0, "ranks", "> 0", ranks, where);
    for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
      std::int32_t const count = heads.count(layer);
      require(count == 0 || count % ranks == 0 || ranks % count == 0, "ranks",
              {"a divisor or a multiple of ", count, " KV heads"}, ranks, where);
    }
    // More ranks than KV heads: ranks share heads, as engines replicate them.
    std::int32_t const slices = costs.alike() ? std::min(ranks, heads.num_kv_heads) : ranks;
    of_head_.reserve(static_cast<std::size_t>(heads.total()));
    for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
      std::int32_t const count = heads.count(layer);
      std::int32_t const first = options.layer_shares ? layer * slices : 0;
      for (std::int32_t head = 0; head < count; ++head) {
        bool const repeated = count < slices;
        std::int32_t const slice = repeated ? head * (slices / count) : head / (count / slices);
        of_head_.push_back(
            {static_cast<std::size_t>(first + slice), static_cast<std::size_t>(repeated ? slices / count : 1)});
      }
    }
    slices_ = static_cast<std::size_t>(slices);
    std::int64_t const parts = options.layer_shares ? std::int64_t{slices} * heads.num_layers : slices;
    left_.resize(static_cast<std::size_t>(parts));
    if (costs.alike()) {
      std::int64_t const pages = total / options.page_size;
      for (std::int64_t i = 0; i < parts; ++i) {
        left_[static_cast<std::size_t>(i)] = (pages / parts + (i < pages % parts ? 1 : 0)) * options.page_size;
      }
      return;
    }
    // The share of all that a part's heads cost where they keep everything. What several ranks hold a copy of counts in
    // the part of each, and once in the whole.
    auto const all = static_cast<double>(costs.of_all());
    std::vector<double> of_part(left_.size());
    for (std::int32_t layer = 0, head = 0; layer < heads.num_layers; ++layer) {
      double const cost = static_cast<double>(costs.row(layer)) * static_cast<double>(costs.visible(layer));
      for (std::int32_t i = 0; i < heads.count(layer); ++i, ++head) {
        Range const range = of_head_[static_cast<std::size_t>(head)];
        for (std::size_t part = range.first; part < range.first + range.count; ++part) of_part[part] += cost;
      }
    }
    for (std::size_t part = 0; part < left_.size(); ++part) {
      auto const share = static_cast<std::int64_t>(static_cast<double>(total) * (of_part[part] / all));
      left_[part] = left_.size() == 1 ? total : std::min(share, total);
    }
  }
  [[nodiscard]] std::size_t size() const { return left_.size(); }
  /// What a part has left; less than nothing where more was taken.
  [[nodiscard]] std::int64_t left_of(std::size_t part) const { return left_[part]; }
  /// The layer and the rank that a part is of. @param layers  numbers in the model; empty: all
  [[nodiscard]] std::string name(std::size_t part, std::span<std::int32_t const> layers) const {
    std::size_t const place = part / slices_;
    std::string text;
    if (layer_shares_) text = Text{"layer ", layers.empty() ? static_cast<std::int32_t>(place) : layers[place]}.str();
    if (slices_ > 1) text += Text{text.empty() ? "rank " : ", rank ", part % slices_}.str();
    return text;
  }
  /// The part of a head; of several the first.
  [[nodiscard]] std::size_t part_of(std::size_t head) const { return of_head_[head].first; }
  /// What all parts of a head have left.
  [[nodiscard]] std::int64_t left(std::size_t head) const {
    std::int64_t least = whole_;
    Range const range = of_head_[head];
    for (std::size_t part = range.first; part < range.first + range.count; ++part) least = std::min(least, left_[part]);
    return least;
  }
  void take(std::size_t head, std::int64_t cost) {
    whole_ -= cost;
    Range const range = of_head_[head];
    for (std::size_t part = range.first; part < range.first + range.count; ++part) left_[part] -= cost;
  }

 private:
  struct Range {
    std::size_t first;
    std::size_t count;
  };
  std::int64_t whole_;
  bool layer_shares_;
  std::size_t slices_ = 1;      ///< parts of a layer, or of all
  std::vector<Range> of_head_;  ///< the parts that a head is in
  std::vector<std::int64_t> left_;
};

/// Says what a plan may hold, by its costs.
inline void set_budget(PolicyPlan& plan, CacheCosts const& costs, std::int64_t total) {
  plan.budget_tokens = total;
  if (costs.rows.empty()) return;
  plan.row_costs = costs.rows;
  plan.budget_cost = total;
  auto const each = static_cast<double>(total) / static_cast<double>(costs.of_one_token());
  plan.budget_tokens = static_cast<std::int64_t>(each * static_cast<double>(costs.heads().total()));
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
