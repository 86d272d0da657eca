// Runs under policies, and plans made of and tried on a real model.

#include "llama/models.hpp"
#include "llama/policy_benchmark.hpp"
#include "support/errors.hpp"
#include "tools/llama/planning.hpp"
#include "tools/llama/replanning.hpp"
#include "tools/support/interrupt.hpp"

#include <headaware/io/plan.hpp>
#include <headaware/io/sensitivities.hpp>
#include <headaware/plan/compare.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <span>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

/// A plan of SmolLM2 on the shared text, one blend tried beside it. @param text  pieces of it; one of each other kind
PlanningOptions planning_options(TemporaryFolder const& folder, std::int32_t text) {
  PlanningOptions options;
  options.formats.measured = false;  // 16 bits, by tokens
  options.model = exact_model_path(smollm2);
  options.text = shared_data() / "text" / "wikitext-2-valid.txt";
  options.pieces = {.text = text, .probe = 1, .held_out = 1, .held_out_probes = 1};
  options.calibration.output_dir = folder.path();
  options.guard.blends = {0.5};
  return options;
}

/// The same of three layers and 256 tokens, so that there are few and short runs.
PlanningOptions small_planning_options(TemporaryFolder const& folder) {
  PlanningOptions options = planning_options(folder, 1);
  options.guard.context = 256;
  for (std::int32_t layer = 0; layer < 27; ++layer) options.guard.plan.skip_layers.push_back(layer);
  return options;
}

}  // namespace

TEST_CASE("under policies that keep everything a model predicts as it does by itself") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(exact_model_path(smollm2));
  auto const tokens = text_tokens(model, 300);
  Context context(model, {.tokens = 300});
  context.evaluate(tokens);
  auto const expected = context.losses();

  PolicyRun run(model, {.tokens = 300});
  ha::PolicyTable table(30, 3, ha::Full{});
  std::vector<std::int32_t> layers;
  CHECK(run.losses(tokens, table, [&](std::int32_t layer) { layers.push_back(layer); }) == expected);
  CHECK(layers.size() == 30);

  // Windows that hold the whole text are policies, so the library computes the attention.
  auto const same = run.losses(tokens, ha::PolicyTable(30, 3, ha::SinkWindow{.sink = 4, .window = 296}));
  REQUIRE(same.size() == expected.size());
  double largest = 0;
  for (std::size_t i = 0; i < same.size(); ++i) largest = std::max(largest, std::abs(same[i] - expected[i]));
  CHECK(largest < 1e-3);

  // One head cut: nothing changes before its window is full.
  table.set(3, 1, ha::SinkWindow{.sink = 4, .window = 60});
  auto const cut = run.losses(tokens, table);
  for (std::size_t i = 0; i < 64; ++i) CHECK(std::abs(cut[i] - expected[i]) < 1e-3);
  CHECK(cut != expected);

  check_error<ha::ArgumentError>([&] { (void)run.losses(tokens, ha::PolicyTable(29, 3, ha::Full{})); },
                                 {"table's layers", "30", "29", "PolicyRun"});
  check_error<ha::ArgumentError>([&] { (void)run.losses(tokens, ha::PolicyTable(30, 9, ha::Full{})); },
                                 {"table's KV heads", "3", "9", "PolicyRun"});
}

TEST_CASE("a model's own windows hold beside the policies") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  Model const model(exact_model_path(gemma3));
  auto const tokens = text_tokens(model, 600);
  PolicyRun run(model, {.tokens = 600});
  auto const expected = run.losses(tokens, ha::PolicyTable(18, 1, ha::Full{}));
  auto const same = run.losses(tokens, ha::PolicyTable(18, 1, ha::SinkWindow{.sink = 4, .window = 596}));
  CHECK(std::abs(perplexity(same) / perplexity(expected) - 1) < 1e-3);
}

TEST_CASE("calibration pieces have one length, lie apart, and refuse texts that are too short") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  std::vector<std::int32_t> tokens(3000);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i);
  auto const text = calibration_text(model, tokens, 256, {}, "here");
  CHECK(text.first_query == 128);
  CHECK(text.text.size() == 4);
  CHECK(text.probe.size() == 2);
  CHECK(text.held_out.size() == 2);
  CHECK(text.held_out_probes.size() == 1);
  std::vector<bool> used(tokens.size());
  for (auto const* const kind : {&text.text, &text.probe, &text.held_out, &text.held_out_probes}) {
    bool const twice = kind == &text.probe || kind == &text.held_out_probes;
    for (auto const& piece : *kind) {
      REQUIRE(piece.size() == 256);
      for (std::size_t i = 0; i < (twice ? 128U : 256U); ++i) {
        CHECK_FALSE(used[static_cast<std::size_t>(piece[i])]);
        used[static_cast<std::size_t>(piece[i])] = true;
        if (twice) CHECK(piece[i + 128] == piece[i]);
      }
    }
  }
  tokens.resize(2000);
  check_error<ha::ArgumentError>([&] { (void)calibration_text(model, tokens, 256, {}, "here"); },
                                 {"tokens of the text", "at least 2304", "2000", "here"});
  check_error<ha::ArgumentError>([&] { (void)calibration_text(model, tokens, 255, {}, "here"); },
                                 {"context", "even", "255", ""});
}

TEST_CASE("plans by bytes are tried beside uniform windows and plans of pairs of formats") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  HEADAWARE_REQUIRE_SHARED_DATA();
  TemporaryFolder const folder;
  PlanningOptions options = small_planning_options(folder);
  options.calibration.sensitivity = SensitivityOf::none;
  options.formats = {};
  auto const budget = ha::Budget::share(0.25);
  Guarded const guarded = plan_model(options, budget);
  // Uniform in 16 bits and in two pairs, plans of both pairs, the mixed plan, a blend.
  REQUIRE(guarded.tables.size() == 7);
  CHECK(guarded.tables[0].name == "uniform");
  CHECK(guarded.tables[1].name.starts_with("uniform packed"));
  CHECK(guarded.tables[3].name == "plan" + guarded.tables[1].name.substr(7));
  CHECK(guarded.first_plan == 5);
  CHECK(guarded.tables[5].name == "plan");
  CHECK(guarded.tables[6].name == "blend 0.5");
  for (auto const& table : guarded.tables) {
    INFO(table.name);
    CHECK(table.plan.by_bytes());
    CHECK(table.plan.left() >= 0);
    CHECK(table.plan.share_held() <= 0.25);
    CHECK(table.plan.share_held() > 0.2);
    CHECK(table.text_loss > 0);
  }
  CHECK(guarded.tables[5].plan.predicted_error <= guarded.tables[3].plan.predicted_error);
  CHECK(guarded.tables[3].plan.predicted_error < guarded.tables[0].plan.predicted_error);
  CHECK(guarded.chosen().text_loss <= guarded.tables[0].text_loss);
  CHECK(ha::load_plan(folder / "plan.json") == guarded.chosen().plan);

  options.formats = {.measured = false, .pairs = {ha::format_pair("int8", "packed4")}};
  Guarded const pair = plan_model(options, budget);
  CHECK(pair.tables.size() == 5);
  CHECK(pair.tables[1].name == "uniform int8/packed4");
  options.formats.pairs = {ha::format_pair("packed3", "int8")};  // packed3 is measured because it is asked for
  Guarded const three = plan_model(options, budget);
  CHECK(three.tables[1].name == "uniform packed3/int8");
  CHECK(three.tables[2].plan.predicted_error > 0);
}

TEST_CASE("a plan made of one text predicts another better than uniform windows of its size") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  HEADAWARE_REQUIRE_SHARED_DATA();
  TemporaryFolder const folder;
  PlanningOptions options = planning_options(folder, 2);
  options.calibration.sensitivity = SensitivityOf::none;  // one pass per layer would take a minute
  options.guard.context = 512;
  auto const budget = ha::Budget::share(0.25);
  Guarded const guarded = plan_model(options, budget);
  REQUIRE(guarded.tables.size() == 3);
  auto const& best = guarded.chosen();
  CHECK(guarded.best != 0);
  CHECK(best.score < guarded.tables[0].score);
  CHECK(best.text_loss > guarded.full_text_loss);
  CHECK(best.plan.planned_tokens <= budget.total(90, 512));
  CHECK(ha::load_plan(folder / "plan.json") == best.plan);
  CHECK(std::filesystem::exists(folder / "plan_classifications.json"));
  CHECK(std::filesystem::exists(folder / "plan_guard.json"));

  // A second time nothing is measured, and the same comes out.
  std::filesystem::remove(folder / "plan.json");
  auto const measured = std::filesystem::last_write_time(folder / "text" / "attention_sums.json");
  CHECK(plan_model(options, budget).chosen().plan == best.plan);
  CHECK(std::filesystem::last_write_time(folder / "text" / "attention_sums.json") == measured);

  Model const model(options.model);
  auto const tokens = text_tokens(model, 4096);
  PolicyRun run(model, {.tokens = 512});
  LossStore losses(run, folder / "losses");
  std::vector<BenchmarkRun> runs;
  runs.resize(2);
  runs[0].method = "streaming_llm";
  runs[0].table = ha::uniform_table(30, 3, budget, 512);
  runs[1].method = "planned";
  runs[1].table = best.plan.table;
  run_benchmark(losses, tokens, {.place = {.context = 512, .passages = {0, 3000}, .copies = {1500}}}, runs);
  std::printf("SmolLM2-135M, 128 of 512 tokens: perplexity %.2f (uniform windows %.2f), copy %.2f (%.2f)\n",
              runs[1].perplexity_second_half, runs[0].perplexity_second_half, runs[1].copy_nll, runs[0].copy_nll);
  CHECK(runs[1].mean_kept_tokens <= 128);
  CHECK(runs[0].mean_kept_tokens == 128);
  CHECK(runs[1].perplexity_second_half < runs[0].perplexity_second_half);
  CHECK(runs[1].copy_nll < runs[0].copy_nll);
}

TEST_CASE("gains of layers at a plan are told from the runs that they are of") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  HEADAWARE_REQUIRE_SHARED_DATA();
  TemporaryFolder const folder;
  Model const model(exact_model_path(smollm2));
  auto const tokens = text_tokens(model, 4096);
  auto const text =
      calibration_text(model, tokens, 256, {.text = 1, .probe = 1, .held_out = 1, .held_out_probes = 1}, "text");
  PolicyRun run(model, {.tokens = 256});
  LossStore losses(run, folder.path());
  // Layers 0 to 27 lose nothing, so giving them back gains nothing, and takes no run of its own.
  ha::PolicyTable plan(30, 3, ha::Full{});
  for (std::int32_t head = 0; head < 3; ++head) {
    plan.set(28, head, ha::SinkWindow{.sink = 4, .window = 12});
    plan.set(29, head, ha::SinkWindow{.sink = 4, .window = 12});
  }
  PlanGains const gains = plan_gains(losses, text, plan, {}, {1, 1}, SensitivityOf::layer);
  REQUIRE(gains.text.size() == 30);
  REQUIRE(gains.probe.size() == 30);
  for (std::size_t layer = 0; layer < 28; ++layer) {
    CHECK(gains.text[layer] == 0);
    CHECK(gains.probe[layer] == 0);
  }
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 6);  // two kinds, three tables
  std::int32_t const last = 29;
  auto const kept = plan.skip_layers(std::span(&last, 1));
  std::vector<LossJob> const jobs{{text.text[0], plan}, {text.text[0], kept}};
  auto const divergences = losses.divergences("", jobs, text.first_query);
  CHECK(gains.text[29] == mean_loss(divergences[0]) - mean_loss(divergences[1]));
  CHECK(gains.text[29] > 0);

  PlanGains const of_heads = plan_gains(losses, text, plan, {}, {0, 1}, SensitivityOf::head);
  CHECK(of_heads.text.empty());
  CHECK(of_heads.any());
  REQUIRE(of_heads.probe.size() == 90);
  for (std::size_t head = 0; head < 28 * 3; ++head) CHECK(of_heads.probe[head] == 0);
  ha::PolicyTable one_kept = plan;
  one_kept.set(28, 1, ha::Full{});
  std::vector<LossJob> const two{{text.probe[0], plan}, {text.probe[0], one_kept}};
  auto const of_two = losses.divergences("", two, text.first_query);
  CHECK(of_heads.probe[28 * 3 + 1] == mean_loss(of_two[0]) - mean_loss(of_two[1]));
  CHECK(of_heads.probe[28 * 3 + 1] > 0);
}

TEST_CASE("plans are made anew where they are, beside layers that are left whole") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  HEADAWARE_REQUIRE_SHARED_DATA();
  TemporaryFolder const folder;
  PlanningOptions options = small_planning_options(folder);
  options.probe_weights = {0.3, 0.1};
  options.replan = 2;
  auto const budget = ha::Budget::tokens(64);
  Guarded const guarded = plan_model(options, budget);
  // Uniform windows, a blend, two plans, and two steps of two plans each a round.
  REQUIRE((guarded.tables.size() == 8 || guarded.tables.size() == 12));
  CHECK(guarded.tables[1].name == "plan");
  CHECK(guarded.tables[2].name == "plan, probe 0.1");
  CHECK(guarded.tables[3].name == "again 1 by 0.25");
  CHECK(guarded.tables[6].name == "again 1 by 0.5, probe 0.1");
  CHECK(guarded.tables.back().name == "blend 0.5");
  CHECK(guarded.tables[2].probe_weight == 0.1);
  CHECK(guarded.tables[5].probe_weight == 0.3);
  CHECK_FALSE(guarded.tables[0].probe_weight.has_value());
  CHECK_FALSE(guarded.tables.back().blended_with.empty());
  CHECK(guarded.tables[0].text_gain_error == 0);
  CHECK(guarded.tables[1].text_gain_error > 0);
  for (auto const& table : guarded.tables) {
    CHECK(table.plan.mean_tokens() <= 64);
    CHECK(std::abs(table.score - (table.text_loss + 0.3 * table.probe_loss)) < 1e-12);
    for (std::int32_t layer = 0; layer < 27; ++layer) CHECK(table.plan.table.at(layer, 0).is<ha::Full>());
  }
  CHECK(ha::load_plan(folder / "plan.json") == guarded.chosen().plan);
  auto const tried = nlohmann::json::parse(ha::read_text_file(folder / "plan_guard.json")).at("tried");
  CHECK(tried.size() == guarded.tables.size());
  CHECK_FALSE(tried.front().contains("probe_weight"));
  CHECK(tried.at(2).at("probe_weight") == 0.1);
  CHECK(tried.back().at("blended_with") == guarded.tables.back().blended_with);

  // Other scores find all runs made; costs may come from elsewhere, at another context too.
  auto const runs = [&] { return std::distance(std::filesystem::directory_iterator(folder / "losses"), {}); };
  auto const made = runs();
  options.guard.probe_weight = 10;
  Guarded const copying = plan_model(options, budget);
  CHECK(runs() == made);
  CHECK(copying.chosen().probe_loss <= guarded.chosen().probe_loss);
  TemporaryFolder const other;
  options.calibration.output_dir = other.path();
  options.calibration.sensitivities_from = folder / "none";
  CHECK_THROWS_AS(plan_model(options, budget), ha::FileError);
  options.calibration.sensitivity = SensitivityOf::none;
  check_error<ha::ArgumentError>([&] { (void)plan_model(options, budget); },
                                 {"sensitivities_from", "layer or head", "none", "calibrate"});
  options.calibration.sensitivity = SensitivityOf::layer;
  options.calibration.sensitivities_from = other / "foreign";
  std::filesystem::create_directories(other / "foreign" / "text");
  ha::SavedSensitivities const foreign{.num_layers = 30, .num_kv_heads = 2, .values = std::vector<double>(60, 1.0)};
  ha::save_sensitivities(other / "foreign" / "text" / "sensitivities.json", foreign);
  check_error<ha::ArgumentError>([&] { (void)plan_model(options, budget); },
                                 {"sensitivities' KV heads", "3", "2", "calibrate"});
  CHECK_FALSE(std::filesystem::exists(other / "text"));  // both told before anything is measured
  std::filesystem::copy(folder / "losses", other / "losses", std::filesystem::copy_options::recursive);
  options.calibration.sensitivities_from = folder.path();
  options.replan = 0;
  options.guard.probe_weight = 0.3;
  Guarded const taken = plan_model(options, budget);
  CHECK(taken.tables[1].plan == guarded.tables[1].plan);

  // What heads cost the probe, while costs of text stay.
  options.calibration.sensitivities_from.clear();
  options.calibration.output_dir = folder.path();
  options.replan = 1;
  options.replan_by = SensitivityOf::head;
  options.replan_pieces = {0, 0};
  auto const refused = [&] {
    check_error<ha::ArgumentError>([&] { (void)plan_model(options, budget); },
                                   {"pieces to replan on, text", "1 to 1", "0", "plan_model"});
  };
  refused();
  options.replan_pieces = {0, 1};
  Guarded const by_head = plan_model(options, budget);
  REQUIRE(by_head.tables.size() == 8);
  CHECK(by_head.tables[1].plan == guarded.tables[1].plan);
  CHECK(by_head.tables[3].name == "again 1 by 0.25");
  CHECK_FALSE(by_head.tables[5].plan == guarded.tables[5].plan);
  CHECK(by_head.tables[5].plan.mean_tokens() <= 64);
  options.calibration.sensitivity = SensitivityOf::none;  // squared errors, which costs of the probe cannot be added to
  refused();
}

TEST_CASE("a job that is asked to stop between two of its parts stops in the next, once") {
  {
    support::Interrupt const first;
    std::raise(SIGINT);
  }
  support::Interrupt const next;
  CHECK_THROWS_AS(next.check(), support::Interrupted);
  CHECK_NOTHROW(next.check());
}

TEST_CASE("a plan is refined by trying it on the text that it was made of") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  HEADAWARE_REQUIRE_SHARED_DATA();
  TemporaryFolder const folder;
  PlanningOptions options = small_planning_options(folder);
  options.calibration.sensitivity = SensitivityOf::none;  // wrong by a lot: something to find
  options.refine_pieces = {2, 1};
  options.refine = ha::RefineOptions{};
  auto const budget = ha::Budget::tokens(64);
  check_error<ha::ArgumentError>([&] { (void)plan_model(options, budget); },
                                 {"pieces to refine on, text", "1 to 1", "2", "plan_model"});
  options.refine_pieces = {1, 1};
  options.refine = ha::RefineOptions{.steps = {3}, .levels = 9, .least_gain = 0, .most_trials = 8};
  Guarded const guarded = plan_model(options, budget);
  REQUIRE(guarded.tables.size() == 4);  // uniform windows, the plan, refined, a blend
  auto const& plan = guarded.tables[1];
  auto const& refined = guarded.tables[2];
  CHECK(refined.name == "refined");
  CHECK(refined.plan.mean_tokens() <= 64);
  CHECK(refined.plan.table != plan.plan.table);
  for (std::int32_t layer = 0; layer < 27; ++layer) CHECK(refined.plan.table.at(layer, 0).is<ha::Full>());

  // Predictions of the text that it was tried on move less.
  Model const model(options.model);
  auto const tokens = model.tokenize(ha::read_text_file(options.text), false);
  auto const text = calibration_text(model, tokens, options.guard.context, options.pieces, "text");
  PolicyRun run(model, {.tokens = 256});
  LossStore losses(run, folder / "losses");
  auto const moved = [&](ha::PolicyTable const& table) {
    std::vector<LossJob> const jobs{{text.text[0], table}, {text.probe[0], table}};
    auto const all = losses.divergences("", jobs, text.first_query);
    return mean_loss(all[0]) + options.guard.probe_weight * mean_loss(all[1]);
  };
  auto const runs = [&] { return std::distance(std::filesystem::directory_iterator(folder / "losses"), {}); };
  auto const made = runs();
  CHECK(moved(refined.plan.table) < moved(plan.plan.table));

  // A second time nothing is run, and sensitivities that were refined make the same plan elsewhere.
  CHECK(plan_model(options, budget).tables[2].plan == refined.plan);
  CHECK(runs() == made);
  TemporaryFolder const other;
  options.calibration.output_dir = other.path();
  options.calibration.sensitivity = SensitivityOf::layer;
  options.calibration.sensitivities_from = folder / "refined_64";
  options.refine.reset();
  CHECK(plan_model(options, budget).tables[1].plan.table == refined.plan.table);
}
