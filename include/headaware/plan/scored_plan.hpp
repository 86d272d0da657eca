#pragma once

/// @file
/// Plans whose heads keep tokens of high scores beside their windows: what windows leave of a budget goes to the heads
/// that a second reading of a text looks at most.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/scored_heads.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/score/budgets.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Heads of a plan that may have scored slots, and what these cost.
class ScoredHeads {
 public:
  struct Head {
    std::size_t number = 0;  ///< layer by layer
    std::int32_t layer = 0;
    std::int32_t kv_head = 0;
    WindowRule windows{};
    RowPages pages{};  ///< `bytes` are what a page costs: bytes or, in plans by tokens, tokens
    double slot = 0;   ///< what one costs, with its record
  };

  ScoredHeads(PolicyPlan const& windows, ReconstructionBudgets const& budgets) : budgets_(&budgets), plan_(&windows) {
    constexpr auto where = "scored_plan";
    FormatChoice const& choice = windows.options.formats;
    std::vector<RowChannels> channels;
    if (windows.by_bytes()) channels = known_channels(windows.layers, windows.num_layers, choice.head_dim, where);
    std::int64_t const page = windows.options.page_size;
    std::size_t number = 0;
    for (std::int32_t layer = 0; layer < windows.num_layers; ++layer) {
      auto const l = static_cast<std::size_t>(layer);
      std::int64_t const row = windows.row_costs.empty() ? 1 : windows.row_costs[l];
      for (std::int32_t kv = 0; kv < windows.table.num_kv_heads(layer); ++kv, ++number) {
        auto const kept = policy_window(windows.table.at(layer, kv), where);
        // In a layer that slides no query sees what has left its window.
        bool const may = kept && kept->sink + kept->window > 0 && windows.table.window(layer) == 0 &&
                         kept->sink + kept->window < windows.context;
        if (!may) continue;
        Head head{number, layer, kv, *kept, {page, page * row}, 0};
        if (windows.by_bytes()) head.pages = choice.pages(windows.formats.at(layer, kv), channels[l], page);
        head.slot = static_cast<double>(head.pages.bytes) / static_cast<double>(head.pages.rows) +
                    static_cast<double>(record());
        heads_.push_back(head);
        dearest_ = std::max(dearest_, head.slot);
      }
    }
  }

  [[nodiscard]] std::vector<Head> const& heads() const { return heads_; }
  [[nodiscard]] static std::int64_t kept(Head const& head) {
    return std::int64_t{head.windows.sink} + head.windows.window;
  }
  [[nodiscard]] AnyPolicy<> policy(Head const& head, std::int64_t slots) const {
    if (slots == 0) return plan_->table.at(head.layer, head.kv_head);
    if (kept(head) + slots >= plan_->context) return Full{};
    return SinkWindowScored{head.windows.sink, head.windows.window, static_cast<std::int32_t>(slots)};
  }
  /// What a head's rows cost, and in plans by bytes its scores and records.
  [[nodiscard]] std::int64_t cost(Head const& head, std::int64_t slots) const {
    std::int64_t const rows = head.pages.bytes_of(kept(head) + slots);
    if (record() == 0 || slots == 0 || kept(head) + slots >= plan_->context) return rows;
    return rows +
           SinkWindowScored{head.windows.sink, head.windows.window, static_cast<std::int32_t>(slots)}.record_bytes();
  }
  [[nodiscard]] std::int64_t cost(std::vector<std::int64_t> const& slots) const {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < heads_.size(); ++i) sum += cost(heads_[i], slots[i]);
    return sum;
  }
  /// Tokens of its reconstruction budget among those beyond its windows, at a mean share. A slot that enters the best
  /// of all heads at the mean share m has the rank m · cost: slots of less rank are taken, so that a share of dear rows
  /// is taken later.
  [[nodiscard]] double wanted(Head const& head, double rank) const {
    double const share = std::min(1.0, rank * dearest_ / head.slot);
    return budgets_->share_of(head.number, share) * static_cast<double>(plan_->context - kept(head));
  }
  /// Whole pages of at most so many slots.
  [[nodiscard]] std::int64_t whole_slots(Head const& head, double wanted) const {
    if (wanted < 1) return 0;
    std::int64_t const most = plan_->context - kept(head);
    auto const slots = std::min(most, static_cast<std::int64_t>(wanted));
    if (slots == most) return most;
    std::int64_t const rows = head.pages.rows;
    return std::max<std::int64_t>(0, (kept(head) + slots) / rows * rows - kept(head));
  }
  [[nodiscard]] std::vector<std::int64_t> slots(double rank) const {
    std::vector<std::int64_t> result;
    for (Head const& head : heads_) result.push_back(whole_slots(head, wanted(head, rank)));
    return result;
  }
  /// Gives a page more to heads, those first that want it most, as long as one fits. @param left  of the budget
  void fill(std::vector<std::int64_t>& slots, double rank, std::int64_t left) const {
    std::vector<double> rest;
    for (std::size_t i = 0; i < heads_.size(); ++i) {
      rest.push_back(wanted(heads_[i], rank) - static_cast<double>(slots[i]));
    }
    std::vector<std::size_t> order(heads_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rest[a] > rest[b]; });
    for (bool any = true; any;) {
      any = false;
      for (std::size_t const i : order) {
        Head const& head = heads_[i];
        std::int64_t const most = plan_->context - kept(head);
        if (slots[i] == most) continue;
        std::int64_t const tokens = kept(head) + slots[i] + 1;
        std::int64_t const more = std::min(most, whole_pages(tokens, head.pages.rows) - kept(head));
        std::int64_t const price = cost(head, more) - cost(head, slots[i]);
        if (price > left) continue;
        slots[i] = more;
        left -= price;
        any = true;
      }
    }
  }

 private:
  /// Bytes of a slot's record; tokens count none.
  [[nodiscard]] std::int64_t record() const { return plan_->by_bytes() ? SinkWindowScored{0, 0, 1}.record_bytes() : 0; }

  ReconstructionBudgets const* budgets_;
  PolicyPlan const* plan_;
  std::vector<Head> heads_;
  double dearest_ = 0;
};

}  // namespace detail

/// @brief Gives what a plan of windows leaves of a larger budget to scored slots (`SinkWindowScored`), by
/// reconstruction budgets: of the tokens beyond its sinks and window a head gets the share that its tokens have among
/// those of all heads that a second reading looks at most. What it looks at lies anywhere, so that a window holds no
/// more of it than of the text. Where rows cost differently a slot counts by its share of the reconstruction a byte.
///
/// Heads that keep everything or nothing stay as they are, as do those of layers with windows of their own. A head
/// whose slots reach the context keeps everything.
/// @param windows  of less than the budget, full, prune, sink_window and window_only; not by rank or layer
/// @param whole    a plan of the whole budget, of the same heads and context, in the same unit
/// @param budgets  of the same heads
/// @param scores   `SavedScores::weight_hash` of the scores that belong to them, for `PolicyPlan::scores`
/// @return exact: `planned_tokens` (in plans by bytes `planned_bytes`, whole pages, and `record_bytes` beside) are at
///         most the budget, and less than it by less than a page (and its records) where slots are still wanted. In
///         plans by tokens records are not counted: 16 bytes a scored slot and 4 a token of the window. Predicted
///         errors are those of the windows alone: what scored slots save is not predicted, it is measured
/// @throws ArgumentError if plans or budgets are of other shapes, a policy is another, the windows cost more than the
///         budget, or they were planned by ranks or layers
/// @par Cost  O(heads · log(context) + slots that are left over)
[[nodiscard]] inline PolicyPlan scored_plan(PolicyPlan const& windows, PolicyPlan const& whole,
                                            ReconstructionBudgets const& budgets, std::string const& scores = {}) {
  constexpr auto where = "scored_plan";
  budgets.validate(where);
  require(!budgets.shares.empty(), "budgets", "at least one share", "none", where);
  require(windows.context == whole.context, "context", whole.context, windows.context, where);
  detail::require_table_of(windows.table, whole.shape(), where);
  require(windows.row_costs == whole.row_costs && windows.by_bytes() == whole.by_bytes(), "unit of the plans",
          "the same", "others", where);
  auto const heads = static_cast<std::int64_t>(windows.heads.size());
  require(static_cast<std::int64_t>(budgets.num_kv_heads()) == heads, "KV heads of the budgets", heads,
          budgets.num_kv_heads(), where);
  require(windows.options.ranks == 1 && !windows.options.layer_shares, "shares of ranks or layers",
          "none: scored slots go to heads of any layer", "some", where);
  std::int64_t const budget = whole.row_costs.empty() ? whole.budget_tokens : whole.budget_cost;
  detail::ScoredHeads const scored(windows, budgets);
  std::vector<std::int64_t> slots(scored.heads().size(), 0);
  // What heads cost that have no scored slots.
  std::int64_t const others = windows.planned_cost() - scored.cost(slots);
  require(windows.planned_cost() <= budget, "cost of the windows", {"at most the budget, ", budget},
          windows.planned_cost(), where);
  double low = 0;
  double high = 1;
  if (others + scored.cost(scored.slots(high)) <= budget) {
    low = high;
  } else {
    for (int step = 0; step < 60; ++step) {
      double const middle = (low + high) / 2;
      (others + scored.cost(scored.slots(middle)) <= budget ? low : high) = middle;
    }
  }
  slots = scored.slots(low);
  scored.fill(slots, low, budget - others - scored.cost(slots));

  PolicyPlan plan = windows;
  plan.budget_tokens = whole.budget_tokens;
  plan.budget_cost = whole.budget_cost;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    auto const& head = scored.heads()[i];
    auto const policy = scored.policy(head, slots[i]);
    plan.table.set(head.layer, head.kv_head, policy);
    PlannedHead& planned = plan.heads[head.number];
    std::int64_t const tokens = held_tokens(policy, plan.context, head.pages.rows);
    plan.planned_tokens += tokens - planned.tokens;
    planned.tokens = tokens;
    if (plan.by_bytes()) planned.bytes = head.pages.bytes_of(tokens);
  }
  if (has_scored_heads(plan.table)) plan.scores = scores;
  return plan;
}

HEADAWARE_NAMESPACE_END
