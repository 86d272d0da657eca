// Observes a model's attention and writes what its heads look at: statistics, classes, retention, pictures. With --plan
// measures what a plan needs, and writes one; with --scores what tells the rows apart that later text looks at.

#include "tools/analysis/analysis.hpp"
#include "tools/analysis/captured_source.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/format_options.hpp"
#include "tools/support/options.hpp"
#include "tools/support/plan_options.hpp"

#include <headaware/io/row_scorer.hpp>
#ifdef HEADAWARE_HAS_LLAMA
#include "tools/llama/exact_copy.hpp"
#include "tools/llama/model_source.hpp"
#include "tools/llama/planning.hpp"
#include "tools/llama/score_calibration.hpp"
#include "tools/support/budget.hpp"
#include "tools/support/save_plan.hpp"
#endif

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/plan/summary.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

struct Options {
  support::ModelOptions run{.model = HEADAWARE_EXAMPLE_DATA "/smollm2-135m"};
  std::filesystem::path text = HEADAWARE_EXAMPLE_DATA "/text/alice.txt";
  std::int64_t max_tokens = 0;
  std::int64_t chunk_size = 512;
  bool no_retention = false;
  bool no_output_metric = false;
  std::vector<std::int32_t> sinks;
  std::vector<std::int32_t> windows;
  analysis::AnalysisOptions analysis{.output_dir = "results/attention_analysis", .parameters = {}};
  bool plan = false;
  std::string budget;
  support::MeasuringOptions measuring;
  ha::PlanOptions plan_options;
  support::FormatsWanted formats;
  bool scores = false;
  std::filesystem::path scores_from;
  std::vector<std::int32_t> score_pieces{8, 1};
  std::int64_t score_tokens = 1024;

  void add_to(CLI::App& app) {
    run.add_model(app, "GGUF file, or folder of captured arrays");
    support::add_text(app, text, "text file to run a GGUF file over");
    support::add_max_tokens(app, max_tokens, "tokens of the text");
    support::add_chunk_size(app, chunk_size, "tokens of a piece of text, each by itself; 0: the text is one", 0);
    support::add_output_dir(app, analysis.output_dir);
    app.add_flag("--resume", analysis.resume, "go on with what was interrupted in the output folder");
    run.add_ways_to_run(app, "run a copy of the model with weights in single precision",
                        "cores for the model (the statistics take all)");
    add_observation(app);
    auto* const planned = app.add_flag(
        "--plan", plan, "instead of the analysis measure and write a plan: which tokens each KV head keeps");
    support::add_budget(app, budget, "of the plan: ")->needs(planned);
    measuring.add_to(app, planned);
    support::add_plan_options(app, plan_options, planned);
    support::add_formats(app, formats)->needs(planned);
    auto* const scored = app.add_flag("--scores", scores,
                                      "beside a plan, or instead of the analysis, measure and write scores of rows: "
                                      "what tells those that later text looks at. With --plan, plans whose heads keep "
                                      "tokens by them are tried, too");
    app.add_option("--scores_from", scores_from,
                   "of --plan: folder of scores.json that --scores wrote, to try plans with; give it to the programs "
                   "that run the plan, too")
        ->check(CLI::ExistingDirectory)
        ->needs(planned)
        ->excludes(scored);
    app.add_option("--score_pieces", score_pieces,
                   "pieces of text that scores are fitted to, and held out to choose and check them by")
        ->delimiter(',')
        ->expected(1, 2)
        ->check(support::positive)
        ->capture_default_str()
        ->needs(scored);
    app.add_option("--score_tokens", score_tokens, "tokens of each, which the model reads twice in one context")
        ->check(support::positive)
        ->capture_default_str()
        ->needs(scored);
    // What these measure is given by contexts and pieces: an option that they would not heed is refused.
    for (char const* const other :
         {"--max_tokens", "--chunk_size", "--resume", "--sink_size", "--local_window", "--recent_ratio",
          "--num_distances", "--first_query", "--no_retention", "--no_output_metric"}) {
      planned->excludes(other);
      scored->excludes(other);
    }
  }

 private:
  void add_observation(CLI::App& app) {
    auto& parameters = analysis.parameters;
    app.add_option("--sink_size", parameters.sink_size, "first tokens that count as sinks")->capture_default_str();
    app.add_option("--local_window", parameters.local_window, "tokens before a query that count as local")
        ->capture_default_str();
    app.add_option("--recent_ratio", parameters.recent_ratio, "last part of a piece that counts as recent")
        ->capture_default_str();
    app.add_option("--num_distances", parameters.num_distances, "relative positions told apart")
        ->capture_default_str()
        ->check(support::token_count);
    app.add_option("--first_query", parameters.first_query, "rows of a piece before it are not observed")
        ->capture_default_str()
        ->check(support::non_negative);
    app.add_option("--query_stride", parameters.query_stride, "every so many rows are observed")
        ->capture_default_str()
        ->check(support::positive);
    app.add_flag("--no_retention", no_retention, "no retention statistics: faster");
    app.add_flag("--no_output_metric", no_output_metric, "no errors after the output projection: faster");
    app.add_option("--sinks", sinks, "sinks of the retention grid; default: 0,1,4,16,64")->delimiter(',');
    app.add_option("--windows", windows, "windows of the retention grid; default: 8,16,24,32,48,… up to a piece")
        ->delimiter(',');
  }
};

std::unique_ptr<analysis::AttentionSource> open_source(Options const& options) {
  if (std::filesystem::is_directory(options.run.model)) {
    if (options.run.exact) throw ha::ArgumentError({"--exact", "a GGUF file", "a folder", options.run.model.string()});
    return std::make_unique<analysis::CapturedSource>(options.run.model, options.chunk_size, options.max_tokens);
  }
  if (!std::filesystem::exists(options.run.model)) {
    throw ha::ArgumentError({"--model",
                             "a GGUF file or a folder of captured arrays (models of a hub: download their GGUF file "
                             "and give its path)",
                             "no such file or folder", options.run.model.string()});
  }
#ifdef HEADAWARE_HAS_LLAMA
  return llama_adapter::model_source({.model = options.run.model,
                                      .text = options.text,
                                      .cache_dir = options.run.cache_dir,
                                      .chunk_size = options.chunk_size,
                                      .max_tokens = options.max_tokens,
                                      .threads = options.run.threads,
                                      .exact = options.run.exact});
#else
  throw ha::ArgumentError({"--model", "a folder of captured arrays: this program was built without llama.cpp",
                           "a file (to run GGUF files, configure with -DHEADAWARE_LLAMA=ON)",
                           options.run.model.string()});
#endif
}

/// @param longest  tokens of a piece
ha::RetentionGrid grid_of(Options const& options, std::int64_t longest) {
  ha::RetentionGrid grid = ha::RetentionGrid::up_to(longest);
  if (!options.sinks.empty()) grid.sinks = options.sinks;
  if (!options.windows.empty()) grid.windows = options.windows;
  grid.validate();
  return grid;
}

#ifdef HEADAWARE_HAS_LLAMA
/// Of text and of the probe; one number stands for both.
llama_adapter::PieceCounts counts_of(std::vector<std::int32_t> const& numbers) {
  return {numbers.front(), numbers.back()};
}

/// @param name  of `llama_adapter::sensitivity_names`
llama_adapter::SensitivityOf sensitivity_of(std::string const& name) {
  auto const& names = llama_adapter::sensitivity_names;
  return static_cast<llama_adapter::SensitivityOf>(std::find(names.begin(), names.end(), name) - names.begin());
}

ha::RowScorer score(Options const& options) {
  if (std::filesystem::is_directory(options.run.model)) {
    throw ha::ArgumentError({"--scores", "a GGUF file, which has to run", "a folder", options.run.model.string()});
  }
  llama_adapter::ScoreOptions scores;
  scores.output_dir = options.analysis.output_dir;
  scores.pieces = options.score_pieces.front();
  if (options.score_pieces.size() > 1) scores.held_out = options.score_pieces.back();
  scores.piece_tokens = options.score_tokens;
  scores.threads = options.run.threads;
  llama_adapter::Model const model(options.run.to_run(llama_adapter::exact_copy));
  auto scorer = llama_adapter::calibrate_scores(model, model.tokenize(ha::read_text_file(options.text), false), scores);
  std::printf("%s\nwrote scores.json and weights to %s\n", llama_adapter::score_summary(scorer.saved).c_str(),
              options.analysis.output_dir.c_str());
  return scorer;
}

/// @param scorer  for plans whose heads keep tokens by scores; nullptr: none do
void plan(Options const& options, ha::RowScorer const* scorer) {
  ha::ModelShape const shape = llama_adapter::Model(options.run.model).shape();
  ha::Budget const budget = support::parse_budget(options.budget, {shape, 2});  // of the cache in 16 bits
  support::MeasuringOptions const& measuring = options.measuring;
  llama_adapter::PlanningOptions planning;
  planning.model = options.run.to_run(llama_adapter::exact_copy);
  planning.text = options.text;
  planning.threads = options.run.threads;
  planning.guard.context = measuring.context;
  planning.probe_weights = measuring.probe_weights;
  planning.guard.probe_weight = measuring.score_weight.value_or(measuring.probe_weights.front());
  planning.guard.plan = options.plan_options;
  planning.guard.scorer = scorer;
  planning.guard.fixed_pairs = measuring.fixed_pairs;
  planning.guard.threads = options.run.threads;
  planning.formats = options.formats;
  if (auto const& pieces = measuring.pieces; !pieces.empty()) {
    planning.pieces = {pieces[0], pieces[1], pieces[2], pieces[3]};
  }
  auto& calibration = planning.calibration;
  calibration.output_dir = options.analysis.output_dir;
  calibration.query_stride = options.analysis.parameters.query_stride;
  calibration.sensitivity = sensitivity_of(measuring.sensitivity);
  calibration.by = measuring.sensitivity_by == "loss" ? llama_adapter::SensitivityBy::loss
                                                      : llama_adapter::SensitivityBy::divergence;
  calibration.sensitivity_pieces = counts_of(measuring.sensitivity_pieces);
  calibration.sensitivities_from = measuring.sensitivities_from;
  calibration.grid = grid_of(options, measuring.context);
  // The usual number of pieces grows to what is used of them; of a number given, too few are an error.
  auto const have = [&](llama_adapter::PieceCounts const& used) {
    if (!measuring.pieces.empty()) return;
    planning.pieces.text = std::max(planning.pieces.text, used.text);
    planning.pieces.probe = std::max(planning.pieces.probe, used.probe);
  };
  have(calibration.sensitivity_pieces);
  planning.replan = measuring.replan;
  if (measuring.replan > 0) {
    planning.replan_pieces =
        measuring.replan_pieces.empty() ? calibration.sensitivity_pieces : counts_of(measuring.replan_pieces);
    planning.replan_by = sensitivity_of(measuring.replan_by);
    have(planning.replan_pieces);
  }
  if (measuring.refine > 0) {
    planning.refine = ha::RefineOptions{
        .steps = measuring.refine_steps, .levels = measuring.refine, .most_trials = measuring.refine_trials};
    planning.refine_pieces = counts_of(measuring.refine_pieces);
    have(planning.refine_pieces);
  }
  auto const guarded = llama_adapter::plan_model(planning, budget);
  std::printf("%s\n%s\nwrote plan.json (%s), %splan_guard.json to %s\n",
              ha::plan_summary(guarded.chosen().plan).c_str(), guard_table(guarded).c_str(),
              guarded.chosen().name.c_str(),
              support::has_classes(guarded.chosen().plan) ? "plan_classifications.json, " : "",
              options.analysis.output_dir.c_str());
}
#else
ha::RowScorer score(Options const&) {
  throw ha::ArgumentError({"--scores", "a program built with llama.cpp (configure with -DHEADAWARE_LLAMA=ON)",
                           "one built without", "--scores"});
}
void plan(Options const&, ha::RowScorer const*) {
  throw ha::ArgumentError({"--plan", "a program built with llama.cpp (configure with -DHEADAWARE_LLAMA=ON)",
                           "one built without", "--plan"});
}
#endif

/// Before anything is measured.
void check_plan(Options const& options) {
  if (std::filesystem::is_directory(options.run.model)) {
    throw ha::ArgumentError({"--plan", "a GGUF file, which has to run (from results alone: plan_policies)", "a folder",
                             options.run.model.string()});
  }
  if (options.budget.empty()) {
    throw ha::ArgumentError({"--plan", "--budget too: 25% (of the context) or 512 (tokens per KV head)", "none", ""});
  }
}

int run(Options& options) {
  options.analysis.parameters.validate();
  auto const& folder = options.analysis.output_dir;
  if (options.plan) check_plan(options);
  std::optional<ha::RowScorer> scorer;
  if (options.scores) {
    support::prepare_results(folder, {"scores.json", "scores.npy"}, {"scores_state"});
    scorer = score(options);
  } else if (!options.scores_from.empty()) {
    scorer = ha::load_row_scorer(options.scores_from);
  }
  if (options.plan) {
    support::prepare_results(folder, {"plan.json", "plan_classifications.json", "plan_guard.json"},
                             {"text", "probe", "losses"});
    plan(options, scorer ? &*scorer : nullptr);
  }
  if (options.plan || options.scores) return 0;
  support::prepare_results(folder,
                           {"attention_sums.json", "head_statistics.json", "head_classifications.json",
                            "retention_statistics.json", "analysis.json", "report.html"},
                           {"pictures", "validation"});
  auto const source = open_source(options);
  std::vector<std::int64_t> const texts = source->texts();
  std::int64_t const longest = texts.empty() ? 0 : *std::max_element(texts.begin(), texts.end());
  auto const& parameters = options.analysis.parameters;
  if (longest < parameters.min_chunk) {
    throw ha::ArgumentError(
        {"pieces of text",
         "one of at least " + std::to_string(parameters.min_chunk) + " tokens (--chunk_size, --max_tokens)",
         "at most " + std::to_string(longest), options.run.model.string()});
  }
  if (longest <= parameters.first_query) {
    throw ha::ArgumentError({"--first_query", "less than the longest piece of text, " + std::to_string(longest),
                             std::to_string(parameters.first_query), "analyze_attention"});
  }
  if (!options.no_retention) {
    options.analysis.parameters.retention = grid_of(options, longest);
  }
  options.analysis.output_metric = !options.no_output_metric;
  std::fprintf(stderr, "%s: %s; %zu pieces of text of up to %lld tokens\n", source->name().c_str(),
               analysis::shape_text(source->model()).c_str(), texts.size(), static_cast<long long>(longest));
  analysis::Analysis const result = analysis::analyze(*source, options.analysis);
  if (result.texts_done == 0) {
    std::fprintf(stderr, "interrupted before the first piece of text was done: nothing written\n");
    return support::interrupted_code;
  }
  analysis::write_results(result, *source, options.analysis.output_dir);
  return result.complete() ? 0 : support::interrupted_code;
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv, "Observes what a model's attention heads look at: statistics, classes, retention and pictures", run);
}
