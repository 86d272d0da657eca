#include "llama/plan_guard.hpp"

#include "llama/short_number.hpp"

#include <headaware/io/file.hpp>
#include <headaware/io/save_plan.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>

namespace llama_adapter {

namespace ha = headaware;

namespace {

std::vector<GuardedTable> candidates(std::vector<NamedErrors> const& named, ha::Budget const& budget,
                                     GuardOptions const& options) {
  ha::KvErrors const& errors = named.front().errors;
  ha::PolicyPlan const plan = ha::plan_policies(errors, budget, options.context, options.plan);
  ha::PolicyTable const uniform = ha::uniform_table(errors, budget, options.context, options.plan);
  auto const evaluated = [&](ha::PolicyTable const& table) {
    return ha::evaluate_table(table, errors, options.context, options.plan, budget);
  };
  std::vector<GuardedTable> tables;
  tables.push_back({.name = "uniform", .plan = evaluated(uniform)});
  for (double const share : options.blends) {
    auto const table = ha::blend(uniform, plan.table, share, options.context, options.plan.page_size);
    tables.push_back({.name = "blend " + short_number(share), .plan = evaluated(table)});
  }
  tables.push_back({.name = named.front().name, .plan = plan});
  for (std::size_t i = 1; i < named.size(); ++i) {
    auto const other = ha::plan_policies(named[i].errors, budget, options.context, options.plan);
    tables.push_back({.name = named[i].name, .plan = evaluated(other.table)});
    tables.back().plan.floor = other.floor;
  }
  return tables;
}

}  // namespace

Guarded guarded_plan(LossStore& losses, std::vector<NamedErrors> const& errors, CalibrationText const& text,
                     ha::Budget const& budget, GuardOptions const& options) {
  ha::detail::require(!errors.empty(), "errors", "at least one", "none", "guarded_plan");
  auto const& first = errors.front().errors;
  Guarded result;
  result.model = losses.run().model().path().filename().string();
  result.probe_weight = options.probe_weight;
  result.tables = candidates(errors, budget, options);
  std::vector<LossJob> jobs;
  auto const add = [&](ha::PolicyTable const& table) {
    for (auto const* const pieces : {&text.held_out, &text.held_out_probes}) {
      for (auto const& piece : *pieces) jobs.push_back({piece, table});
    }
  };
  for (auto const& candidate : result.tables) add(candidate.plan.table);
  add(ha::PolicyTable(first.num_layers, first.num_kv_heads, ha::Full{}));
  auto const all = losses.losses("trying plans on held-out text", jobs);

  std::size_t job = 0;
  auto const mean = [&](CalibrationText::Pieces const& pieces) {
    double sum = 0;
    for (std::size_t i = 0; i < pieces.size(); ++i) sum += mean_loss(all[job++], text.first_query);
    return sum / static_cast<double>(pieces.size());
  };
  for (auto& candidate : result.tables) {
    candidate.text_loss = mean(text.held_out);
    candidate.probe_loss = mean(text.held_out_probes);
    candidate.score = candidate.text_loss + options.probe_weight * candidate.probe_loss;
    candidate.eligible = candidate.text_loss <= result.tables.front().text_loss;
  }
  result.full_text_loss = mean(text.held_out);
  result.full_probe_loss = mean(text.held_out_probes);
  for (std::size_t i = 1; i < result.tables.size(); ++i) {
    auto const& candidate = result.tables[i];
    if (candidate.eligible && candidate.score < result.chosen().score) result.best = i;
  }
  return result;
}

std::string guard_table(Guarded const& guarded) {
  std::string text = "on held-out text         tokens a head   perplexity   probe's loss    score   predicted error\n";
  char line[160];
  for (std::size_t i = 0; i < guarded.tables.size(); ++i) {
    auto const& table = guarded.tables[i];
    std::snprintf(line, sizeof(line), "%c %-26s %9.1f %12.4f %14.4f %8.4f %17.5g\n", i == guarded.best ? '*' : ' ',
                  table.name.c_str(), table.plan.mean_tokens(), std::exp(table.text_loss), table.probe_loss,
                  table.score, table.plan.predicted_error);
    text += line;
  }
  std::snprintf(line, sizeof(line), "  %-26s %9s %12.4f %14.4f\n", "everything kept", "",
                std::exp(guarded.full_text_loss), guarded.full_probe_loss);
  return text + line;
}

void write_guarded(std::filesystem::path const& folder, Guarded const& guarded) {
  auto const& chosen = guarded.chosen();
  nlohmann::ordered_json document = {{"model", guarded.model},
                                     {"text", guarded.text},
                                     {"context", chosen.plan.context},
                                     {"budget_tokens", chosen.plan.budget_tokens},
                                     {"probe_weight_in_scores", guarded.probe_weight},
                                     {"chosen", chosen.name},
                                     {"full_text_loss", guarded.full_text_loss},
                                     {"full_probe_loss", guarded.full_probe_loss}};
  auto& tried = document["tried"] = nlohmann::ordered_json::array();
  for (auto const& table : guarded.tables) {
    tried.push_back({{"name", table.name},
                     {"mean_tokens", table.plan.mean_tokens()},
                     {"text_loss", table.text_loss},
                     {"text_perplexity", std::exp(table.text_loss)},
                     {"probe_loss", table.probe_loss},
                     {"score", table.score},
                     {"eligible", table.eligible},
                     {"predicted_error", table.plan.predicted_error}});
  }
  ha::save_plan_classifications(folder / "plan_classifications.json", chosen.plan);
  ha::write_file(folder / "plan_guard.json", document.dump(2) + "\n");
  // Last: where it is, the others are.
  ha::save_plan(folder / "plan.json", chosen.plan);
}

}  // namespace llama_adapter
