// An unmodified llama.cpp on headaware's cache: its attention reads what each KV head keeps, its own memory is emptied
// after every step, and a context of 256 cells suffices however long the text gets.

#include "tools/llama/cached_model.hpp"
#include "tools/llama/engine.hpp"
#include "tools/llama/engine_reader.hpp"
#include "tools/llama/exact_copy.hpp"
#include "tools/support/command.hpp"
#include "tools/support/format_options.hpp"
#include "tools/support/options.hpp"
#include "tools/support/plan_file.hpp"
#include "tools/support/plan_scores.hpp"
#include "tools/support/progress.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/policy_table.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace llama_adapter;

namespace {

struct Options {
  support::ModelOptions run;
  std::filesystem::path policies;
  std::filesystem::path scores;
  std::string policy = "streaming_llm";
  std::int32_t sink = 4;
  std::int32_t window = 508;
  std::string prompt = "Once upon a time";
  std::filesystem::path prompt_file;
  std::filesystem::path perplexity;
  std::int64_t max_tokens = 0;
  std::int32_t new_tokens = 200;
  std::int32_t chunk = 256;
  bool compare = false;
  bool flash_attention = false;
  bool ignore_end = false;

  void add_to(CLI::App& app) {
    run.add_model(app)->required();
    auto* const file = support::add_policies(app, policies, "classifications or plan.json: a policy per KV head",
                                             "--classifications,--plan");
    support::add_scores(app, scores)->needs(file);
    support::add_choice(app, "--policy", policy, "one policy for all heads, without such a file",
                        {"streaming_llm", "window_only", "full"})
        ->excludes(file);
    app.add_option("--sink", sink, "sinks of streaming_llm")->capture_default_str()->check(support::non_negative);
    app.add_option("--window", window,
                   "window of streaming_llm and window_only; a head owns 31 slots more, so that 32 tokens are read at "
                   "a time")
        ->capture_default_str()
        ->check(support::non_negative);
    app.add_option("--prompt", prompt, "text to go on from")->capture_default_str();
    support::add_text(app, prompt_file, "the same from a file", "--prompt_file");
    support::add_text(app, perplexity, "measure on this text instead of writing one", "--perplexity");
    support::add_max_tokens(app, max_tokens, "tokens of the prompt or text");
    app.add_option("-n,--new_tokens", new_tokens, "tokens to write")
        ->capture_default_str()
        ->check(support::non_negative);
    app.add_option("--chunk", chunk, "tokens read at a time")->capture_default_str()->check(CLI::Range(1, 256));
    run.add_ways_to_run(app, "weights, keys and values in single precision");
    app.add_flag("--compare", compare, "then the same by the engine alone, with a cache for all tokens");
    app.add_flag("--flash_attention", flash_attention, "the engine alone with its fused attention");
    app.add_flag("--ignore_end", ignore_end, "write on past the model's end of text");
  }
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

ha::PolicyTable table_of(Options const& options, ha::ModelShape const& model) {
  if (!options.policies.empty()) return ha::load_policy_table(options.policies, model);
  if (options.policy == "full") return ha::table_from_model_config(model, ha::Full{});
  if (options.policy == "window_only") return ha::table_from_model_config(model, ha::WindowOnly{options.window});
  return ha::table_from_model_config(model, ha::SinkWindow{options.sink, options.window});
}

/// What the options' model keeps in a cache of its own.
struct Kept {
  ha::PolicyTable table;
  ha::FormatTable formats{};
  std::shared_ptr<ha::RowScorer const> scorer{};

  Kept(Model const& model, Options const& options) : table(table_of(options, model.shape())) {
    if (options.policies.empty()) return;
    formats = support::formats_of_file(options.policies, model.shape());
    scorer = support::scores_of(options.policies, table, options.scores);
  }
};

/// The options' model on such a cache.
template <class T>
CachedModel<T> cached(Model const& model, Kept const& kept, Options const& options, std::int64_t max_tokens,
                      bool all_logits) {
  return {
      model,
      kept.table,
      kept.formats,
      max_tokens,
      {.chunk = options.chunk, .all_logits = all_logits, .threads = options.run.threads, .scorer = kept.scorer.get()}};
}

KvType engine_kv(Options const& options) { return options.run.exact ? KvType::f32 : KvType::f16; }

/// The engine by itself, with a cache for all tokens.
EngineReader engine_alone(Model const& model, Options const& options, std::int64_t max_tokens, bool all_logits) {
  return {model,
          {.tokens = options.chunk,
           .cells = static_cast<std::int32_t>(max_tokens),
           .flash_attention = options.flash_attention,
           .kv = engine_kv(options),
           .all_logits = all_logits,
           .threads = options.run.threads}};
}

struct Generated {
  std::vector<std::int32_t> tokens;
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

/// Reads the prompt chunk by chunk, then decodes greedily; `show` sees each new token.
template <class Reader, class Show>
Generated generate(Reader& reader, Model const& model, std::vector<std::int32_t> const& prompt, Options const& options,
                   Show const& show) {
  Generated result;
  double const start = now();
  std::size_t last = 0;
  for (std::size_t at = 0; at < prompt.size(); at += last) {
    last = std::min(static_cast<std::size_t>(options.chunk), prompt.size() - at);
    reader.read(std::span(prompt).subspan(at, last));
  }
  double const middle = now();
  while (static_cast<std::int32_t>(result.tokens.size()) < options.new_tokens) {
    std::int32_t const token = greedy_token(reader.logits(last - 1));
    if (!options.ignore_end && llama_vocab_is_eog(llama_model_get_vocab(model.get()), token)) break;
    result.tokens.push_back(token);
    show(token);
    reader.read(std::span(&token, 1));
    last = 1;
  }
  result.prefill_seconds = middle - start;
  result.decode_seconds = now() - middle;
  return result;
}

void report(char const* who, std::size_t prompt, Generated const& run, double bytes) {
  std::printf("%-10s %8.1f MiB allocated for keys and values, prefill %7.1f tokens/s, decoding %6.1f tokens/s\n", who,
              bytes / 1048576, static_cast<double>(prompt) / run.prefill_seconds,
              static_cast<double>(run.tokens.size()) / run.decode_seconds);
}

template <class T>
void run_prompt(Model const& model, Options const& options) {
  std::string const text = options.prompt_file.empty() ? options.prompt : ha::read_text_file(options.prompt_file);
  auto prompt = model.tokenize(text, true);
  if (options.max_tokens > 0) prompt.resize(std::min(prompt.size(), static_cast<std::size_t>(options.max_tokens)));
  ha::require(!prompt.empty(), "prompt", "at least one token", "none", "--prompt");
  auto const total = static_cast<std::int64_t>(prompt.size()) + options.new_tokens;
  Kept const kept(model, options);
  auto runner = cached<T>(model, kept, options, total, false);
  std::string const start = prompt.size() > 100 ? "" : model.detokenize(prompt);
  std::fwrite(start.data(), 1, start.size(), stdout);
  auto const own = generate(runner, model, prompt, options, [&](std::int32_t token) {
    std::string const piece = model.piece(token);
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  });
  auto const full = static_cast<double>(model.shape().bytes(runner.cache().length(), sizeof(T)));
  std::printf("\n\n%lld tokens, %.1f of them kept per KV head\n", static_cast<long long>(runner.cache().length()),
              runner.cache().mean_kept());
  report("headaware", prompt.size(), own, static_cast<double>(runner.cache().bytes()));
  // What is held of it, without the free slots that the cache has allocated.
  std::printf("%-10s %8.1f MiB for all tokens (%.1f %% held)\n", "full", full / 1048576,
              100 * static_cast<double>(runner.cache().kept_bytes()) / full);
  if (!options.compare) return;
  EngineReader engine = engine_alone(model, options, total, false);
  auto const other = generate(engine, model, prompt, options, [](std::int32_t) {});
  // Which keeps what windows have passed, too.
  auto const bytes = engine_kv_bytes(model.shape(), engine_kv(options), runner.cache().length());
  report("llama.cpp", prompt.size(), other, static_cast<double>(bytes));
  auto const same = std::mismatch(own.tokens.begin(), own.tokens.end(), other.tokens.begin(), other.tokens.end());
  std::printf("the first %lld of %zu new tokens are the same\n",
              static_cast<long long>(same.first - own.tokens.begin()), own.tokens.size());
}

/// Losses of a text, with progress.
template <class Reader>
std::vector<double> measure(Reader& reader, std::vector<std::int32_t> const& tokens, Options const& options) {
  support::Progress progress("reading", "tokens", std::ssize(tokens));
  auto losses = losses_of(reader, tokens, static_cast<std::size_t>(options.chunk),
                          [&](std::int64_t read) { progress.show(static_cast<double>(read)); });
  progress.finish(static_cast<double>(tokens.size()));
  return losses;
}

template <class T>
void run_perplexity(Model const& model, Options const& options) {
  auto tokens = model.tokenize(ha::read_text_file(options.perplexity), true);
  if (options.max_tokens > 0) tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(options.max_tokens)));
  auto const total = std::ssize(tokens);
  ha::require(total > 1, "tokens to measure", "at least 2, as each but the first is predicted", total, "--perplexity");
  Kept const kept(model, options);
  auto runner = cached<T>(model, kept, options, total, true);
  auto const losses = measure(runner, tokens, options);
  std::printf("perplexity %.5f over %zu tokens, %.1f kept per KV head, %.1f MiB allocated\n", perplexity(losses),
              tokens.size(), runner.cache().mean_kept(), static_cast<double>(runner.cache().bytes()) / 1048576);
  if (!options.compare) return;
  EngineReader engine = engine_alone(model, options, total, true);
  std::printf("perplexity %.5f by llama.cpp alone\n", perplexity(measure(engine, tokens, options)));
}

void run(Options const& options) {
  if (!options.perplexity.empty()) {
    ha::require(options.max_tokens != 1, "tokens to measure", "at least 2, as each but the first is predicted",
                options.max_tokens, "--max_tokens");
  }
  Model const model(options.run.to_run(exact_copy));
  if (!options.policies.empty() && !support::is_of_a_plan(options.policies)) {
    std::fprintf(stderr,
                 "note: policies from rules of head types lose more than uniform windows of the same size; a plan that "
                 "analyze_attention --plan measures loses least\n");
  }
  bool const measure = !options.perplexity.empty();
  // Comparisons want single precision throughout; engines hold half.
  if (options.run.exact) {
    measure ? run_perplexity<float>(model, options) : run_prompt<float>(model, options);
  } else {
    measure ? run_perplexity<ha::float16>(model, options) : run_prompt<ha::float16>(model, options);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv, "Writes text with a GGUF model whose attention runs on a cache compressed head by head", run);
}
