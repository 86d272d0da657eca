// Methods side by side: their tables, and what is measured of them through caches that really evict.

#include "llama/benchmark_methods.hpp"
#include "llama/models.hpp"
#include "support/errors.hpp"
#include "support/planned_statistics.hpp"
#include "tools/llama/saved_losses.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/io/json.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

constexpr ha::ModelConfig small{
    .num_hidden_layers = 2, .num_attention_heads = 6, .num_key_value_heads = 3, .head_dim = 8};

std::int64_t held(ha::PolicyTable const& table, std::int64_t context) {
  std::int64_t tokens = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(); ++head) {
      tokens += ha::held_tokens(table.at(layer, head), context);
    }
  }
  return tokens;
}

ha::DuoGates gates_of(ha::ModelConfig const& model) {
  ha::DuoGates gates{.num_layers = model.num_hidden_layers, .num_kv_heads = model.num_key_value_heads, .gates = {}};
  std::int32_t const heads = gates.num_layers * gates.num_kv_heads;
  for (std::int32_t head = 0; head < heads; ++head)
    gates.gates.push_back(head * 5 % heads / static_cast<double>(heads));
  return gates;
}

void check_close(double a, double b) {
  INFO(a << " and " << b);
  CHECK(std::abs(a - b) <= 1e-3 * std::abs(b));
}

}  // namespace

TEST_CASE("DuoAttention's heads at a budget: the largest gates keep all, and the mean is the budget") {
  ha::DuoGates gates{.num_layers = 2, .num_kv_heads = 3, .gates = {0.1, 0.9, 0.3, 1.0, -0.1, 0.9}};
  for (std::int64_t const budget : {10, 16, 100, 257, 300, 512, 700, 1023}) {
    INFO(budget);
    ha::PolicyTable const table = duo_table(gates, small, budget, 1024);
    CHECK(held(table, 1024) == budget * 6);
  }
  ha::PolicyTable const table = duo_table(gates, small, 512, 1024);
  // 6 · 256 tokens to spare, 768 for a head that keeps all.
  CHECK(table.at(1, 0).is<ha::Full>());
  CHECK(table.at(0, 1).is<ha::Full>());  // of two equal gates the first
  CHECK(table.at(1, 2).get<ha::SinkWindow>() == ha::SinkWindow{.sink = 4, .window = 252});
  CHECK(table.at(1, 1).get<ha::SinkWindow>() == ha::SinkWindow{.sink = 4, .window = 252});
  // Half of a small budget is the streaming heads'.
  CHECK(duo_table(gates, small, 100, 1024).at(1, 1).get<ha::SinkWindow>().window >= 46);
  CHECK(duo_table(gates, small, 1024, 1024) == ha::PolicyTable(2, 3, ha::Full{}));
  ha::PolicyTable const sized = duo_table(gates, small, 200, 1024, 16, 64);
  CHECK(sized.at(1, 1).get<ha::SinkWindow>().sink == 16);
  CHECK(held(sized, 1024) == 1200);

  check_error<ha::ArgumentError>([&] { (void)duo_table(gates, small, 256, 1024, 128, 256); },
                                 {"--duo_sink and --duo_window", "at most the budget, 256", "128 and 256", "duo"});
  check_error<ha::ArgumentError>([&] { (void)duo_table(gates, small, 9, 1024); },
                                 {"--duo_sink and --duo_window", "9", "4 and 0", "duo"});
  gates.num_layers = 3;
  check_error<ha::ArgumentError>([&] { (void)duo_table(gates, small, 256, 1024); },
                                 {"layers of the gates", "2", "3", "duo"});
}

TEST_CASE("standard errors over passages, and of the gap that a method closes") {
  std::vector<double> const full{2, 3, 4};
  std::vector<double> const uniform{3, 5, 5};
  std::vector<double> const method{2.5, 3.5, 4.5};
  CHECK(std::abs(standard_error_of(full) - 1 / std::sqrt(3.0)) < 1e-12);
  CHECK(std::isnan(standard_error_of(std::span(full).first(1))));
  // 2.5 of 4 nats; without one passage each 2 of 3, 1 of 2 and 2 of 3.
  GapClosed const closed = gap_closed(full, uniform, method);
  CHECK(std::abs(closed.share - 0.625) < 1e-12);
  CHECK(std::abs(closed.standard_error - std::sqrt(2.0 / 3 * 6.0 / 324)) < 1e-12);
  CHECK(gap_closed(full, uniform, full).share == 1);
  CHECK(gap_closed(full, uniform, uniform).share == 0);
  CHECK(std::isnan(gap_closed(full, full, method).share));
  CHECK(std::isnan(gap_closed({}, {}, {}).share));
  check_error<ha::ArgumentError>([&] { (void)gap_closed(full, std::span(uniform).first(2), method); },
                                 {"passages of uniform windows", "3", "2", "gap_closed"});

  std::vector<BenchmarkRun> runs(4);
  char const* const methods[] = {"full", "streaming_llm", "planned", "planned"};
  for (std::size_t i = 0; i < runs.size(); ++i) runs[i].method = methods[i];
  runs[0].passage_nll = full;
  runs[1].passage_nll = uniform;
  runs[2].passage_nll = runs[3].passage_nll = method;
  runs[1].mean_kept_tokens = 64;
  runs[1].kv_bytes_end = runs[2].kv_bytes_end = 6400;  // a plan by bytes may keep more tokens in them
  runs[2].mean_kept_tokens = 150;
  runs[3].kv_bytes_end = 12800;
  measure_gaps(runs);
  CHECK(runs[2].closed.share == closed.share);
  CHECK(std::isnan(runs[3].closed.share));  // no uniform windows of its size
  CHECK(std::isnan(runs[1].closed.share));
}

TEST_CASE("a share of the heads with the largest gates keeps everything, the others what belongs to the gates") {
  ha::DuoGates const gates{
      .num_layers = 2, .num_kv_heads = 3, .gates = {0.1, 0.9, 0.3, 1.0, -0.1, 0.9}, .sink_size = 16, .recent_size = 48};
  ha::PolicyTable const half = duo_share_table(gates, small, 0.5);
  CHECK(half == ha::table_from_duo_gates(gates, ha::FullHeadShare{0.5}));
  CHECK(duo_share_table(gates, small, 0.5, 4, 8).at(0, 0).get<ha::SinkWindow>() ==
        ha::SinkWindow{.sink = 4, .window = 8});

  TemporaryFolder const folder;
  ha::write_file(folder / "full_attention_heads.tsv", "0.1\t0.9\t0.3\n1.0\t-0.1\t0.9\n");
  ha::write_file(folder / "config.json", R"({"sink_size": 16, "recent_size": 48})");
  MethodOptions options{
      .methods = {"duo", "streaming_llm"}, .duo_gates = folder.path(), .duo_share = 0.5, .context = 256};
  options.budgets = {64};
  auto const runs = benchmark_runs(options, small);
  REQUIRE(runs.size() == 2);
  CHECK((runs[0].method == "duo" && runs[0].budget_tokens == 160));  // (256 + 64) / 2
  CHECK(runs[0].table == half);
  options.duo_share = 1.5;
  check_error<ha::ArgumentError>([&] { (void)benchmark_runs(options, small); }, {"share", "in [0, 1]", "1.5", ""});
  options.methods = {"streaming_llm"};
  check_error<ha::ArgumentError>([&] { (void)benchmark_runs(options, small); },
                                 {"--duo_share", "--method duo too", "", ""});
}

TEST_CASE("what an earlier run left is read, or is one error that says what to do") {
  std::vector<double> const losses{0.5, 1.25};
  auto const bytes = ha::format_npy(ha::NpyArray::of({2}, std::span<double const>(losses)));
  CHECK(parse_losses(bytes, "a.npy", 2) == losses);
  auto const refused = [](auto const& read, ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>(read, parts);
  };
  refused([&] { (void)parse_losses(bytes, "a.npy", 3); }, {"values of a text", "3; remove the file", "2", "a.npy"});
  std::vector<double> const broken{0.5, std::numeric_limits<double>::quiet_NaN()};
  auto const nan = ha::format_npy(ha::NpyArray::of({2}, std::span<double const>(broken)));
  refused([&] { (void)parse_losses(nan, "a.npy", 2); }, {"values of a text", "2; remove", "infinity or NaN", "a.npy"});

  std::string const text = R"({"read_seconds": 1, "first_token_seconds": 1.5, "decode_seconds": 0, "mean_kept": 64.5,
                               "kv_bytes_peak": 4096, "losses": [0.5, 1.25]})";
  CHECK(parse_evicted_text(text, "a.json", 2) == EvictedText{losses, 1, 1.5, 0, 64.5, 4096});
  auto const changed = [&](std::string const& from, std::string const& to) {
    return [&text, from, to] { (void)parse_evicted_text(replaced(text, from, to), "a.json", 2); };
  };
  refused(changed("[0.5, ", "["), {"measurements of an earlier run", "remove the file", "2", "a.json"});
  refused(changed("4096", "1e99"), {"measurements of an earlier run", "remove the file", "/kv_bytes_peak", "a.json"});
  refused(changed("\"mean_kept\": 64.5", "\"mean_kept\": -1"), {"measurements", "", "/mean_kept", "a.json"});
  refused(changed("\"decode_seconds\": 0,", ""), {"measurements", "", "missing field", "a.json"});
}

TEST_CASE("methods are compared at the sizes of the plans or the classes where no budget is given") {
  TemporaryFolder const folder;
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {1, 8, 32, 128}};
  auto const errors = errors_of(random_statistics(2, 6, 3, grid, 1));
  MethodOptions options{.methods = {"full", "streaming_llm", "planned"}, .context = 256};
  for (int const tokens : {64, 100}) {
    options.plans.push_back(folder / (std::to_string(tokens) + ".json"));
    auto const plan = ha::plan_policies(errors, ha::Budget::tokens(tokens), 256);
    ha::save_plan(options.plans.back(), plan);
    ha::save_plan_classifications(folder / "classes.json", plan);
  }
  auto runs = benchmark_runs(options, small);
  REQUIRE(runs.size() == 5);
  CHECK(runs[0].method == "full");
  CHECK((runs[1].method == "streaming_llm" && runs[1].budget_tokens == 64));
  CHECK((runs[2].method == "streaming_llm" && runs[2].budget_tokens == 100));
  CHECK((runs[3].method == "planned" && runs[3].budget_tokens == 64));
  CHECK(runs[4].plan == options.plans[1].string());
  CHECK(held(runs[2].table, 256) == 600);

  options.budgets = {32, 32};
  options.skip_layers = {1};
  options.methods = {"window_only", "streaming_llm"};
  check_error<ha::ArgumentError>([&] { (void)benchmark_runs(options, small); },
                                 {"--plan", "--method planned too", "other methods alone", "--method"});
  options.plans.clear();
  runs = benchmark_runs(options, small);
  REQUIRE(runs.size() == 2);
  CHECK(held(runs[0].table, 256) == 3 * 32 + 3 * 256);
  CHECK(runs[0].table.at(0, 0).is<ha::SinkWindow>());
  CHECK(runs[0].table.at(0, 0).get<ha::SinkWindow>().sink == 0);

  // Rules have uniform windows of their size beside them.
  options = {.methods = {"head_aware", "streaming_llm"}, .classifications = folder / "classes.json", .context = 256};
  runs = benchmark_runs(options, small);
  REQUIRE(runs.size() == 2);
  CHECK(runs[1].method == "streaming_llm");
  CHECK(std::abs(held(runs[1].table, 256) - held(runs[0].table, 256)) <= 3);
  runs[0].mean_kept_tokens = runs[1].mean_kept_tokens = 100;
  runs[0].kv_share = runs[1].kv_share = 0.4;
  runs[0].perplexity = runs[1].perplexity = 30;
  runs[0].perplexity_second_half = 25;
  runs[1].perplexity_second_half = 20;
  CHECK(rules_advice(runs).find("25.00 with 100 tokens per KV head") != std::string::npos);
  CHECK(rules_advice(runs).find("20.00 with uniform windows of that size") != std::string::npos);
  CHECK(rules_advice(runs).find("analyze_attention --plan") != std::string::npos);
  runs[0].perplexity_second_half = 15;  // classes that were made of a plan, say
  CHECK(rules_advice(runs).find("lost") == std::string::npos);

  // A plan that stands beside windows of another size only.
  CHECK(size_advice(runs).empty());
  runs[0].method = "planned";
  CHECK(size_advice(runs).empty());
  runs[0].mean_kept_tokens = 64;
  runs[0].kv_share = 0.25;
  runs[0].budget_tokens = 64;
  CHECK(size_advice(runs).find("64.0 tokens per KV head") != std::string::npos);
  CHECK(size_advice(runs).find("--budget 64") != std::string::npos);
  runs.erase(runs.begin());
  CHECK(rules_advice(runs).empty());

  auto const missing = [&](char const* method, char const* option) {
    check_error<ha::ArgumentError>([&] { (void)benchmark_runs({.methods = {method}}, small); },
                                   {method, std::string(option) + " too", "none", option});
  };
  missing("planned", "--plan");
  missing("head_aware", "--classifications_path");
  missing("duo", "--duo_gates");
  options = {.methods = {"planned"}, .plans = {folder / "64.json"}, .context = 512};
  check_error<ha::ArgumentError>([&] { (void)benchmark_runs(options, small); },
                                 {"context of the plan", "512, as --context", "256", "64.json"});
  ha::write_file(folder / "gates.tsv", "0.1\t0.9\t0.3\n1.0\tnone\t0.9\n");
  options = {.methods = {"duo"}, .duo_gates = folder / "gates.tsv"};
  check_error<ha::FormatError>([&] { (void)benchmark_runs(options, small); },
                               {"gate", "number", "none", "gates.tsv, row 2, column 2"});
  ha::write_file(folder / "gates.tsv", "0.1\t0.9\t0.3\n1.0\t0.2\t0.9\n");
  ha::DuoGates const gates{.num_layers = 2, .num_kv_heads = 3, .gates = {0.1, 0.9, 0.3, 1.0, 0.2, 0.9}};
  CHECK(benchmark_runs(options, small).front().table == duo_table(gates, small, 256, 2048));
}

TEST_CASE("evicted caches and masks measure the same, and what was measured is kept") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  TemporaryFolder const folder;
  Model const model(exact_model_path(smollm2));
  ha::ModelConfig const config{30, 9, 3, 64};
  auto const tokens = text_tokens(model, 512);
  BenchmarkText const text{.place = {.context = 256, .passages = {0}, .copies = {300}}, .decode_tokens = 6};
  std::vector<BenchmarkRun> evicted(3);
  evicted[0].method = "full";
  evicted[0].table = ha::table_from_model_config(config, ha::Full{});
  evicted[1].method = "streaming_llm";
  evicted[1].table = ha::uniform_table(30, 3, ha::Budget::tokens(64), 256);
  evicted[2].method = "duo";
  evicted[2].table = duo_table(gates_of(config), config, 64, 256);
  auto masked = evicted;
  auto again = evicted;
  auto halved = evicted;

  EvictedOptions const options{.chunk = 100, .single_precision = true};
  EvictedStore store(model, options, folder / "evicted");
  run_benchmark(store, tokens, text, evicted);
  PolicyRun run(model, {.tokens = 256});
  LossStore losses(run, folder / "losses");
  run_benchmark(losses, tokens, text, masked);
  for (std::size_t i = 0; i < evicted.size(); ++i) {
    auto const& a = evicted[i];
    auto const& b = masked[i];
    std::printf("SmolLM2-135M, %s at %.0f of 256: perplexity %.4f evicted, %.4f masked\n", a.method.c_str(),
                a.mean_kept_tokens, a.perplexity, b.perplexity);
    check_close(a.perplexity, b.perplexity);
    check_close(a.perplexity_second_half, b.perplexity_second_half);
    check_close(a.copy_nll, b.copy_nll);
    CHECK(a.tokens == 255);
    CHECK(b.tokens == 255);
    CHECK(a.mean_kept_tokens == (i == 0 ? 256 : 64));
    CHECK(b.mean_kept_tokens == a.mean_kept_tokens);
    std::int64_t const bytes = 30 * 3 * 64 * 2 * 4;
    CHECK(a.kv_bytes_end == bytes / 2 * (i == 0 ? 256 : 64));  // as if of 16 bits
    CHECK(a.kv_share == (i == 0 ? 1 : 0.25));
    CHECK(b.kv_bytes_end == a.kv_bytes_end);
    REQUIRE(a.kv_bytes_peak);
    // Room for what is decoded, where heads keep everything.
    if (i == 0) CHECK(*a.kv_bytes_peak == bytes * 262);
    // Else room for a few tokens that are appended at a time.
    if (i == 1) CHECK((*a.kv_bytes_peak >= a.kv_bytes_end && *a.kv_bytes_peak < bytes * (64 + 64)));
    CHECK(a.prefill_tokens_per_s > 0);
    CHECK(a.decode_tokens_per_s > 0);
    CHECK(a.time_to_first_token_s > 0);
    CHECK((a.compaction_s > 0 && a.compaction_s < 60));
    CHECK_FALSE(b.kv_bytes_peak);
    CHECK(std::isnan(b.compaction_s));
  }
  CHECK(evicted[1].perplexity > evicted[0].perplexity);

  // Nothing is read again: the times are those of the first run.
  std::vector<std::filesystem::path> files;
  for (auto const& entry : std::filesystem::directory_iterator(folder / "evicted")) files.push_back(entry.path());
  REQUIRE(files.size() == 6);
  EvictedStore resumed(model, options, folder / "evicted");
  run_benchmark(resumed, tokens, text, again);
  for (std::size_t i = 0; i < again.size(); ++i) {
    CHECK(again[i].perplexity == evicted[i].perplexity);
    CHECK(again[i].prefill_tokens_per_s == evicted[i].prefill_tokens_per_s);
    CHECK(again[i].decode_tokens_per_s == evicted[i].decode_tokens_per_s);
  }
  ha::write_file(files.front(), "{\"losses\": [1.0]}");
  check_error<ha::FormatError>([&] { run_benchmark(resumed, tokens, text, again); },
                               {"earlier run", "remove the file", "losses", files.front().string()});
  std::filesystem::remove(files.front());

  // A cache in half precision is another measurement.
  halved.erase(halved.begin() + 1, halved.end());
  EvictedStore half(model, {}, folder / "evicted");
  run_benchmark(half, tokens, {.place = {.context = 256, .passages = {0}}, .decode_tokens = 0}, halved);
  CHECK(halved[0].kv_bytes_end == evicted[0].kv_bytes_end);
  CHECK(std::isnan(halved[0].decode_tokens_per_s));
  CHECK(std::isnan(halved[0].copy_nll));
  CHECK(std::abs(halved[0].perplexity / evicted[0].perplexity - 1) < 0.01);

  write_benchmark(folder / "a", {.model = "m", .text = "t", .exact = true, .element_bytes = 4}, text, evicted);
  write_benchmark(folder / "b", {.model = "m", .text = "t", .masked = true}, text, masked);
  auto const written = nlohmann::json::parse(ha::read_text_file(folder / "a" / "benchmark.json"));
  auto const of_masks = nlohmann::json::parse(ha::read_text_file(folder / "b" / "benchmark.json"));
  CHECK(written["element_bytes"] == 4);
  for (char const* const field :
       {"method", "budget_tokens", "mean_kept_tokens", "tokens", "perplexity", "perplexity_second_half", "copy_nll",
        "passage_nll", "copy_nlls", "kv_bytes_peak", "kv_bytes_end", "prefill_tokens_per_s", "decode_tokens_per_s",
        "time_to_first_token_s", "compaction_s"}) {
    INFO(field);
    CHECK_FALSE(written["runs"][1].at(field).is_null());
    bool const timed = std::string(field).ends_with("_s") || std::string(field) == "kv_bytes_peak";
    CHECK(of_masks["runs"][1].at(field).is_null() == timed);
  }
  std::string const csv = ha::read_text_file(folder / "b" / "benchmark.csv");
  CHECK(of_masks["runs"][0]["passage_nll"].size() == 1);
  CHECK(csv.find("passage_nll") == std::string::npos);
  CHECK(csv.starts_with("method,budget_tokens,mean_kept_tokens,kv_share,tokens,perplexity,"));
  for (char const* const file : {"perplexity.gp", "perplexity.tsv", "copying.gp", "copying.tsv"}) {
    CHECK(std::filesystem::exists(folder / "a" / "pictures" / file));
  }
}
