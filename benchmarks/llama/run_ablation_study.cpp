// Measures what each part of a plan is worth: groups of configurations that differ in one thing, at equal size, on one
// text.

#include "llama/ablation.hpp"
#include "llama/ablation_report.hpp"
#include "tools/llama/exact_copy.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/options.hpp"

#include <headaware/error.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

namespace ha = headaware;

namespace {

constexpr auto shipped_text = HEADAWARE_EXAMPLE_DATA "/text/alice.txt";

struct Options {
  support::ModelOptions run;
  std::filesystem::path text = shipped_text;
  std::filesystem::path eval_text;
  std::filesystem::path other_text = shipped_text;
  std::filesystem::path output_dir = "results/ablation";
  std::vector<std::string> groups{"all"};
  std::string budget = "25%";
  std::int64_t context = 512;
  std::int64_t max_tokens = 2000;
  std::int32_t pieces = 4;
  std::string sensitivity = "layer";
  bool list = false;

  void add_to(CLI::App& app) {
    run.add_model(app);
    app.add_option("--ablation", groups, "groups to run, or all; --list names them")
        ->delimiter(',')
        ->capture_default_str();
    app.add_flag("--list", list, "only list groups and configurations");
    support::add_text(app, text, "text file that plans are made of");
    support::add_text(app, eval_text,
                      "text file that they are tried on; default: the last quarter of --text, which no plan is made of",
                      "--eval_text");
    support::add_text(app, other_text, "text file of another kind for calibration_domain, its last quarter to try on",
                      "--other_text");
    support::add_max_tokens(app, max_tokens, "tokens of the evaluation text that are used");
    support::add_context(app, context, "tokens of a passage, of a piece of calibration text, and of a copy", 256);
    support::add_budget(app, budget)->capture_default_str();
    support::add_pieces(app, pieces, "pieces of calibration text; half as many of the probe")->capture_default_str();
    support::add_choice(app, "--sensitivity", sensitivity,
                        "of the usual plan, from which the groups depart: what is cut alone to see what it costs",
                        {"none", "norm", "layer", "head", "layer_losses"});
    support::add_output_dir(app, output_dir);
    run.add_ways_to_run(app);
  }
};

bool same_file(std::filesystem::path const& a, std::filesystem::path const& b) {
  std::error_code ignored;
  return std::filesystem::equivalent(a, b, ignored);
}

void run(Options const& options) {
  llama_adapter::AblationOptions study_options{
      .model_name = options.run.model.filename().string() + (options.run.exact ? ", in single precision" : ""),
      .model = options.run.model,
      .text = options.text,
      .eval_text = options.eval_text,
      .other_text = options.other_text,
      .output_dir = options.output_dir,
      .groups = options.groups,
      .budget = options.budget,
      .context = options.context,
      .max_tokens = options.max_tokens,
      .pieces = options.pieces,
      .threads = options.run.threads};
  auto const& names = llama_adapter::ablation_sensitivity_names;
  study_options.sensitivity = static_cast<llama_adapter::AblationSensitivity>(
      std::find(names.begin(), names.end(), options.sensitivity) - names.begin());
  bool const one_text = same_file(options.text, options.other_text) || same_file(options.eval_text, options.other_text);
  if (one_text) {
    study_options.other_text.clear();
    std::fprintf(stderr, "note: without calibration_domain: --other_text is --text or --eval_text\n");
  }
  if (options.list) {
    // Sizes that depend on the model are those of a usual one where none is given.
    ha::ModelShape shape = ha::ModelConfig{32, 8, 8, 128};
    if (!options.run.model.empty()) shape = llama_adapter::Model(options.run.model).shape();
    auto const scale = llama_adapter::ablation_scale(study_options, shape);
    auto const groups = llama_adapter::choose_groups(llama_adapter::ablation_groups(scale), options.groups);
    std::printf("%s", groups_list(groups).c_str());
    return;
  }
  if (options.run.model.empty()) throw ha::ArgumentError({"--model", "a GGUF file", "none", "run_ablation_study"});
  if (same_file(options.text, options.eval_text)) {
    throw ha::ArgumentError({"--eval_text", "another file than --text (without it the last quarter of --text is used)",
                             "the same", options.eval_text.string()});
  }
  // Before anything that takes long.
  (void)llama_adapter::Model(options.run.model);
  support::prepare_results(options.output_dir, {"results.json", "summary.md"}, {"pictures"});
  study_options.model = options.run.to_run(llama_adapter::exact_copy);
  auto const study = llama_adapter::run_ablation(study_options);
  write_ablation(options.output_dir, study);
  std::printf("%s\nwrote results.json, summary.md and pictures to %s\n", ablation_summary(study).c_str(),
              options.output_dir.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv, "Measures what each part of a plan is worth: configurations that differ in one thing, at equal size",
      run);
}
