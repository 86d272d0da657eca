// Measures how well a model predicts text when its KV cache is cut, what the cache holds and how fast it is, method
// beside method at equal mean size.

#include "llama/benchmark_methods.hpp"
#include "llama/evict_once.hpp"
#include "tools/llama/exact_copy.hpp"
#include "tools/support/budget.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/format_options.hpp"
#include "tools/support/options.hpp"
#include "tools/support/plan_scores.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/policy/scored_heads.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

constexpr auto what_is_measured = R"(
What is measured (benchmark.json, benchmark.csv; a picture of perplexity and of copying over the bytes held):
  perplexity              of passages of --context tokens, each read with nothing before it
  perplexity_second_half  of the tokens after the first half of their passage
  copy_nll                nats per token of the second copy of passages of half the size, each given twice
  ..._error               standard errors of both, over passages
  gap_closed              share of the gap in NLL, second halves, between streaming_llm of this size and full that the
                          method closes; its standard error is a jackknife over passages
  mean_kept_tokens        kept per KV head after --context tokens
  budget_tokens           of the method, a KV head (plan.json: of all KV heads together)
  kv_bytes_end            of those keys and values: 2 bytes per element, with --exact too, or what their formats take,
                          and there the records of heads that keep tokens by scores, too
  record_bytes_end        of scores and records of such heads
  kv_share                of the bytes of the full cache in 16 bits
and, unless --masked:
  kv_bytes_peak           most that the cache allocated: its blocks, with slots for the tokens appended at a time
  prefill_tokens_per_s    passages and copies read in chunks of 256, evicted as they come; logits of every token included
  decode_tokens_per_s     --decode_tokens decoded greedily one at a time after the first passage
  time_to_first_token_s   reading the first passage and choosing the token after it
  compaction_s            the library's compress of a full cache of --context tokens of the model's shape, all layers, into
                          the method's cache: what an engine pays that prefills with its own attention. CPU, best of five
With --evict_once (evict_once.json, evict_once.csv; evict_once_pieces.json has the tokens, for other programs) a prefix is
read with everything kept, some tokens of every KV head are kept once, and the model reads on with nothing evicted:
  perplexity              of the --continuation after a prefix of --prefix tokens
  gap_closed              of the gap in its NLL between streaming_llm of this size and full
  copy_nll                of the prefix given again
  lookup_accuracy         share of digits that are the likeliest token, questions after lists of words with numbers
  select_seconds, compress_seconds  of select_tokens and compress; beside them the seconds of a prefill and of score_keys
Its methods, all with 4 sinks but full, and --sizes tokens per KV head on average:
  full, streaming_llm     everything; newest tokens
  planned                 windows of --plan in their proportions, at each size; no scored slots
  snapkv                  newest quarter, and those that the last 64 queries look at, summed, means over 5 tokens
  h2o                     newest half, and those that all queries look at, summed
  kvzip                   those that a second reading of the prefix looks at most, one threshold for all heads
and with --scores, whose head budgets all but learned_shared have:
  budget_windows          newest tokens
  learned                 newest quarter of the budget, and those of the largest linear score
  learned_shared          newest 16, and those of the largest linear score, one threshold for all heads
  expected_attention      newest quarter of the budget, and those that queries to come are expected to look at
Rules (head_aware) lose to uniform windows of their size, which are run beside them; analyze_attention --plan makes plans
that did not on the text held out for them.)";

struct Options {
  support::ModelOptions run;
  std::filesystem::path text = HEADAWARE_EXAMPLE_DATA "/text/alice.txt";
  std::filesystem::path output_dir = "results/benchmark";
  std::vector<std::string> methods;  ///< as asked for
  llama_adapter::MethodOptions compared;
  std::vector<std::string> budgets;
  std::vector<std::int64_t> starts;
  std::vector<std::int64_t> copy_starts;
  std::int64_t passages = 16;  // fewer tell methods apart badly
  std::int64_t copies = 4;
  std::int64_t max_tokens = 0;
  std::int64_t decode_tokens = 64;
  bool masked = false;
  bool evict_once = false;
  std::vector<std::int64_t> sizes{64, 128, 256};
  std::filesystem::path scores;
  llama_adapter::OnceOptions once;
  llama_adapter::OncePlace once_place;

  void add_to(CLI::App& app) {
    app.footer(what_is_measured);
    run.add_model(app)->required();
    support::add_text(app, text, "text file, best one that no plan was made of");
    add_methods(app);
    app.add_flag(
        "--masked", masked,
        "policies as masks, in one pass per passage: measures no cache; predicts the same, with --exact to 1e-4, while "
        "quantised weights round every step differently");
    app.add_flag("--evict_once", evict_once, "read a prefix, compress it once, read on: see below")
        ->excludes("--masked");
    auto const count = [&](char const* name, std::int64_t& number, char const* means) {
      app.add_option(name, number, means)->capture_default_str()->check(CLI::Range(0, support::most_tokens));
    };
    auto const places = [&](char const* name, std::vector<std::int64_t>& first, char const* means) {
      app.add_option(name, first, means)->delimiter(',')->check(support::non_negative);
    };
    app.add_option("--passages", passages, "how many, evenly spaced")
        ->capture_default_str()
        ->check(support::token_count);
    places("--starts", starts, "tokens at which passages begin, instead");
    count("--copies", copies, "passages of half the size, each given twice; 0: none");
    places("--copy_starts", copy_starts, "tokens at which they begin, instead");
    add_once(app);
    count("--decode_tokens", decode_tokens, "decoded after the first passage; 0: none");
    support::add_max_tokens(app, max_tokens, "of the text");
    support::add_output_dir(app, output_dir, "where the results go; the same folder goes on where a run stopped");
    run.add_ways_to_run(app, "a copy of the model with weights in single precision, the cache likewise",
                        "cores for the model, and, where caches evict, for the library");
  }

 private:
  void add_once(CLI::App& app) {
    auto const length = [&](char const* name, std::int64_t& tokens, char const* means) {
      support::add_length(app, tokens, means, 64, name);
    };
    length("--prefix", once.prefix, "of --evict_once: tokens that are read before");
    length("--continuation", once.continuation, "of --evict_once: tokens that are read after");
    support::add_scores(app, scores);
    app.add_option("--sizes", sizes, "of --evict_once: tokens that a KV head keeps of the prefix on average")
        ->capture_default_str()
        ->delimiter(',')
        ->check(support::positive);
    app.add_option("--lookups", once_place.lookups,
                   "of --evict_once: lists of words with numbers, as long as the prefix")
        ->capture_default_str()
        ->check(support::non_negative);
    app.add_option("--questions", once_place.questions, "of --evict_once: after each list")
        ->capture_default_str()
        ->check(support::positive);
  }
  void add_methods(CLI::App& app) {
    auto const& known = llama_adapter::benchmark_methods;
    std::string names;
    for (char const* const name : known) names += std::string(names.empty() ? "" : ",") + name;
    std::vector<std::string> all(known.begin(), known.end());
    for (char const* const name : llama_adapter::once_methods) {
      if (std::find(all.begin(), all.end(), name) == all.end()) all.emplace_back(name);
    }
    app.add_option("--method", methods,
                   "any of " + names +
                       ", with --evict_once those below; default: full,streaming_llm, and planned where there "
                       "is a --plan; with --evict_once all that the options "
                       "allow")
        ->delimiter(',')
        ->check(CLI::IsMember(all));
    support::add_policies(app, compared.plans, "plan.json of planned, or several")->delimiter(',');
    support::add_policies(app, compared.classifications,
                          "head_classifications.json of head_aware; streaming_llm is run beside it at its size",
                          "--classifications_path");
    app.add_option(
           "--duo_gates", compared.duo_gates,
           "trained gates of duo: DuoAttention's folder, or its full_attention_heads.tsv. At each budget, heads "
           "of the largest gates keep all, of equal ones the first, as many as leave the mean at the budget")
        ->check(CLI::ExistingPath);
    app.add_option(
           "--duo_share", compared.duo_share,
           "instead of budgets: share of KV heads that keep all, as the gates are published (0.5, or 0.25 without "
           "grouped queries); the others keep the sinks and the window beside the gates")
        ->check(CLI::Range(0.0, 1.0));
    app.add_option("--duo_sink", compared.duo_sink, "sinks of duo's other heads; default: 4")
        ->check(support::non_negative);
    app.add_option("--duo_window", compared.duo_window,
                   "their window; default: 252, less where they would take more than half of the budget")
        ->check(support::positive);
    support::add_budget(app, budgets, "of streaming_llm, window_only and duo, or several: ",
                        "; default: the plans', else the classes', else 256")
        ->delimiter(',');
    app.add_option_function<std::vector<std::string>>(
           "--uniform_formats",
           [this](std::vector<std::string> const& pairs) {
             for (auto const& pair : pairs) compared.formats.push_back(support::parse_format_pair(pair));
           },
           "streaming_llm in these formats of keys/values too, such as packed5/packed4, at the bytes of its budgets")
        ->delimiter(',');
    support::add_skip_layers(app, compared.skip_layers, "layers that keep everything, beyond the budgets");
    support::add_context(app, compared.context, "tokens of a passage", 256, "--context,--chunk_size");
  }
};

/// Evenly spaced from the text's first token on, as many as fit beside each other.
std::vector<std::int64_t> even_starts(std::int64_t tokens, std::int64_t count, std::int64_t length, char const* what) {
  if (std::int64_t const fit = tokens / length; fit < count) {
    std::fprintf(stderr, "note: %lld of %lld %s, which is what %lld tokens of text have room for\n",
                 static_cast<long long>(fit), static_cast<long long>(count), what, static_cast<long long>(tokens));
    count = fit;
  }
  std::vector<std::int64_t> starts;
  for (std::int64_t i = 0; i < count; ++i) starts.push_back(std::min(tokens / count * i, tokens - length));
  return starts;
}

/// Tokens a KV head of the layers that are not skipped.
std::vector<std::int64_t> mean_budgets(Options const& options, ha::ModelShape const& shape) {
  std::vector<std::int64_t> means;
  if (options.budgets.empty()) return means;
  ha::LayerBytes const token(shape, 2);
  auto skipped = options.compared.skip_layers;
  std::sort(skipped.begin(), skipped.end());
  support::PlannedCache const cache(shape, skipped, options.compared.context);
  for (auto const& text : options.budgets) {
    auto const budget = support::parse_budget(text, token);
    ha::require(budget.row_bytes().empty(), "--budget",
                "tokens per KV head or a share, as rows of the model's layers differ in size", text, "--budget");
    support::require_within_cache(budget, shape, skipped, options.compared.context, text);
    means.push_back(cache.budget(budget, options.compared.context) / cache.heads);
    ha::require(means.back() > 0, "--budget", "at least one token per KV head", text, "--budget");
  }
  return means;
}

void run_all(llama_adapter::Model const& model, Options const& options, std::vector<std::int32_t> const& tokens,
             llama_adapter::BenchmarkText const& text, std::vector<llama_adapter::BenchmarkRun>& runs) {
  if (options.masked) {
    llama_adapter::PolicyRun policies(
        model, {.tokens = static_cast<std::int32_t>(text.place.context), .threads = options.run.threads});
    llama_adapter::LossStore losses(policies, options.output_dir / "losses");
    run_benchmark(losses, tokens, text, runs);
  } else {
    llama_adapter::EvictedStore evicted(model, {.threads = options.run.threads, .single_precision = options.run.exact},
                                        options.output_dir / "evicted");
    run_benchmark(evicted, tokens, text, runs);
  }
}

/// Tokens of the text, without BOS.
std::vector<std::int32_t> text_of(llama_adapter::Model const& model, Options const& options, std::int64_t least,
                                  char const* option) {
  auto tokens = model.tokenize(ha::read_text_file(options.text), false);
  if (options.max_tokens > 0) tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(options.max_tokens)));
  ha::require(std::ssize(tokens) >= least, "tokens of the text", {"at least ", option, ", ", least}, tokens.size(),
              options.text.string());
  return tokens;
}

void run_evict_once(Options const& options) {
  llama_adapter::Model const model(options.run.to_run(llama_adapter::exact_copy));
  std::vector<std::string> methods = options.methods;
  if (methods.empty()) {
    for (std::string const method : llama_adapter::once_methods) {
      bool const wanted = method == "planned" ? !options.compared.plans.empty()
                                              : !options.scores.empty() || !llama_adapter::needs_scores(method);
      if (wanted) methods.push_back(method);
    }
  }
  llama_adapter::OnceOptions once = options.once;
  once.threads = options.run.threads;
  once.single_precision = options.run.exact;
  std::optional<ha::RowScorer> scorer;
  if (!options.scores.empty()) once.scorer = &scorer.emplace(ha::load_row_scorer(options.scores));
  auto runs = llama_adapter::once_runs(methods, options.sizes, options.compared.plans, model.shape(), once);
  std::int64_t const length = once.prefix + once.continuation;
  auto const tokens = text_of(model, options, length, "--prefix and --continuation");
  llama_adapter::OncePlace place = options.once_place;
  place.passages =
      options.starts.empty() ? even_starts(std::ssize(tokens), options.passages, length, "passages") : options.starts;
  place.copies = options.copy_starts.empty() ? even_starts(std::ssize(tokens), options.copies, once.prefix, "copies")
                                             : options.copy_starts;
  auto const pieces = once_pieces(model, tokens, once, place);
  support::prepare_results(options.output_dir, {"evict_once.json", "evict_once.csv", "evict_once_pieces.json"},
                           {"once", "pictures"});
  llama_adapter::write_pieces(options.output_dir, pieces);
  auto const folder = options.output_dir / "once";
  run_once(model, once, folder, pieces, runs);
  auto const cost = once_cost(model, once, folder, pieces.front().prefix);
  llama_adapter::OnceAbout const about{.model = options.run.model.filename().string(),
                                       .text = options.text.filename().string(),
                                       .exact = options.run.exact};
  write_once(options.output_dir, about, once, place, runs, cost);
  std::printf("%s over %s: %lld tokens read, evicted once, %lld read after them\n\n%s", about.model.c_str(),
              about.text.c_str(), static_cast<long long>(once.prefix), static_cast<long long>(once.continuation),
              once_table(runs, cost).c_str());
  std::printf("wrote evict_once.json, evict_once.csv, evict_once_pieces.json and pictures/ to %s\n",
              options.output_dir.c_str());
}

void run(Options options) {
  if (options.evict_once) return run_evict_once(options);
  std::int64_t const context = options.compared.context;
  for (std::string const& method : options.methods) {
    auto const& known = llama_adapter::benchmark_methods;
    ha::require(std::find(known.begin(), known.end(), method) != known.end(), "--method " + method,
                "--evict_once too, whose method it is", "none", "--method");
  }
  llama_adapter::Model const model(options.run.to_run(llama_adapter::exact_copy));
  if (!options.methods.empty()) {
    options.compared.methods = options.methods;
  } else if (!options.compared.plans.empty()) {
    options.compared.methods.emplace_back("planned");
  }
  // Before anything that takes long.
  options.compared.budgets = mean_budgets(options, model.shape());
  auto runs = benchmark_runs(options.compared, model.shape());
  for (auto& run : runs) {
    bool const scored = ha::has_scored_heads(run.table);
    ha::require(!scored || !options.masked, "--masked", "plans of windows: what scores keep is no mask", run.plan,
                "--masked");
    run.scorer = support::scores_of(run.plan, run.table, options.scores);
  }
  auto const tokens = text_of(model, options, context, "--context");
  auto const length = std::ssize(tokens);
  llama_adapter::BenchmarkText const text{
      .place = {.context = context,
                .passages = options.starts.empty() ? even_starts(length, options.passages, context, "passages")
                                                   : options.starts,
                .copies = options.copy_starts.empty() ? even_starts(length, options.copies, context / 2, "copies")
                                                      : options.copy_starts},
      .decode_tokens = options.decode_tokens};
  support::prepare_results(options.output_dir, {"benchmark.json", "benchmark.csv"},
                           {options.masked ? "losses" : "evicted", "pictures"});
  run_all(model, options, tokens, text, runs);
  llama_adapter::BenchmarkAbout const about{.model = options.run.model.filename().string(),
                                            .text = options.text.filename().string(),
                                            .masked = options.masked,
                                            .exact = options.run.exact,
                                            .element_bytes = options.run.exact ? 4 : 2,
                                            .threads = options.run.threads};
  // First, since drawing may fail.
  std::printf("%s, passages of %lld tokens, %s\n%s%s", about.title().c_str(), static_cast<long long>(context),
              options.masked ? "masked" : "evicted", benchmark_table(runs).c_str(),
              (rules_advice(runs) + size_advice(runs)).c_str());
  std::fflush(stdout);
  write_benchmark(options.output_dir, about, text, runs);
  std::printf("wrote benchmark.json, benchmark.csv and pictures/ to %s\n", options.output_dir.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv, "Measures how well a model predicts text when its KV cache is cut, method beside method", run);
}
