#include "llama/benchmark_methods.hpp"

#include "tools/support/plan_file.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/error.hpp>
#include <headaware/io/duo_gates.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/uniform_plan.hpp>
#include <headaware/policy/scored_heads.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <numeric>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

bool has(MethodOptions const& options, char const* method) {
  return std::find(options.methods.begin(), options.methods.end(), method) != options.methods.end();
}

void require_file(std::filesystem::path const& path, std::string const& method, std::string const& option) {
  if (path.empty()) throw ha::ArgumentError({"--method " + method, option + " too", "none", option});
}

/// Mean tokens that the heads of layers keep that are not skipped.
double mean_held(ha::PolicyTable const& table, std::int64_t context, std::vector<std::int32_t> const& skipped) {
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    if (std::find(skipped.begin(), skipped.end(), layer) != skipped.end()) continue;
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head, ++heads) {
      tokens += ha::held_tokens(table.at(layer, head), context);
    }
  }
  return heads > 0 ? static_cast<double>(tokens) / static_cast<double>(heads) : 0;
}

/// The folder that DuoAttention publishes, or its table of gates alone.
ha::DuoGates gates_of(std::filesystem::path const& path) {
  if (std::filesystem::is_directory(path)) return ha::load_duo_gates(path);
  return ha::parse_duo_gates(ha::read_text_file(path), R"({"sink_size": 4, "recent_size": 252})", path.string(), "");
}

ha::PolicyPlan plan_of(std::filesystem::path const& path) {
  if (!support::is_plan(path)) {
    throw ha::FormatError({"--plan",
                           "a plan.json (classes, those of a plan too: --method head_aware "
                           "--classifications_path)",
                           "a file without a plan", path.string()});
  }
  return ha::load_plan(path);
}

std::string listed(std::vector<std::int32_t> const& layers) {
  std::string text;
  for (std::int32_t const layer : layers) text += (text.empty() ? "" : ",") + std::to_string(layer);
  return text.empty() ? "none" : text;
}

/// MethodRuns of the methods, each size once.
class MethodRuns {
 public:
  MethodRuns(MethodOptions const& options, ha::ModelShape model) : options_(&options), model_(std::move(model)) {}

  void add(std::string const& method, std::int64_t budget, ha::PolicyTable const& table,
           std::filesystem::path const& file = {}, ha::FormatTable formats = {}) {
    for (BenchmarkRun const& run : runs_) {
      if (run.method == method && run.budget_tokens == budget && run.plan == file.string()) return;
    }
    runs_.push_back({.method = method,
                     .plan = file.string(),
                     .budget_tokens = budget,
                     .table = table.skip_layers(options_->skip_layers),
                     .formats = std::move(formats)});
  }
  void add_engine(std::string const& method, KvType kv) {
    add(method, 0, ha::PolicyTable(model_, ha::Full{}));
    runs_.back().engine = kv;
  }
  /// StreamingLLM in formats, as many tokens as fit into the bytes of a budget of 16 bits.
  void add_uniform(ha::HeadFormats const& pair, std::int64_t budget) {
    ha::FormatTable const sixteen(model_);
    ha::FormatTable formats(model_, pair);
    for (std::int32_t const layer : options_->skip_layers) {
      for (std::int32_t head = 0; head < formats.heads().count(layer); ++head) {
        formats.set(layer, head, sixteen.at(layer, head));
      }
    }
    std::int64_t const context = options_->context;
    auto const in_sixteen = ha::uniform_table(model_, ha::Budget::tokens(static_cast<double>(budget)), context);
    std::int64_t const bytes = ha::held_bytes(in_sixteen.skip_layers(options_->skip_layers), sixteen, model_, context);
    add("streaming_llm " + pair.name(), budget,
        ha::uniform_table(model_, formats, bytes, context, 4, options_->skip_layers), {}, formats);
  }
  void add_uniform(std::string const& method, std::int64_t budget) {
    auto const size = ha::Budget::tokens(static_cast<double>(budget));
    add(method, budget, ha::uniform_table(model_, size, options_->context, 1, method == "streaming_llm" ? 4 : 0));
  }
  [[nodiscard]] std::vector<BenchmarkRun> take() { return std::move(runs_); }

 private:
  MethodOptions const* options_;
  ha::ModelShape model_;
  std::vector<BenchmarkRun> runs_;
};

}  // namespace

std::vector<BenchmarkRun> benchmark_runs(MethodOptions const& options, ha::ModelShape const& model) {
  std::int64_t const context = options.context;
  MethodRuns runs(options, model);

  ha::require(options.plans.empty() || has(options, "planned"), "--plan",
              "--method planned too, or no --method, which runs it beside full and streaming_llm",
              "other methods alone", "--method");
  std::vector<std::pair<std::int64_t, ha::PolicyTable>> plans;
  std::vector<ha::FormatTable> plan_formats;
  if (has(options, "planned")) {
    require_file(options.plans.empty() ? std::filesystem::path() : options.plans.front(), "planned", "--plan");
    for (auto const& path : options.plans) {
      ha::PolicyPlan const plan = plan_of(path);
      ha::require(plan.context == context, "context of the plan", {context, ", as --context"}, plan.context,
                  path.string());
      auto skipped = options.skip_layers;
      std::sort(skipped.begin(), skipped.end());
      ha::require(skipped == plan.options.skip_layers, "--skip_layers",
                  {"those of the plan, for all methods: ", listed(plan.options.skip_layers)}, listed(skipped),
                  path.string());
      plans.emplace_back(static_cast<std::int64_t>(plan.mean_budget()), ha::load_policy_table(path, model));
      plan_formats.push_back(plan.formats);
    }
  }
  std::optional<ha::PolicyTable> classes;
  std::int64_t classes_tokens = 0;
  if (has(options, "head_aware")) {
    require_file(options.classifications, "head_aware", "--classifications_path");
    classes = ha::load_policy_table(options.classifications, model);
    classes_tokens = std::llround(mean_held(*classes, context, options.skip_layers));
  }
  std::optional<ha::DuoGates> gates;
  if (has(options, "duo")) {
    require_file(options.duo_gates, "duo", "--duo_gates");
    ha::require(options.skip_layers.empty(), "--skip_layers", "none with duo, whose gates are of all layers",
                listed(options.skip_layers), "--method duo");
    gates = gates_of(options.duo_gates);
  }

  ha::require(!options.duo_share || gates, "--duo_share", "--method duo too", "other methods alone", "--duo_share");

  std::vector<std::int64_t> budgets = options.budgets;
  if (budgets.empty()) {
    for (auto const& [tokens, table] : plans) budgets.push_back(tokens);
  }
  if (budgets.empty()) budgets.push_back(classes ? classes_tokens : 256);

  for (std::string const& method : options.methods) {
    if (method == "full") {
      runs.add(method, 0, ha::table_from_model_config(model, ha::Full{}));
    } else if (method == "planned") {
      for (std::size_t i = 0; i < plans.size(); ++i)
        runs.add(std::string(plan_formats[i].num_layers() > 0 ? "planned_by_bytes" : "planned") +
                     (ha::has_scored_heads(plans[i].second) ? "_scored" : ""),
                 plans[i].first, plans[i].second, options.plans[i], plan_formats[i]);
    } else if (method == "head_aware") {
      runs.add(method, 0, *classes, options.classifications);
      // StreamingLLM's 4 sinks and something.
      if (classes_tokens > 4) runs.add_uniform("streaming_llm", classes_tokens);
    } else if (method == "duo" && options.duo_share) {
      auto const table = duo_share_table(*gates, model, *options.duo_share, options.duo_sink, options.duo_window);
      runs.add(method, std::llround(mean_held(table, context, {})), table, options.duo_gates);
    } else if (method == "duo") {
      for (std::int64_t const budget : budgets) {
        runs.add(method, budget, duo_table(*gates, model, budget, context, options.duo_sink, options.duo_window),
                 options.duo_gates);
      }
    } else if (method == "engine_q8_0") {
      runs.add_engine(method, KvType::q8_0);
    } else if (method == "engine_q4_0") {
      runs.add_engine(method, KvType::q4_0);
    } else {
      for (std::int64_t const budget : budgets) runs.add_uniform(method, budget);
      for (ha::HeadFormats const& pair : options.formats) {
        if (method != "streaming_llm") continue;
        for (std::int64_t const budget : budgets) runs.add_uniform(pair, budget);
      }
    }
  }
  return runs.take();
}

namespace {

/// @throws ArgumentError unless the gates are of a model of this shape
void require_gates_of(ha::ModelShape const& model, ha::DuoGates const& gates, char const* where) {
  ha::require(model.uniform(), "model of the gates", "one whose layers are all alike", "another", where);
  ha::require(gates.num_layers == model.num_layers(), "layers of the gates", model.num_layers(), gates.num_layers,
              where);
  std::int32_t const heads = model.layer(0).num_kv_heads;
  ha::require(gates.num_kv_heads == heads, "KV heads of the gates", heads, gates.num_kv_heads, where);
}

}  // namespace

ha::PolicyTable duo_share_table(ha::DuoGates gates, ha::ModelShape const& model, double share,
                                std::optional<std::int32_t> sink, std::optional<std::int32_t> window) {
  require_gates_of(model, gates, "--method duo");
  gates.sink_size = sink.value_or(gates.sink_size);
  gates.recent_size = window.value_or(gates.recent_size);
  return ha::table_from_duo_gates(gates, ha::FullHeadShare{share});
}

ha::PolicyTable duo_table(ha::DuoGates const& gates, ha::ModelShape const& model, std::int64_t budget,
                          std::int64_t context, std::optional<std::int32_t> sink, std::optional<std::int32_t> window) {
  constexpr auto where = "--method duo";
  require_gates_of(model, gates, where);
  auto const heads = std::int64_t{gates.num_layers} * gates.num_kv_heads;
  ha::require(std::ssize(gates.gates) == heads, "gates", heads, gates.gates.size(), where);
  bool const finite = std::all_of(gates.gates.begin(), gates.gates.end(), [](double g) { return std::isfinite(g); });
  ha::require(finite, "gates", "finite numbers", "others", where);
  if (budget >= context) return ha::table_from_model_config(model, ha::Full{});
  std::int64_t const sinks = sink.value_or(4);
  std::int64_t const recent = window ? *window : std::min<std::int64_t>(252, budget / 2 - sinks);
  std::int64_t const streaming = sinks + recent;
  ha::require(sinks >= 0 && recent > 0 && streaming <= budget, "--duo_sink and --duo_window",
              {"at least no sink and a window of one, together at most the budget, ", budget}, {sinks, " and ", recent},
              where);

  std::int64_t const spare = (budget - streaming) * heads;
  std::int64_t const all = spare / (context - streaming);
  // Less than one head that keeps all.
  std::int64_t const left = spare - all * (context - streaming);
  std::vector<std::int64_t> by_gate(static_cast<std::size_t>(heads));
  std::iota(by_gate.begin(), by_gate.end(), 0);
  std::stable_sort(by_gate.begin(), by_gate.end(), [&](std::int64_t a, std::int64_t b) {
    return gates.gates[static_cast<std::size_t>(a)] > gates.gates[static_cast<std::size_t>(b)];
  });
  ha::PolicyTable table = ha::table_from_model_config(model, ha::Full{});
  for (std::int64_t place = all; place < heads; ++place) {
    std::int64_t const head = by_gate[static_cast<std::size_t>(place)];
    std::int64_t const wider = left / (heads - all) + (place - all < left % (heads - all) ? 1 : 0);
    table.set(
        static_cast<std::int32_t>(head / gates.num_kv_heads), static_cast<std::int32_t>(head % gates.num_kv_heads),
        ha::SinkWindow{.sink = static_cast<std::int32_t>(sinks), .window = static_cast<std::int32_t>(recent + wider)});
  }
  return table;
}

std::string rules_advice(std::vector<BenchmarkRun> const& runs) {
  std::string text;
  for (BenchmarkRun const& run : runs) {
    if (run.method != "head_aware") continue;
    char line[192];
    text += "head_aware: ";
    bool lost = true;
    for (BenchmarkRun const& other : runs) {
      bool const same = other.method == "streaming_llm" && std::abs(other.mean_kept_tokens - run.mean_kept_tokens) <= 1;
      if (!same || !std::isfinite(run.perplexity_second_half)) continue;
      std::snprintf(
          line, sizeof(line),
          "perplexity of the second halves %.2f with %.0f tokens per KV head, %.2f with uniform windows of that "
          "size. ",
          run.perplexity_second_half, run.mean_kept_tokens, other.perplexity_second_half);
      text += line;
      lost = run.perplexity_second_half >= other.perplexity_second_half;
      break;
    }
    text += lost ? "Classes by rules lost to uniform windows where they were measured; 'analyze_attention --plan' "
                   "measures the model and plans what wins (then --method planned --plan plan.json)\n"
                 : "\n";
  }
  return text;
}

std::string size_advice(std::vector<BenchmarkRun> const& runs) {
  std::string text;
  auto const uniform = [](BenchmarkRun const& run) {
    return run.method == "streaming_llm" || run.method == "window_only";
  };
  if (std::none_of(runs.begin(), runs.end(), uniform)) return text;
  for (BenchmarkRun const& run : runs) {
    if (!run.method.starts_with("planned")) continue;
    bool const beside = std::any_of(runs.begin(), runs.end(), [&](BenchmarkRun const& other) {
      double const token = other.kv_share / std::max(1.0, other.mean_kept_tokens);
      return uniform(other) && std::abs(other.kv_share - run.kv_share) <= token + 0.01 * run.kv_share;
    });
    if (beside) continue;
    char line[160];
    std::snprintf(
        line, sizeof(line),
        "planned: %.1f tokens per KV head, and no uniform windows of that size beside it: compare with --budget "
        "%lld, or leave --budget out\n",
        run.mean_kept_tokens, static_cast<long long>(run.budget_tokens));
    text += line;
  }
  return text;
}

}  // namespace llama_adapter
