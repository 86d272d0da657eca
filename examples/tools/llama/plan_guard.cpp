#include "tools/llama/plan_guard.hpp"

#include "tools/llama/kept_heads.hpp"
#include "tools/llama/short_number.hpp"
#include "tools/support/json_text.hpp"
#include "tools/support/save_plan.hpp"

#include <headaware/io/file.hpp>
#include <headaware/plan/blend_plans.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/refine.hpp>
#include <headaware/plan/uniform_plan.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <optional>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// What a plan does, evaluated with the first errors: what others predict of it does not compare.
ha::PolicyPlan evaluated(ha::PolicyPlan const& plan, ha::KvErrors const& errors, ha::Budget const& budget,
                         GuardOptions const& options) {
  auto result = ha::evaluate_table(plan.table, plan.formats, errors, options.context, options.plan, budget);
  result.floor = plan.floor;
  result.scores = plan.scores;
  result.options.scored_slots = plan.options.scored_slots;
  return result;
}

/// Pairs of formats whose plans are predicted to lose least, each with its plan; 16 bits are none of them.
std::vector<std::pair<ha::HeadFormats, ha::PolicyPlan>> plans_of_pairs(ha::KvErrors const& errors,
                                                                       ha::Budget const& budget,
                                                                       GuardOptions const& options) {
  std::vector<std::pair<ha::HeadFormats, ha::PolicyPlan>> plans;
  for (ha::HeadFormats const& pair : options.plan.formats.pairs) {
    if (ha::has_sixteen_bits(pair)) continue;
    ha::PlanOptions of_pair = options.plan;
    of_pair.formats.pairs = {pair};
    plans.emplace_back(pair, ha::plan_policies(errors, budget, options.context, of_pair));
  }
  std::stable_sort(plans.begin(), plans.end(),
                   [](auto const& a, auto const& b) { return a.second.predicted_error < b.second.predicted_error; });
  if (std::ssize(plans) > options.fixed_pairs) plans.resize(static_cast<std::size_t>(options.fixed_pairs));
  return plans;
}

/// Adds uniform windows of the budget, plans of pairs of formats, and the plan of each of the errors.
void add_first_tables(std::vector<NamedErrors> const& named, ha::Budget const& budget, GuardOptions const& options,
                      Guarded& result) {
  ha::KvErrors const& errors = named.front().errors;
  std::vector<GuardedTable>& tables = result.tables;
  tables.push_back({.name = "uniform", .plan = ha::uniform_plan(errors, budget, options.context, options.plan)});
  result.num_uniform = tables.size();
  if (options.plan.formats.by_bytes()) {
    auto const plans = plans_of_pairs(errors, budget, options);
    for (auto const& [pair, plan] : plans) {
      auto uniform = ha::uniform_plan(errors, budget, options.context, options.plan, pair);
      tables.push_back({.name = "uniform " + pair.name(), .plan = std::move(uniform)});
    }
    result.num_uniform = tables.size();
    for (auto const& [pair, plan] : plans) tables.push_back({.name = "plan " + pair.name(), .plan = plan});
  }
  result.first_plan = tables.size();
  for (auto const& own : named) {
    auto plan = ha::plan_policies(own.errors, budget, options.context, options.plan);
    if (&own != named.data()) plan = evaluated(plan, errors, budget, options);
    tables.push_back({.name = own.name, .plan = std::move(plan), .probe_weight = own.probe_weight});
  }
}

/// Plans that choose windows and scored slots together, with several weights of the probe.
/// @param own   the errors whose plan of windows is best
/// @param pair  formats that such plans are tried in, beside those that mix all formats; nothing: none
std::vector<GuardedTable> scored_tables(NamedErrors const& own, ha::KvErrors const& first, ha::Budget const& budget,
                                        std::optional<ha::HeadFormats> const& pair, GuardOptions const& options) {
  std::vector<GuardedTable> tables;
  if (options.scorer == nullptr) return tables;
  auto const add = [&](std::string const& name, ha::PlanOptions with_slots) {
    with_slots.scored_slots = true;
    for (std::size_t i = 0; i < own.with_probe.size(); ++i) {
      ha::KvErrors const& errors = own.with_probe[i];
      if (!errors.scored || (i > 0 && own.probe_weight == 0)) continue;
      double const weight = options.slot_probe_weights[i] * own.probe_weight;
      // Evaluated with the first errors, as all plans are.
      auto plan = evaluated(ha::plan_policies(errors, budget, options.context, with_slots), first, budget, options);
      tables.push_back({.name = name + ", probe " + short_number(weight),
                        .plan = std::move(plan),
                        .probe_weight = weight,
                        .scored = true});
    }
  };
  add("slots", options.plan);
  if (pair && options.plan.formats.pairs.size() > 1) {
    ha::PlanOptions of_pair = options.plan;
    of_pair.formats.pairs = {*pair};
    add("slots " + pair->name(), of_pair);
  }
  return tables;
}

/// Tries tables on held-out text, and says of each how it did.
class Trial {
 public:
  Trial(LossStore& losses, CalibrationText const& text, double probe_weight)
      : losses_(&losses), text_(&text), probe_weight_(probe_weight) {}

  struct Outcome {
    std::vector<double> text;  ///< losses, token by token
    std::vector<double> probe;
  };

  /// @param evicted  options of tables with scored slots, which are tried in caches that evict; nullptr: masks
  [[nodiscard]] std::vector<Outcome> run(std::vector<KeptHeads> const& tables, GuardOptions const* evicted = nullptr) {
    std::vector<LossJob> jobs;
    for (auto const& [table, formats] : tables) {
      for (auto const& piece : text_->held_out) jobs.push_back({piece, table, {.formats = formats}});
      for (auto const& piece : text_->held_out_probes) jobs.push_back({piece, table, {.formats = formats}});
    }
    auto const all = evicted == nullptr ? losses_->losses("trying plans on held-out text", jobs)
                                        : losses_->evicted_losses("trying plans with scored slots on held-out text",
                                                                  jobs, *evicted->scorer, evicted->threads);
    std::vector<Outcome> outcomes(tables.size());
    std::size_t job = 0;
    auto const append = [&](std::size_t pieces, std::vector<double>& to) {
      for (std::size_t i = 0; i < pieces; ++i, ++job) {
        to.insert(to.end(), all[job].begin() + text_->first_query, all[job].end());
      }
    };
    for (auto& outcome : outcomes) {
      append(text_->held_out.size(), outcome.text);
      append(text_->held_out_probes.size(), outcome.probe);
    }
    return outcomes;
  }

  /// @param uniform  what uniform windows lose
  void score(GuardedTable& table, Outcome const& outcome, Outcome const& uniform) const {
    table.text_loss = mean_loss(outcome.text);
    table.probe_loss = mean_loss(outcome.probe);
    table.text_gain_error = ha::paired_gain(uniform.text, outcome.text).standard_error;
    table.score = table.text_loss + probe_weight_ * table.probe_loss;
    table.eligible = table.text_loss <= mean_loss(uniform.text);
  }

 private:
  LossStore* losses_;
  CalibrationText const* text_;
  double probe_weight_;
};

}  // namespace

Guarded guarded_plan(LossStore& losses, std::vector<NamedErrors> const& errors, CalibrationText const& text,
                     ha::Budget const& budget, GuardOptions const& options) {
  ha::require(!errors.empty(), "errors", "at least one", "none", "guarded_plan");
  auto const& first = errors.front().errors;
  Guarded result;
  result.model = losses.run().model().path().filename().string();
  result.probe_weight = options.probe_weight;
  add_first_tables(errors, budget, options, result);
  Trial trial(losses, text, options.probe_weight);
  std::vector<KeptHeads> tables{{ha::PolicyTable(first.shape(), ha::Full{})}};
  for (auto const& candidate : result.tables) tables.push_back(KeptHeads::of(candidate.plan));
  auto outcomes = trial.run(tables);
  result.full_text_loss = mean_loss(outcomes[0].text);
  result.full_probe_loss = mean_loss(outcomes[0].probe);
  outcomes.erase(outcomes.begin());
  for (std::size_t i = 1; i < result.num_uniform; ++i) {
    if (mean_loss(outcomes[i].text) < mean_loss(outcomes[result.uniform].text)) result.uniform = i;
  }
  auto const& uniform = outcomes[result.uniform];
  for (std::size_t i = 0; i < result.tables.size(); ++i) trial.score(result.tables[i], outcomes[i], uniform);
  std::size_t best_plan = result.num_uniform;
  for (std::size_t i = best_plan; i < result.tables.size(); ++i) {
    if (result.tables[i].score < result.tables[best_plan].score) best_plan = i;
  }

  auto const& plain = result.tables[result.uniform].plan;
  auto const& best = result.tables[best_plan].plan;
  std::vector<ha::PolicyPlan> blends;
  std::vector<KeptHeads> blended_heads;
  for (double const share : options.blends) {
    if (best.by_bytes()) {
      blends.push_back(ha::blend_plans(plain, best, share, first));
    } else {
      auto const table = ha::blend(plain.table, best.table, share, options.context, options.plan.page_size);
      blends.push_back(ha::evaluate_table(table, first, options.context, options.plan, budget));
    }
    blended_heads.push_back(KeptHeads::of(blends.back()));
  }
  auto const blended = trial.run(blended_heads);
  std::string const name = result.tables[best_plan].name;
  for (std::size_t i = 0; i < blends.size(); ++i) {
    GuardedTable table{
        .name = "blend " + short_number(options.blends[i]), .plan = std::move(blends[i]), .blended_with = name};
    trial.score(table, blended[i], uniform);
    result.tables.push_back(std::move(table));
  }
  // Masks cannot say what scores keep: these are tried in caches that really evict, which predict what masks would of
  // windows but for rounding.
  std::size_t const own = best_plan < result.first_plan ? 0 : best_plan - result.first_plan;
  auto const pairs_end = result.tables.begin() + static_cast<std::ptrdiff_t>(result.first_plan);
  auto const best_pair = std::min_element(result.tables.begin() + static_cast<std::ptrdiff_t>(result.num_uniform),
                                          pairs_end, [](auto const& a, auto const& b) { return a.score < b.score; });
  std::optional<ha::HeadFormats> pair;
  if (best_pair != pairs_end) pair = best_pair->plan.options.formats.pairs.front();
  auto scored = scored_tables(errors[own], first, budget, pair, options);
  if (!scored.empty()) {
    std::vector<KeptHeads> scored_heads;
    for (auto const& table : scored) scored_heads.push_back(KeptHeads::of(table.plan));
    auto const tried = trial.run(scored_heads, &options);
    for (std::size_t i = 0; i < scored.size(); ++i) {
      trial.score(scored[i], tried[i], uniform);
      result.tables.push_back(std::move(scored[i]));
    }
  }
  result.best = result.uniform;
  for (std::size_t i = 0; i < result.tables.size(); ++i) {
    auto const& candidate = result.tables[i];
    if (candidate.eligible && candidate.score < result.chosen().score) result.best = i;
  }
  return result;
}

std::string guard_table(Guarded const& guarded) {
  std::string text =
      "on held-out text       tokens per head   perplexity   below uniform, %   probe's loss    score   predicted "
      "error\n";
  char line[160];
  for (std::size_t i = 0; i < guarded.tables.size(); ++i) {
    auto const& table = guarded.tables[i];
    double const gain = guarded.tables[guarded.uniform].text_loss - table.text_loss;
    std::snprintf(line, sizeof(line), "%c %-26s %9.1f %12.4f %10.1f +- %4.1f %14.4f %8.4f %17.5g\n",
                  i == guarded.best ? '*' : ' ', table.name.c_str(), table.plan.mean_tokens(),
                  std::exp(table.text_loss), 100 * gain, 100 * table.text_gain_error, table.probe_loss, table.score,
                  table.plan.predicted_error);
    text += line;
  }
  std::snprintf(line, sizeof(line), "  %-26s %9s %12.4f %18s %14.4f\n", "everything kept", "",
                std::exp(guarded.full_text_loss), "", guarded.full_probe_loss);
  return text + line;
}

void write_guarded(std::filesystem::path const& folder, Guarded const& guarded) {
  auto const& chosen = guarded.chosen();
  nlohmann::ordered_json document = {{"model", guarded.model},
                                     {"text", guarded.text},
                                     {"context", chosen.plan.context},
                                     {"budget_tokens", chosen.plan.budget_tokens},
                                     {"budget_bytes", chosen.plan.budget_bytes()},
                                     {"probe_weight_in_scores", guarded.probe_weight},
                                     {"chosen", chosen.name},
                                     {"full_text_loss", guarded.full_text_loss},
                                     {"full_probe_loss", guarded.full_probe_loss}};
  auto& tried = document["tried"] = nlohmann::ordered_json::array();
  for (auto const& table : guarded.tables) {
    auto& entry = tried.emplace_back(nlohmann::ordered_json{{"name", table.name}});
    if (table.probe_weight) entry["probe_weight"] = *table.probe_weight;
    if (!table.blended_with.empty()) entry["blended_with"] = table.blended_with;
    if (table.scored) entry["scores"] = table.plan.scores;
    entry.update({{"mean_tokens", table.plan.mean_tokens()},
                  {"bytes", table.plan.planned_bytes() + table.plan.planned_record_bytes()},
                  {"text_loss", table.text_loss},
                  {"text_perplexity", std::exp(table.text_loss)},
                  {"text_gain_standard_error", table.text_gain_error},
                  {"probe_loss", table.probe_loss},
                  {"score", table.score},
                  {"eligible", table.eligible},
                  {"predicted_error", table.plan.predicted_error}});
  }
  support::write_json(folder / "plan_guard.json", document);
  // Last: where the plan is, the others are.
  support::save_plan_files(folder, chosen.plan);
}

}  // namespace llama_adapter
