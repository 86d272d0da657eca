// Plans which tokens each KV head keeps, from retention statistics, under a budget.

#include "tools/analysis/about.hpp"
#include "tools/support/budget.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/format_options.hpp"
#include "tools/support/options.hpp"
#include "tools/support/plan_options.hpp"
#include "tools/support/save_plan.hpp"

#include <headaware/error.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/io/scores.hpp>
#include <headaware/io/sensitivities.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/scored_plan.hpp>
#include <headaware/plan/summary.hpp>
#include <headaware/plan/uniform_plan.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

struct Options {
  std::filesystem::path results_dir;
  std::filesystem::path output_dir;
  std::filesystem::path sensitivities;
  std::filesystem::path probe_dir;
  std::filesystem::path probe_sensitivities;
  double probe_weight = 0.3;
  std::string budget;
  std::int64_t context = 0;
  std::int64_t head_dim = 0;
  std::int64_t element_bytes = 2;
  std::filesystem::path scores;
  std::optional<double> window_share{};
  ha::PlanOptions plan;
  support::FormatsWanted formats{.measured = false};

  void add_to(CLI::App& app) {
    support::add_results_dir(app, results_dir, "folder with retention_statistics.json");
    support::add_budget(app, budget)->required();
    support::add_context(app, context,
                         "tokens of the sequences that the plan is for; default: the step after the largest window of "
                         "the statistics");
    support::add_output_dir(app, output_dir, "where the plan goes; default: RESULTS_DIR");
    app.add_option("--sensitivities", sensitivities, "sensitivities.json of the text; default: 1 everywhere");
    app.add_option("--probe_dir", probe_dir, "folder with the retention_statistics.json of a probe text, too");
    app.add_option("--probe_sensitivities", probe_sensitivities, "sensitivities.json of the probe")
        ->needs("--probe_dir");
    support::add_probe_weight(app, probe_weight, "weight of the probe; the text has 1")->needs("--probe_dir");
    support::add_plan_options(app, plan);
    support::add_formats(app, formats, "16");
    auto* const scored = support::add_scores(app, scores,
                                             "folder of scores.json: heads may keep tokens by scores. Where the "
                                             "statistics hold errors of these, windows and scored slots are chosen "
                                             "together");
    app.add_option("--window_share", window_share,
                   "of --scores: share of the budget for windows; the rest goes to tokens kept by scores, by "
                   "reconstruction budgets. Default: 0.5 where the statistics hold no errors of scored slots")
        ->check(support::proper_share)
        ->needs(scored);
    support::add_head_dim(app, head_dim, "channels of a key; for budgets in bytes, and for formats");
    app.add_option("--element_bytes", element_bytes, "bytes per element; for budgets in bytes")
        ->capture_default_str()
        ->check(support::positive);
  }
};

/// The file of a folder that analyze_attention wrote.
ha::RetentionStatistics load_statistics(std::filesystem::path const& folder) {
  support::require_folder(folder, "results", "a folder with retention_statistics.json (analyze_attention makes one)");
  if (!std::filesystem::exists(folder / "retention_statistics.json") && std::filesystem::exists(folder / "text")) {
    throw ha::ArgumentError({"results",
                             "retention_statistics.json (of a plan's folder: --results_dir " +
                                 (folder / "text").string() + " and --probe_dir " + (folder / "probe").string() + ")",
                             "none", folder.string()});
  }
  return ha::load_retention_statistics(folder / "retention_statistics.json");
}

/// The context that the statistics are of: beyond their largest window they only say that Full loses nothing.
std::int64_t default_context(ha::RetentionStatistics const& statistics) {
  auto const& windows = statistics.info.grid.windows;
  // Windows of analyze_attention grow by a half and a third in turn and stop below the pieces' length.
  std::int64_t const last = windows.back();
  bool const power = (last & (last - 1)) == 0;
  return power ? last + last / 2 : last / 3 * 4;
}

ha::Sensitivities load_factors(std::filesystem::path const& path, ha::RetentionStatistics const& statistics,
                               ha::PlanOptions const& options) {
  if (path.empty()) return {};
  return ha::load_sensitivities(path).factors(statistics, {.measure = options.measure, .fold = options.fold});
}

/// Predicted error of a plan as it is written, with what was left of the budget.
double written_error(ha::PolicyPlan const& plan, ha::KvErrors const& errors, Options const& options) {
  double const error =
      ha::evaluate_table(plan.table, plan.formats, errors, options.context, options.plan).predicted_error;
  return std::min(error, plan.predicted_error);
}

/// Predicted errors of plans and of uniform windows at a grid of budgets; sizes that are not possible are left out.
/// @param whole  tokens that a head holds on average where it keeps everything
void print_comparison(ha::KvErrors const& errors, double whole, Options const& options) {
  // By bytes a size is what tokens in 16 bits take.
  bool const bytes = options.plan.formats.by_bytes();
  std::printf("\npredicted error against uniform windows (sink 4%s) of the same size\n", bytes ? ", 16 bits" : "");
  std::printf("%s           plan        uniform   plan/uniform\n",
              bytes ? "  16-bit tokens    of bytes" : "tokens per head  of context");
  for (double const share : {0.03125, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75}) {
    auto const budget = ha::Budget::share(share);
    try {
      auto const plan = ha::plan_policies(errors, budget, options.context, options.plan);
      double const uniform = ha::uniform_plan(errors, budget, options.context, options.plan).predicted_error;
      double const planned = written_error(plan, errors, options);
      std::printf("%15.1f %10.1f%% %14.6g %14.6g %14.3f\n", share * whole, 100 * share, planned, uniform,
                  uniform > 0 ? planned / uniform : 1.0);
    } catch (ha::ArgumentError const&) {
      std::printf("%15.1f %10.1f%%   not possible with this floor and these pages\n", share * whole, 100 * share);
    }
  }
}

/// Uniform windows of a plan's size beside it.
struct Uniform {
  std::optional<ha::PolicyPlan> plan{};  ///< nothing: none of this size
  double plan_error = 0;                 ///< `written_error` of the plan
  bool better = false;                   ///< they are predicted to lose less
  bool may_replace = false;              ///< they hold what was asked of the plan, too
};

/// A grid may be too coarse for a small budget, and what uniform windows keep is not among what a head may have.
Uniform uniform_beside(ha::PolicyPlan const& plan, ha::KvErrors const& errors, ha::Budget const& budget,
                       Options const& options) {
  Uniform uniform;
  try {
    uniform.plan = ha::uniform_plan(errors, budget, options.context, options.plan);
  } catch (ha::ArgumentError const&) {
    return uniform;
  }
  uniform.plan_error = written_error(plan, errors, options);
  uniform.better = uniform.plan_error > uniform.plan->predicted_error;
  // Where layers differ, windows of one size do not give each layer or rank its share.
  uniform.may_replace = errors.layers.num_layers() == 0 || (options.plan.ranks == 1 && !options.plan.layer_shares);
  std::size_t head = 0;
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    std::int64_t const least = std::min(options.plan.floor.value_or(0), plan.full_tokens(layer));
    for (std::int32_t i = 0; i < plan.table.num_kv_heads(layer); ++i, ++head) {
      uniform.may_replace = uniform.may_replace && uniform.plan->heads[head].tokens >= least;
    }
  }
  return uniform;
}

/// Says what the plan is predicted to lose beside uniform windows in the pair of formats that is best for them.
void print_best_pair(double planned, ha::KvErrors const& errors, ha::Budget const& budget, Options const& options) {
  double least = std::numeric_limits<double>::infinity();
  std::string name;
  for (ha::HeadFormats const& pair : options.plan.formats.pairs) {
    try {
      double const lost = ha::uniform_plan(errors, budget, options.context, options.plan, pair).predicted_error;
      if (lost < least) least = lost, name = pair.name();
    } catch (ha::ArgumentError const&) {  // the budget holds no more than the sinks in this pair
    }
  }
  if (name.empty() || least <= 0) return;
  std::printf("of uniform windows in the best pair of formats for them, %s, %.3f: they lose %.4g\n", name.c_str(),
              planned / least, least);
}

/// Says what the plan is predicted to lose beside uniform windows of its size, and warns where they lose less.
void print_verdict(ha::PolicyPlan const& plan, Uniform const& uniform, ha::KvErrors const& errors, double whole,
                   bool scored) {
  if (!uniform.plan) return;
  double const lost = uniform.plan->predicted_error;
  bool const bytes = plan.by_bytes();
  std::string const of = bytes                             ? "bytes of the cache in 16 bits"
                         : errors.layers.num_layers() == 0 ? "context"
                                                           : "cache";
  std::printf(
      "\nat %.1f tokens per KV head (%.*f%% of the %s) the plan is predicted to lose %.3f of what uniform windows "
      "of that size%s lose: %.4g against %.4g\n",
      plan.mean_tokens(), bytes ? 2 : 1, 100 * (bytes ? plan.share_held() : plan.mean_tokens() / whole), of.c_str(),
      lost > 0 ? uniform.plan_error / lost : 1.0, bytes ? ", in 16 bits," : "", uniform.plan_error, lost);
  if (!uniform.better) return;
  std::fprintf(
      stderr,
      "warning: uniform windows of this size, 4 sinks each, have a lower predicted error, %g (the plan: %g): the "
      "statistics' smallest windows are too large for this budget, or --floor, --sinks or --page_size leave too "
      "little choice. %s\n",
      lost, uniform.plan_error,
      scored                ? "plan.json holds the plan with scored slots all the same"
      : uniform.may_replace ? "plan.json holds the uniform windows instead"
                            : "plan.json holds the plan all the same: the uniform windows do not keep --floor, --ranks "
                              "or --layer_shares");
}

/// What the plan's cache holds, where bytes are known.
void print_bytes(ha::PolicyPlan const& plan, ha::ModelShape const& shape, ha::LayerBytes const& token) {
  std::int64_t planned = 0;
  std::int64_t full = 0;
  std::size_t head = 0;
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    std::int64_t const bytes = token.of(layer).total();
    for (std::int32_t i = 0; i < plan.table.num_kv_heads(layer); ++i, ++head) {
      planned += plan.heads[head].tokens * bytes;
      full += shape.layer(layer).visible(plan.context) * bytes;
    }
  }
  if (full == 0) return;
  std::printf("\n%.2f MiB of keys and values for %lld tokens, %.2f MiB uncompressed\n",
              static_cast<double>(planned) / 1048576, static_cast<long long>(plan.context),
              static_cast<double>(full) / 1048576);
}

/// The scores to plan with. @throws ArgumentError if they are of other heads than the statistics
ha::SavedScores load_scores(std::filesystem::path const& folder, ha::ModelShape const& shape) {
  ha::SavedScores scores = ha::load_row_scorer(folder).saved;
  bool alike = scores.shape.num_layers() == shape.num_layers();
  for (std::int32_t layer = 0; alike && layer < shape.num_layers(); ++layer) {
    alike = scores.shape.layer(layer).num_kv_heads == shape.layer(layer).num_kv_heads;
  }
  if (!alike) {
    throw ha::ArgumentError({"layers and KV heads of the scores", "those of the statistics",
                             "others, of " + scores.model, folder.string()});
  }
  return scores;
}

/// Plans with scored slots, and says how: together with windows where their errors are known, else for the rest of a
/// share of the budget.
/// @param whole  of the whole budget, windows alone
ha::PolicyPlan with_scores(ha::PolicyPlan const& whole, ha::KvErrors const& errors, ha::Budget const& budget,
                           ha::SavedScores const& scores, Options const& options) {
  if (!options.window_share && errors.scored && errors.scores == scores.weight_hash) {
    ha::PlanOptions together = options.plan;
    together.scored_slots = true;
    auto plan = ha::plan_policies(errors, budget, options.context, together);
    std::printf(
        "\nwith scored slots, chosen together with windows, %.3f of what windows alone are predicted to lose:\n",
        whole.predicted_error > 0 ? plan.predicted_error / whole.predicted_error : 1.0);
    return plan;
  }
  if (options.plan.ranks != 1 || options.plan.layer_shares) {
    throw ha::ArgumentError({"--scores",
                             "no --ranks and --layer_shares: reconstruction budgets are of heads of any layer",
                             options.plan.layer_shares ? "--layer_shares" : "--ranks", ""});
  }
  double const share = options.window_share.value_or(0.5);
  auto const part = ha::Budget::tokens(share * whole.mean_budget());
  auto const windows = ha::plan_policies(errors, part, options.context, options.plan);
  std::printf(
      "\nwith scored slots, %g of the budget for windows; what scores save is not predicted, benchmark --plan measures "
      "it:\n",
      share);
  return ha::scored_plan(windows, whole, scores.budgets, scores.weight_hash);
}

void run(Options options) {
  analysis::warn_if_partial(options.results_dir);
  ha::RetentionStatistics const text = load_statistics(options.results_dir);
  std::optional<ha::RetentionStatistics> probe;
  if (!options.probe_dir.empty()) probe = load_statistics(options.probe_dir);
  if (options.output_dir.empty()) options.output_dir = options.results_dir;
  support::require_place(options.output_dir, {"plan.json", "plan_classifications.json"});
  auto const measured = default_context(text);
  if (options.context == 0) options.context = measured;
  if (options.context > measured) {
    std::fprintf(stderr,
                 "note: the statistics are of about %lld tokens, their largest window of %d: what heads lose of longer "
                 "contexts is not known, and no head is given more than that window unless it keeps everything\n",
                 static_cast<long long>(measured), text.info.grid.windows.back());
  }

  std::vector<ha::WeightedStatistics> texts{{&text, {}, 1}};
  if (probe) texts.push_back({&*probe, {}, options.probe_weight});
  auto const beside = options.results_dir / "sensitivities.json";
  if (options.sensitivities.empty() && std::filesystem::exists(beside)) {
    std::fprintf(stderr, "note: every layer counts alike; %s has what layers cost: --sensitivities\n", beside.c_str());
  }
  // Nats of the one kind and squared errors of the other do not add up.
  if (probe && options.sensitivities.empty() != options.probe_sensitivities.empty()) {
    throw ha::ArgumentError({"--sensitivities and --probe_sensitivities", "both or neither",
                             options.sensitivities.empty() ? "the probe's alone" : "the text's alone", ""});
  }
  if (!options.plan.measure) options.plan.measure = ha::best_measure(texts);
  texts[0].sensitivities = load_factors(options.sensitivities, text, options.plan);
  if (probe) texts[1].sensitivities = load_factors(options.probe_sensitivities, *probe, options.plan);

  ha::KvErrors const errors = ha::weighted_errors(texts, options.plan.measure, options.plan.fold);
  ha::ModelShape const shape = errors.shape();
  std::optional<ha::SavedScores> scores;
  if (!options.scores.empty()) scores = load_scores(options.scores, shape);
  auto const element_bytes = static_cast<std::size_t>(options.element_bytes);
  ha::LayerBytes token(ha::TokenBytes::of(options.head_dim, element_bytes));
  if (options.head_dim == 0) token = {shape, element_bytes};  // whose channels statistics say where layers differ
  options.plan.formats.pairs = options.formats.of(errors.formats);
  if (options.plan.formats.by_bytes()) {
    options.plan.formats.head_dim = options.head_dim;
    if (options.element_bytes != 2) {
      std::fprintf(
          stderr,
          "note: --formats say how many bytes rows take, and shares are of 16 bits; --element_bytes is not used\n");
    }
  }
  ha::Budget const budget = support::parse_budget(options.budget, token);
  support::require_within_cache(budget, shape, options.plan.skip_layers, options.context, options.budget);
  double const whole = support::PlannedCache(shape, options.plan.skip_layers, options.context).mean();
  ha::PolicyPlan const plan = ha::plan_policies(errors, budget, options.context, options.plan);
  Uniform const uniform = uniform_beside(plan, errors, budget, options);
  ha::PolicyPlan const& written = uniform.better && uniform.may_replace ? *uniform.plan : plan;
  std::printf("%s", ha::plan_summary(written).c_str());
  if (!written.by_bytes()) print_bytes(written, shape, token);
  print_comparison(errors, whole, options);
  print_verdict(plan, uniform, errors, whole, scores.has_value());
  if (plan.by_bytes() && uniform.plan) print_best_pair(uniform.plan_error, errors, budget, options);

  support::make_folder(options.output_dir);
  if (scores) {
    auto const scored = with_scores(plan, errors, budget, *scores, options);
    std::printf("%s", ha::plan_summary(scored).c_str());
    support::save_plan_files(options.output_dir, scored);
    std::printf("wrote plan.json to %s\n", options.output_dir.string().c_str());
    return;
  }
  support::save_plan_files(options.output_dir, written);
  std::printf("wrote plan.json%s to %s\n", support::has_classes(written) ? " and plan_classifications.json" : "",
              options.output_dir.string().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv,
      "Plans which tokens each KV head keeps, from retention statistics (analyze_attention), under a budget", run);
}
