// Observes a model's attention and writes what its heads look at: statistics, classes, retention, pictures. With --plan
// measures what a plan needs, and writes one.

#include "tools/analysis/analysis.hpp"
#include "tools/analysis/captured_source.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/plan_options.hpp"
#include "tools/support/validators.hpp"
#ifdef HEADAWARE_HAS_LLAMA
#include "tools/llama/exact_copy.hpp"
#include "tools/llama/model_source.hpp"
#include "tools/llama/planning.hpp"
#include "tools/support/budget.hpp"
#include "tools/support/interrupt.hpp"
#endif

#include <headaware/error.hpp>
#include <headaware/plan/refine.hpp>
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
  std::filesystem::path model = HEADAWARE_EXAMPLE_DATA "/smollm2-135m";
  std::filesystem::path text = HEADAWARE_EXAMPLE_DATA "/text/alice.txt";
  std::filesystem::path cache_dir;
  std::int64_t chunk_size = 512;
  std::int64_t max_tokens = 0;
  std::int32_t threads = 1;
  bool exact = false;
  bool no_retention = false;
  bool no_output_metric = false;
  std::vector<std::int32_t> sinks;
  std::vector<std::int32_t> windows;
  analysis::AnalysisOptions analysis;
  bool plan = false;
  std::string budget;
  std::string sensitivity = "layer";
  std::string sensitivity_by = "divergence";
  std::vector<double> probe_weights{0.3};
  std::vector<std::int32_t> pieces;
  std::int64_t context = 2048;
  std::vector<std::int32_t> sensitivity_pieces{1, 1};
  std::int32_t replan = 0;
  std::int32_t refine = 0;
  std::vector<std::int32_t> refine_pieces{2, 1};
  std::vector<std::int32_t> replan_pieces{};
  std::string replan_by = "layer";
  std::int32_t refine_trials = ha::RefineOptions{}.most_trials;
  std::vector<double> refine_steps = ha::RefineOptions{}.steps;
  std::optional<double> score_weight;
  std::filesystem::path sensitivities_from;
  ha::PlanOptions plan_options;
};

std::unique_ptr<analysis::AttentionSource> open_source(Options const& options) {
  if (std::filesystem::is_directory(options.model)) {
    if (options.exact) throw ha::ArgumentError({"--exact", "a GGUF file", "a folder", options.model.string()});
    return std::make_unique<analysis::CapturedSource>(options.model, options.chunk_size, options.max_tokens);
  }
  if (!std::filesystem::exists(options.model)) {
    throw ha::ArgumentError({"--model",
                             "a GGUF file or a folder of captured arrays (models of a hub: download their GGUF file "
                             "and give its path)",
                             "no such file or folder", options.model.string()});
  }
#ifdef HEADAWARE_HAS_LLAMA
  return llama_adapter::model_source({.model = options.model,
                                      .text = options.text,
                                      .cache_dir = options.cache_dir,
                                      .chunk_size = options.chunk_size,
                                      .max_tokens = options.max_tokens,
                                      .threads = options.threads,
                                      .exact = options.exact});
#else
  throw ha::ArgumentError({"--model", "a folder of captured arrays: this program was built without llama.cpp",
                           "a file (to run GGUF files, configure with -DHEADAWARE_LLAMA=ON)", options.model.string()});
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

/// An option of as many pieces of text and of the probe; one number stands for both.
/// @param counts  empty: a default that `what` tells @param needed  the option without which it means nothing
void add_piece_counts(CLI::App& app, std::string const& name, std::vector<std::int32_t>& counts,
                      std::string const& what, CLI::Option* needed, CLI::Validator const& allowed = support::positive) {
  auto* const option = app.add_option(name, counts, "pieces of text and of the probe (one number: as many) " + what)
                           ->delimiter(',')
                           ->expected(1, 2)
                           ->check(allowed)
                           ->needs(needed);
  if (!counts.empty()) option->capture_default_str();
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

void plan(Options const& options) {
  if (std::filesystem::is_directory(options.model)) {
    throw ha::ArgumentError({"--plan", "a GGUF file, which has to run (from results alone: plan_policies)", "a folder",
                             options.model.string()});
  }
  if (options.budget.empty()) {
    throw ha::ArgumentError({"--plan", "--budget too: 25% (of the context) or 512 (tokens a KV head)", "none", ""});
  }
  llama_adapter::ModelShape const shape = llama_adapter::Model(options.model).shape();
  ha::Budget const budget =
      support::parse_budget(options.budget, ha::TokenBytes::of(shape.head_dim, options.exact ? 4 : 2));
  llama_adapter::PlanningOptions planning;
  planning.model = options.exact ? llama_adapter::exact_copy(options.model, options.cache_dir) : options.model;
  planning.text = options.text;
  planning.threads = options.threads;
  planning.guard.context = options.context;
  planning.probe_weights = options.probe_weights;
  planning.guard.probe_weight = options.score_weight.value_or(options.probe_weights.front());
  planning.guard.plan = options.plan_options;
  if (!options.pieces.empty()) {
    planning.pieces = {options.pieces[0], options.pieces[1], options.pieces[2], options.pieces[3]};
  }
  auto& calibration = planning.calibration;
  calibration.output_dir = options.analysis.output_dir;
  calibration.query_stride = options.analysis.parameters.query_stride;
  calibration.sensitivity = sensitivity_of(options.sensitivity);
  calibration.by =
      options.sensitivity_by == "loss" ? llama_adapter::SensitivityBy::loss : llama_adapter::SensitivityBy::divergence;
  calibration.sensitivity_pieces = counts_of(options.sensitivity_pieces);
  calibration.sensitivities_from = options.sensitivities_from;
  calibration.grid = grid_of(options, options.context);
  // The usual number of pieces grows to what is used of them; of a number given, too few are an error.
  auto const have = [&](llama_adapter::PieceCounts const& used) {
    if (!options.pieces.empty()) return;
    planning.pieces.text = std::max(planning.pieces.text, used.text);
    planning.pieces.probe = std::max(planning.pieces.probe, used.probe);
  };
  have(calibration.sensitivity_pieces);
  planning.replan = options.replan;
  if (options.replan > 0) {
    planning.replan_pieces =
        options.replan_pieces.empty() ? calibration.sensitivity_pieces : counts_of(options.replan_pieces);
    planning.replan_by = sensitivity_of(options.replan_by);
    have(planning.replan_pieces);
  }
  if (options.refine > 0) {
    planning.refine = ha::RefineOptions{
        .steps = options.refine_steps, .levels = options.refine, .most_trials = options.refine_trials};
    planning.refine_pieces = counts_of(options.refine_pieces);
    have(planning.refine_pieces);
  }
  try {
    auto const guarded = llama_adapter::plan_model(planning, budget);
    std::printf("%s\n%s\nwrote plan.json (%s), plan_classifications.json and plan_guard.json to %s\n",
                ha::plan_summary(guarded.chosen().plan).c_str(), guard_table(guarded).c_str(),
                guarded.chosen().name.c_str(), options.analysis.output_dir.c_str());
  } catch (support::Interrupted const&) {
    std::fprintf(stderr, "interrupted; what was measured is kept: the same command goes on from there\n");
    std::exit(130);
  }
}
#else
void plan(Options const&) {
  throw ha::ArgumentError({"--plan", "a program built with llama.cpp (configure with -DHEADAWARE_LLAMA=ON)",
                           "one built without", "--plan"});
}
#endif

void run(Options options) {
  options.analysis.parameters.validate();
  auto const& folder = options.analysis.output_dir;
  if (options.plan) {
    support::prepare_results(folder, {"plan.json", "plan_classifications.json", "plan_guard.json"},
                             {"text", "probe", "losses"});
  } else {
    support::prepare_results(folder,
                             {"attention_sums.json", "head_statistics.json", "head_classifications.json",
                              "retention_statistics.json", "analysis.json", "report.html"},
                             {"pictures", "validation"});
  }
  if (options.plan) {
    plan(options);
    return;
  }
  auto const source = open_source(options);
  std::vector<std::int64_t> const texts = source->texts();
  std::int64_t const longest = texts.empty() ? 0 : *std::max_element(texts.begin(), texts.end());
  auto const& parameters = options.analysis.parameters;
  if (longest < parameters.min_chunk) {
    throw ha::ArgumentError(
        {"pieces of text",
         "one of at least " + std::to_string(parameters.min_chunk) + " tokens (--chunk_size, --max_tokens)",
         "at most " + std::to_string(longest), options.model.string()});
  }
  if (longest <= parameters.first_query) {
    throw ha::ArgumentError({"--first_query", "less than the longest piece of text, " + std::to_string(longest),
                             std::to_string(parameters.first_query), "analyze_attention"});
  }
  if (!options.no_retention) {
    options.analysis.parameters.retention = grid_of(options, longest);
  }
  options.analysis.output_metric = !options.no_output_metric;
  auto const model = source->model();
  std::fprintf(stderr,
               "%s: %d layers, %d query heads, %d KV heads, head_dim %d; %zu pieces of text of up to %lld tokens\n",
               source->name().c_str(), model.num_hidden_layers, model.num_attention_heads, model.num_key_value_heads,
               model.head_dim, texts.size(), static_cast<long long>(longest));
  analysis::Analysis const result = analysis::analyze(*source, options.analysis);
  if (result.texts_done == 0) {
    std::fprintf(stderr, "interrupted before the first piece of text was done: nothing written\n");
    std::exit(130);
  }
  analysis::write_results(result, *source, options.analysis.output_dir);
  if (!result.complete()) std::exit(130);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.analysis.output_dir = "results/attention_analysis";
#ifdef HEADAWARE_HAS_LLAMA
  options.cache_dir = llama_adapter::default_cache_folder();
#endif
  auto& parameters = options.analysis.parameters;
  CLI::App app{"What a model's attention heads look at: statistics, classes, retention and pictures"};
  app.add_option("--model,--model_id", options.model, "GGUF file, or folder of captured arrays")->capture_default_str();
  app.add_option("--text", options.text, "text file to run a GGUF file over")
      ->capture_default_str()
      ->check(CLI::ExistingFile);
  app.add_option("--max_tokens", options.max_tokens, "tokens of the text; default: all")->check(support::positive);
  app.add_option("--chunk_size", options.chunk_size, "tokens of a piece of text, each by itself; 0: the text is one")
      ->capture_default_str()
      ->check(support::non_negative);
  app.add_option("--output_dir", options.analysis.output_dir, "where the results go")->capture_default_str();
  app.add_flag("--resume", options.analysis.resume, "go on with what was interrupted in the output folder");
  app.add_flag("--exact", options.exact, "run a copy of the model with weights in single precision");
  app.add_option("--cache_dir", options.cache_dir, "folder of such copies")->capture_default_str();
  app.add_option("--threads", options.threads, "cores for the model (the statistics take all)")
      ->capture_default_str()
      ->check(support::thread_range());
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
  app.add_flag("--no_retention", options.no_retention, "no retention statistics: faster");
  app.add_flag("--no_output_metric", options.no_output_metric, "no errors behind the output projection: faster");
  app.add_option("--sinks", options.sinks, "sinks of the retention grid; default: 0,1,4,16,64")->delimiter(',');
  app.add_option("--windows", options.windows, "windows of the retention grid; default: 8,16,24,32,48,… up to a piece")
      ->delimiter(',');
  auto* const plan = app.add_flag("--plan", options.plan,
                                  "instead of the analysis measure and write a plan: which tokens each KV head keeps");
  app.add_option("--budget", options.budget,
                 "of the plan: 25% (of its context), 512 (tokens a KV head on average) or 64MiB (of keys and values)")
      ->needs(plan);
  app.add_option("--context", options.context, "tokens of the sequences that the plan is for")
      ->capture_default_str()
      ->check(support::token_count)
      ->needs(plan);
  app.add_option("--sensitivity", options.sensitivity, "what is cut alone to see what it costs")
      ->capture_default_str()
      ->check(CLI::IsMember({"none", "layer", "head"}))
      ->needs(plan);
  add_piece_counts(app, "--sensitivity_pieces", options.sensitivity_pieces,
                   "over which the cost of a cut is measured: each is a run a layer (head)", plan);
  app.add_option("--sensitivity_by", options.sensitivity_by,
                 "the cost of a cut: how far it moves predictions, or how much it raises the loss")
      ->capture_default_str()
      ->check(CLI::IsMember({"divergence", "loss"}))
      ->needs(plan);
  app.add_option(
         "--sensitivities_from", options.sensitivities_from,
         "folder of another --plan of the model, at a shorter --context, say: costs of cuts are taken from there")
      ->check(CLI::ExistingDirectory)
      ->needs(plan);
  auto* const replan =
      app.add_option(
             "--replan", options.replan,
             "times that the costs of layers are measured again at the best plan so far, everything cut at once, and "
             "plans made of them tried too: each a run a layer (head), and one, for each of --replan_pieces")
          ->capture_default_str()
          ->check(support::non_negative)
          ->needs(plan);
  add_piece_counts(app, "--replan_pieces", options.replan_pieces,
                   "that --replan measures on, 0: these costs stay; default: those of --sensitivity_pieces", replan,
                   support::non_negative);
  app.add_option("--replan_by", options.replan_by, "what --replan gives everything back alone to see what that gains")
      ->capture_default_str()
      ->check(CLI::IsMember({"layer", "head"}))
      ->needs(replan);
  auto* const refine =
      app.add_option(
             "--refine", options.refine,
             "try the best plan on the text that it was made of with more tokens in one half of the layers and "
             "fewer in the other, then between quarters and so on, so many levels down, and keep what loses less; "
             "0: not. Each trial is a run for each of --refine_pieces")
          ->capture_default_str()
          ->check(support::non_negative)
          ->needs(plan);
  add_piece_counts(app, "--refine_pieces", options.refine_pieces, "that --refine tries plans on", refine);
  app.add_option("--refine_trials", options.refine_trials, "most plans that --refine tries")
      ->capture_default_str()
      ->check(support::positive)
      ->needs(refine);
  app.add_option("--refine_steps", options.refine_steps,
                 "binary logarithms of how far --refine scales one half against the other, a sweep each")
      ->delimiter(',')
      ->capture_default_str()
      ->check(support::positive)
      ->needs(refine);
  app.add_option("--pieces", options.pieces,
                 "pieces of text, of the probe, and held out of either to try plans on; default: 4,2,2,1")
      ->delimiter(',')
      ->expected(4)
      ->check(support::positive)
      ->needs(plan);
  app.add_option("--probe_weight", options.probe_weights,
                 "of a passage followed by itself, beside natural text, which has 1. Of several, each makes a plan to "
                 "try")
      ->delimiter(',')
      ->capture_default_str()
      ->check(support::non_negative)
      ->needs(plan);
  app.add_option("--score_weight", options.score_weight,
                 "of what is lost of such a passage, beside what is lost of text, where plans are tried; default: the "
                 "first --probe_weight")
      ->check(support::non_negative)
      ->needs(plan);
  support::PlanArguments plan_arguments;
  plan_arguments.add_to(app, plan);
  // What a plan measures is given by its context and pieces: an option that it would not heed is refused.
  for (char const* const other :
       {"--max_tokens", "--chunk_size", "--resume", "--sink_size", "--local_window", "--recent_ratio",
        "--num_distances", "--first_query", "--no_retention", "--no_output_metric"}) {
    plan->excludes(other);
  }
  CLI11_PARSE(app, argc, argv);
  return support::run_command("analyze_attention", [&] {
    options.plan_options = plan_arguments.options();
    run(options);
    return 0;
  });
}
