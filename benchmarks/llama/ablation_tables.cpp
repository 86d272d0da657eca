#include "llama/ablation_tables.hpp"

#include "tools/support/format_options.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/error.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/refine.hpp>
#include <headaware/plan/replanned_sensitivity.hpp>
#include <headaware/plan/uniform_plan.hpp>
#include <headaware/policy/fold.hpp>
#include <headaware/policy/policy_window.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

constexpr auto asked_by = "AblationTables::of";

/// Layers of a setup that keep everything.
std::vector<std::int32_t> whole_layers(AblationSetup const& setup, std::int32_t layers) {
  std::vector<std::int32_t> whole;
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    if (layer < setup.full_first || layer >= layers - setup.full_last) whole.push_back(layer);
  }
  return whole;
}

/// Errors of these sinks alone. @pre all were measured
ha::KvErrors with_sinks(ha::KvErrors errors, std::vector<std::int32_t> const& sinks) {
  ha::RetentionGrid const grid{sinks, errors.grid.windows};
  std::vector<double> cells;
  for (std::size_t head = 0; head < errors.size(); ++head) {
    for (std::int32_t const sink : sinks) {
      auto const& all = errors.grid.sinks;
      auto const row = std::lower_bound(all.begin(), all.end(), sink) - all.begin();
      auto const from = errors.of(head).subspan(static_cast<std::size_t>(row) * grid.windows.size());
      cells.insert(cells.end(), from.begin(), from.begin() + std::ssize(grid.windows));
    }
  }
  errors.grid = grid;
  errors.cells = std::move(cells);
  return errors;
}

ha::Budget budget_of(std::int64_t total, std::int64_t heads) {
  ha::require(total > 0, "budget left for layers that do not keep everything", "> 0", total, asked_by);
  return ha::Budget::tokens(static_cast<double>(total) / static_cast<double>(heads));
}

ha::AnyPolicy<> widened(ha::AnyPolicy<> const& policy) {
  if (policy.is<ha::WindowOnly>()) return ha::WindowOnly{policy.get<ha::WindowOnly>().window + 1};
  auto wider = policy.get<ha::SinkWindow>();
  ++wider.window;
  return wider;
}

/// Statistics in which every query head has a KV head of its own.
ha::RetentionStatistics ungrouped(ha::RetentionStatistics statistics) {
  auto const shape = statistics.info.shape();
  std::vector<ha::LayerShape> layers(shape.layers().begin(), shape.layers().end());
  for (ha::LayerShape& layer : layers) layer.num_kv_heads = layer.num_query_heads;
  statistics.info.set_shape(ha::ModelShape(std::move(layers)));
  return statistics;
}

ha::PolicyTable folded(ha::PolicyTable const& by_query_head, ha::ModelShape const& shape) {
  ha::PolicyTable table(shape, ha::Full{});
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      std::int32_t const group = shape.layer(layer).group();
      std::vector<ha::AnyPolicy<>> members;
      for (std::int32_t i = 0; i < group; ++i) members.push_back(by_query_head.at(layer, head * group + i));
      table.set(layer, head, ha::fold_union(std::span<ha::AnyPolicy<> const>(members)));
    }
  }
  return table;
}

/// Errors of a setup's texts, the calibrations of both domains counting half each.
/// @param first  the plan that costs were measured again at, if the setup is made from one
ha::KvErrors errors_of(AblationSetup const& setup, AblationCalibration const& calibration, bool by_query_head,
                       ha::PolicyPlan const* first = nullptr) {
  auto const fold = setup.fold == AblationFold::maximum ? ha::GroupFold::maximum : ha::GroupFold::sum;
  auto const uses = uses_of(setup.calibration);
  std::vector<ha::RetentionStatistics> own;
  own.reserve(2 * uses.size());
  std::vector<ha::WeightedStatistics> texts;
  auto const add = [&](AblationMeasured const& measured, double weight, std::vector<double> PlanGains::*kind) {
    ha::RetentionStatistics const* statistics = &measured.statistics;
    if (by_query_head) statistics = &own.emplace_back(ungrouped(measured.statistics));
    auto factors = measured.factors(setup.sensitivity, setup.measure, fold);
    if (first != nullptr) {
      auto const& gains = calibration.gains_at_plan(AblationTables::first_of(setup));
      factors = ha::sensitivities_at_plan(*statistics, factors, *first, gains.*kind, setup.replan_step);
    }
    texts.push_back({statistics, std::move(factors), weight / static_cast<double>(uses.size())});
  };
  for (CalibrationUse const& use : uses) {
    add(calibration.of(use).text, 1, &PlanGains::text);
    add(calibration.of(use).probe, setup.probe_weight, &PlanGains::probe);
  }
  return ha::weighted_errors(texts, setup.measure, fold);
}

}  // namespace

void fill_up(ha::PolicyTable& table, std::int64_t total, std::int64_t context) {
  std::int64_t left = total - ha::held_tokens(table, context);
  for (bool grown = true; left > 0 && grown;) {
    grown = false;
    for (std::int32_t layer = 0; layer < table.num_layers() && left > 0; ++layer) {
      for (std::int32_t head = 0; head < table.num_kv_heads(layer) && left > 0; ++head) {
        auto const& policy = table.at(layer, head);
        std::int64_t const window = table.window(layer);
        std::int64_t const most = window != 0 ? std::min(window, context) : context;
        if (!ha::policy_window(policy, "fill_up") || ha::held_tokens(policy, context) >= most) continue;
        table.set(layer, head, widened(policy));
        --left;
        grown = true;
      }
    }
  }
}

AblationTables::AblationTables(AblationCalibration const& calibration, ha::ModelShape shape, std::int64_t context,
                               std::int64_t budget_tokens)
    : calibration_(&calibration),
      shape_(std::move(shape)),
      num_heads_(ha::PolicyTable(shape_).heads().total()),
      context_(context),
      budget_tokens_(budget_tokens) {
  std::int64_t row = 0;
  for (ha::LayerShape const& layer : shape_.layers()) {
    std::int64_t const own = layer.token_bytes(1).total();
    bool const alike = row == 0 || own == 0 || own == row;
    ha::require(alike, "rows of KV heads", "of one size, as sizes here are in tokens", "others", "AblationTables");
    if (own > 0) row = own;
    if (layer.has_cache()) sixteen_bit_row_ = layer.token_bytes(2).total();
  }
}

KeptHeads AblationTables::of(AblationSetup const& setup) const {
  switch (setup.method) {
    case AblationMethod::full: return {ha::PolicyTable(shape_, ha::Full{})};
    case AblationMethod::uniform:
      if (!setup.precision.by_bytes()) return {uniform(setup)};
      return uniform_in(support::parse_format_pair(setup.precision.formats), setup);
    case AblationMethod::rules: return {rules(setup.aggressive)};
    case AblationMethod::planned: break;
  }
  if (setup.precision.by_bytes()) return KeptHeads::of(planned(setup));
  ha::PolicyTable table =
      setup.fold == AblationFold::keeps_union ? planned_by_query_heads(setup) : planned(setup).table;
  if (setup.plan_share < 1) table = ha::blend(uniform(setup), table, setup.plan_share, context_);
  fill_up(table, total(setup), context_);
  return {table};
}

std::int64_t AblationTables::exact_rows(AblationPrecision const& precision) const {
  std::int64_t rows = 0;
  for (ha::LayerShape const& layer : shape_.layers()) {
    if (layer.has_cache()) rows += layer.num_kv_heads * layer.visible(precision.exact_rows());
  }
  return rows;
}

std::int64_t AblationTables::held_bytes(KeptHeads const& kept, AblationPrecision const& precision) const {
  ha::FormatTable const sixteen(shape_);
  ha::FormatTable const& formats = kept.formats.num_layers() > 0 ? kept.formats : sixteen;
  std::int64_t const codes = ha::held_bytes(kept.table, formats, shape_, context_);
  return codes + exact_rows(precision) * sixteen_bit_row_;
}

double AblationTables::held_share(KeptHeads const& kept, AblationPrecision const& precision) const {
  KeptHeads const full{ha::PolicyTable(shape_, ha::Full{})};
  return static_cast<double>(held_bytes(kept, precision)) / static_cast<double>(held_bytes(full, {}));
}

std::int64_t AblationTables::total(AblationSetup const& setup) const {
  if (setup.size != AblationSize::budget) {
    return ha::held_tokens(rules(setup.size == AblationSize::aggressive_rules), context_);
  }
  auto const each = static_cast<std::int64_t>(setup.size_share * static_cast<double>(budget_tokens_));
  std::int64_t total = 0;  // layers that slide hold their window at most
  for (ha::LayerShape const& layer : shape_.layers()) {
    if (layer.has_cache()) total += layer.num_kv_heads * layer.visible(each);
  }
  return total - exact_rows(setup.precision);
}

ha::PolicyTable AblationTables::rules(bool aggressive) const {
  return ha::table_from_classifications(calibration_->classes(), shape_,
                                        aggressive ? ha::TypePolicies::aggressive() : ha::TypePolicies::conservative());
}

ha::Budget AblationTables::budget_beside(std::vector<std::int32_t> const& whole, AblationSetup const& setup) const {
  std::int64_t whole_heads = 0;
  std::int64_t whole_tokens = 0;
  for (std::int32_t const index : whole) {
    ha::LayerShape const& layer = shape_.layer(index);
    if (!layer.has_cache()) continue;
    whole_heads += layer.num_kv_heads;
    whole_tokens += layer.num_kv_heads * layer.visible(context_);
  }
  return budget_of(total(setup) - whole_tokens, num_heads_ - whole_heads);
}

ha::PolicyTable AblationTables::uniform(AblationSetup const& setup) const {
  auto const whole = whole_layers(setup, shape_.num_layers());
  auto const windows = ha::uniform_table(1, 1, budget_beside(whole, setup), context_, 1, setup.sink);
  ha::PolicyTable table = ha::PolicyTable(shape_, windows.at(0, 0)).skip_layers(whole);
  fill_up(table, total(setup), context_);
  return table;
}

KeptHeads AblationTables::uniform_in(ha::HeadFormats const& formats, AblationSetup const& setup) const {
  std::int64_t const most = total(setup) * sixteen_bit_row_;
  ha::FormatTable const of_heads(shape_, formats);
  return {ha::uniform_table(shape_, of_heads, most, context_, setup.sink), of_heads};
}

PlannerInput AblationTables::input_of(AblationSetup const& setup) const {
  std::optional<ha::PolicyPlan> first;
  if (setup.replan_step > 0) first = planned(first_of(setup));
  ha::PlanOptions options;
  options.floor = setup.floor;
  options.skip_layers = whole_layers(setup, shape_.num_layers());
  auto errors = errors_of(setup, *calibration_, false, first ? &*first : nullptr);
  if (!setup.candidate_sinks.empty()) errors = with_sinks(std::move(errors), setup.candidate_sinks);
  auto const budget = budget_beside(options.skip_layers, setup);
  if (setup.precision.formats == "measured") {
    options.formats.pairs = ha::all_format_pairs(errors.formats);
  } else if (setup.precision.by_bytes()) {
    options.formats.pairs = {support::parse_format_pair(setup.precision.formats)};
  }
  if (shape_.uniform()) options.formats.head_dim = shape_.layer(0).head_dim;
  return {std::move(errors), budget, std::move(options)};
}

ha::PolicyPlan AblationTables::planned(AblationSetup const& setup) const {
  PlannerInput input = input_of(setup);
  if (setup.refine_levels > 0) {
    input.errors = ha::scaled_errors(std::move(input.errors), calibration_->refined_factors(setup));
  }
  return ha::plan_policies(input.errors, input.budget, context_, input.options);
}

ha::PolicyTable AblationTables::planned_by_query_heads(AblationSetup const& setup) const {
  // What a group keeps in common is more than its members' mean: the largest plan of them that fits is looked for.
  auto const errors = errors_of(setup, *calibration_, true);
  std::int64_t heads = 0;
  std::int32_t largest_group = 1;
  for (ha::LayerShape const& layer : shape_.layers()) {
    heads += layer.num_query_heads;
    if (layer.attends()) largest_group = std::max(largest_group, layer.group());
  }
  std::int64_t const allowed = total(setup);
  std::int64_t low = heads;  // a token per head
  std::int64_t high = allowed * largest_group + 1;
  ha::PolicyTable best(shape_, ha::Prune{});
  bool found = false;
  while (low < high) {
    std::int64_t const middle = low + (high - low) / 2;
    bool fits = false;
    try {
      auto const plan = ha::plan_policies(errors, budget_of(middle, heads), context_);
      ha::PolicyTable table = folded(plan.table, shape_);
      fits = ha::held_tokens(table, context_) <= allowed;
      if (fits) best = std::move(table);
      found = found || fits;
    } catch (ha::ArgumentError const&) {
      fits = true;  // less than the planner's smallest sizes: look above
    }
    if (fits) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  ha::require(found, "plan of query heads whose union fits the budget", "one", "none", asked_by);
  return best;
}

}  // namespace llama_adapter
