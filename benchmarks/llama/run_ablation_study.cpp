// What each part of a plan is worth: groups of configurations that differ in one thing, at equal size, on one text.

#ifdef HEADAWARE_HAS_LLAMA
#include "llama/ablation.hpp"
#include "llama/ablation_report.hpp"
#include "tools/llama/exact_copy.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/interrupt.hpp"
#endif
#include "tools/support/command.hpp"
#include "tools/support/validators.hpp"

#include <headaware/error.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

namespace ha = headaware;

namespace {

constexpr auto shipped_text = HEADAWARE_EXAMPLE_DATA "/text/alice.txt";

struct Options {
  std::filesystem::path model;
  std::filesystem::path text = shipped_text;
  std::filesystem::path eval_text;
  std::filesystem::path other_text = shipped_text;
  std::filesystem::path output_dir = "results/ablation";
  std::filesystem::path cache_dir;
  std::vector<std::string> groups{"all"};
  std::string budget = "25%";
  std::int64_t context = 512;
  std::int64_t max_tokens = 2000;
  std::int32_t pieces = 4;
  std::string sensitivity = "layer";
  std::int32_t threads = 1;
  bool exact = false;
  bool list = false;
};

#ifdef HEADAWARE_HAS_LLAMA
bool same_file(std::filesystem::path const& a, std::filesystem::path const& b) {
  std::error_code ignored;
  return std::filesystem::equivalent(a, b, ignored);
}

void run(Options const& options) {
  llama_adapter::AblationOptions study_options{
      .model_name = options.model.filename().string() + (options.exact ? ", in single precision" : ""),
      .model = options.model,
      .text = options.text,
      .eval_text = options.eval_text,
      .other_text = options.other_text,
      .output_dir = options.output_dir,
      .groups = options.groups,
      .budget = options.budget,
      .context = options.context,
      .max_tokens = options.max_tokens,
      .pieces = options.pieces,
      .threads = options.threads};
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
    llama_adapter::ModelShape shape;
    shape.layers = 32;
    shape.num_kv_heads = 8;
    shape.head_dim = 128;
    if (!options.model.empty()) shape = llama_adapter::Model(options.model).shape();
    auto const scale = llama_adapter::ablation_scale(study_options, shape);
    auto const groups = llama_adapter::choose_groups(llama_adapter::ablation_groups(scale), options.groups);
    std::printf("%s", groups_list(groups).c_str());
    return;
  }
  if (options.model.empty()) throw ha::ArgumentError({"--model", "a GGUF file", "none", "run_ablation_study"});
  if (same_file(options.text, options.eval_text)) {
    throw ha::ArgumentError({"--eval_text", "another file than --text (without it the last quarter of --text is used)",
                             "the same", options.eval_text.string()});
  }
  // Before anything that takes long.
  (void)llama_adapter::Model(options.model);
  support::prepare_results(options.output_dir, {"results.json", "summary.md"}, {"pictures"});
  if (options.exact) study_options.model = llama_adapter::exact_copy(options.model, options.cache_dir);
  try {
    auto const study = llama_adapter::run_ablation(study_options);
    write_ablation(options.output_dir, study);
    std::printf("%s\nwrote results.json, summary.md and pictures to %s\n", ablation_summary(study).c_str(),
                options.output_dir.c_str());
  } catch (support::Interrupted const&) {
    std::fprintf(stderr, "interrupted; what was run is kept: the same command goes on from there\n");
    std::exit(130);
  }
}
#else
void run(Options const&) {
  throw ha::ArgumentError({"run_ablation_study", "a program built with llama.cpp (configure with -DHEADAWARE_LLAMA=ON)",
                           "one built without", ""});
}
#endif

}  // namespace

int main(int argc, char** argv) {
  Options options;
#ifdef HEADAWARE_HAS_LLAMA
  options.cache_dir = llama_adapter::default_cache_folder();
#endif
  CLI::App app{"What each part of a plan is worth: configurations that differ in one thing, at equal size"};
  app.add_option("--model,--model_id", options.model, "GGUF file");
  app.add_option("--ablation", options.groups, "groups to run, or all; --list names them")
      ->delimiter(',')
      ->capture_default_str();
  app.add_flag("--list", options.list, "only list groups and configurations");
  app.add_option("--text", options.text, "text file that plans are made of")
      ->capture_default_str()
      ->check(CLI::ExistingFile);
  app.add_option("--eval_text", options.eval_text,
                 "text file that they are tried on; default: the last quarter of --text, which no plan is made of")
      ->check(CLI::ExistingFile);
  app.add_option("--other_text", options.other_text,
                 "text file of another kind for calibration_domain, its last quarter to try on")
      ->capture_default_str()
      ->check(CLI::ExistingFile);
  app.add_option("--max_tokens", options.max_tokens, "tokens of the evaluation text that are used")
      ->capture_default_str()
      ->check(support::positive);
  app.add_option("--context", options.context, "tokens of a passage, of a piece of calibration text, and of a copy")
      ->capture_default_str()
      ->check(support::token_count);
  app.add_option("--budget", options.budget,
                 "25% (of the context), 512 (tokens a KV head on average) or 64MiB (of keys and values)")
      ->capture_default_str();
  app.add_option("--pieces", options.pieces, "pieces of calibration text; half as many of the probe")
      ->capture_default_str()
      ->check(support::token_count);
  app.add_option("--sensitivity", options.sensitivity,
                 "of the usual plan, from which the groups depart: what is cut alone to see what it costs")
      ->capture_default_str()
      ->check(CLI::IsMember({"none", "norm", "layer", "head", "layer_losses"}));
  app.add_option("--output_dir", options.output_dir, "where the results go")->capture_default_str();
  app.add_flag("--exact", options.exact, "run a copy of the model with weights in single precision");
  app.add_option("--cache_dir", options.cache_dir, "folder of such copies")->capture_default_str();
  app.add_option("--threads", options.threads, "cores for the model")
      ->capture_default_str()
      ->check(support::thread_range());
  CLI11_PARSE(app, argc, argv);
  return support::run_command("run_ablation_study", [&] {
    run(options);
    return 0;
  });
}
