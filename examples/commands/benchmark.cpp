// How well a model predicts text when its KV cache is cut, method beside method at equal mean size.

#ifdef HEADAWARE_HAS_LLAMA
#include "llama/exact_copy.hpp"
#include "llama/policy_benchmark.hpp"
#include "support/folder.hpp"
#include "support/interrupt.hpp"
#endif

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/plan/compare.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

struct Options {
  std::filesystem::path model;
  std::filesystem::path text = HEADAWARE_EXAMPLE_DATA "/text/alice.txt";
  std::filesystem::path output_dir = "results/benchmark";
  std::filesystem::path cache_dir;
  std::vector<std::string> methods{"full", "streaming_llm"};
  std::vector<std::filesystem::path> plans;
  std::filesystem::path classifications;
  std::vector<std::int64_t> budgets{256};
  std::vector<std::int32_t> skip_layers;
  std::vector<std::int64_t> starts;
  std::vector<std::int64_t> copy_starts;
  std::int64_t context = 2048;
  std::int64_t passages = 4;
  std::int64_t copies = 2;
  std::int64_t max_tokens = 0;
  std::int32_t threads = 1;
  bool exact = false;
  bool masked = false;
};

#ifdef HEADAWARE_HAS_LLAMA
using llama_adapter::BenchmarkRun;

std::vector<BenchmarkRun> runs_of(Options const& options, ha::ModelConfig const& model) {
  std::int32_t const layers = model.num_hidden_layers;
  std::int32_t const kv_heads = model.num_key_value_heads;
  std::vector<BenchmarkRun> runs;
  auto const add = [&](std::string const& method, std::int64_t budget, ha::PolicyTable const& table,
                       std::filesystem::path const& file = {}) {
    runs.push_back({.method = method,
                    .plan = file.string(),
                    .budget_tokens = budget,
                    .table = table.skip_layers(options.skip_layers)});
  };
  for (std::string const& method : options.methods) {
    if (method == "full") {
      add(method, 0, ha::PolicyTable(layers, kv_heads, ha::Full{}));
    } else if (method == "planned") {
      if (options.plans.empty()) throw ha::ArgumentError({"--method planned", "--plan too", "none", "--plan"});
      for (auto const& path : options.plans) {
        ha::PolicyPlan const plan = ha::load_plan(path);
        ha::detail::require(plan.context == options.context, "context of the plan",
                            std::to_string(options.context) + ", as --context", plan.context, path.c_str());
        auto const heads = static_cast<std::int64_t>(plan.heads.size());
        add(method, plan.budget_tokens / std::max<std::int64_t>(heads, 1), ha::load_policy_table(path, model), path);
      }
    } else if (method == "head_aware") {
      if (options.classifications.empty()) {
        throw ha::ArgumentError({"--method head_aware", "--classifications_path too", "none", "--method"});
      }
      add(method, 0, ha::load_policy_table(options.classifications, model), options.classifications);
    } else {
      for (std::int64_t const budget : options.budgets) {
        auto const size = ha::Budget::tokens(static_cast<double>(budget));
        bool const sinks = method == "streaming_llm";
        add(method, budget, ha::uniform_table(layers, kv_heads, size, options.context, 1, sinks ? 4 : 0));
      }
    }
  }
  return runs;
}

/// Evenly spaced from the text's first token on, as far as `length` tokens fit.
std::vector<std::int64_t> even_starts(std::int64_t tokens, std::int64_t count, std::int64_t length) {
  std::vector<std::int64_t> starts;
  for (std::int64_t i = 0; i < count; ++i) starts.push_back(std::min(tokens / count * i, tokens - length));
  return starts;
}

void run(Options options) {
  if (!options.masked) {
    throw ha::ArgumentError({"benchmark", "--masked: policies as masks, which equal eviction at every step",
                             "no such flag (evicted caches are not measured yet)", "--masked"});
  }
  if (options.exact) options.model = llama_adapter::exact_copy(options.model, options.cache_dir);
  llama_adapter::Model const model(options.model);
  auto const& shape = model.shape();
  auto tokens = model.tokenize(ha::read_text_file(options.text), false);
  if (options.max_tokens > 0) tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(options.max_tokens)));
  auto const length = std::ssize(tokens);
  ha::detail::require(length >= options.context, "tokens of the text", "at least --context", length,
                      options.text.c_str());
  llama_adapter::BenchmarkText text{options.context, options.starts, options.copy_starts};
  if (text.passages.empty()) text.passages = even_starts(length, options.passages, options.context);
  if (text.copies.empty()) text.copies = even_starts(length, options.copies, options.context / 2);

  // Before anything that takes long.
  auto runs = runs_of(options, shape.config());
  support::make_folder(options.output_dir);
  llama_adapter::PolicyRun policies(model,
                                    {.tokens = static_cast<std::int32_t>(options.context), .threads = options.threads});
  llama_adapter::LossStore losses(policies, options.output_dir / "losses");
  try {
    run_benchmark(losses, tokens, text, runs);
  } catch (support::Interrupted const&) {
    std::fprintf(stderr, "interrupted; what was run is kept: the same command goes on from there\n");
    std::exit(130);
  }
  std::string const about = options.model.filename().string() + " over " + options.text.filename().string();
  write_benchmark(options.output_dir, about, text, runs);
  std::printf("%s, passages of %lld tokens\n%swrote benchmark.json and benchmark.csv to %s\n", about.c_str(),
              static_cast<long long>(options.context), benchmark_table(runs).c_str(), options.output_dir.c_str());
}
#else
void run(Options const&) {
  throw ha::ArgumentError(
      {"benchmark", "a program built with llama.cpp (configure with -DHEADAWARE_LLAMA=ON)", "one built without", ""});
}
#endif

}  // namespace

int main(int argc, char** argv) {
  Options options;
#ifdef HEADAWARE_HAS_LLAMA
  options.cache_dir = llama_adapter::default_cache_folder();
#endif
  CLI::App app{"How well a model predicts text when its KV cache is cut, method beside method"};
  app.add_option("--model,--model_id", options.model, "GGUF file")->required();
  app.add_option("--text", options.text, "text file, best one that no plan was made of")
      ->capture_default_str()
      ->check(CLI::ExistingFile);
  app.add_option("--method", options.methods, "any of full,streaming_llm,window_only,head_aware,planned")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"full", "streaming_llm", "window_only", "head_aware", "planned"}));
  app.add_option("--plan", options.plans, "plan.json of planned, or several")->delimiter(',')->check(CLI::ExistingFile);
  app.add_option("--classifications_path", options.classifications, "head_classifications.json of head_aware")
      ->check(CLI::ExistingFile);
  app.add_option("--budget", options.budgets, "tokens a KV head of streaming_llm and window_only, or several")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--skip_layers", options.skip_layers, "layers that keep everything")->delimiter(',');
  app.add_flag("--masked", options.masked, "policies as masks: equal to eviction at every step, in one pass a passage");
  app.add_option("--context,--chunk_size", options.context, "tokens of a passage")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{256}, std::int64_t{1} << 20));
  app.add_option("--passages", options.passages, "how many, evenly spaced")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--starts", options.starts, "tokens at which passages begin, instead")->delimiter(',');
  app.add_option("--copies", options.copies, "passages of half the size, each given twice; 0: none")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--copy_starts", options.copy_starts, "tokens at which they begin, instead")->delimiter(',');
  app.add_option("--max_tokens", options.max_tokens, "of the text; default: all")->check(CLI::PositiveNumber);
  app.add_option("--output_dir", options.output_dir, "where the results go")->capture_default_str();
  app.add_flag("--exact", options.exact, "run a copy of the model with weights in single precision");
  app.add_option("--cache_dir", options.cache_dir, "folder of such copies")->capture_default_str();
  app.add_option("--threads", options.threads, "cores for the model")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
    return 0;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "benchmark: %s\n", error.what());
    return 1;
  }
}
