// Heads that keep tokens by scores, in a model that runs: caches, plans that are tried with them, methods side by side.

#include "llama/models.hpp"
#include "llama/synthetic_models.hpp"
#include "support/errors.hpp"
#include "tools/llama/cached_model.hpp"
#include "tools/llama/loss_store.hpp"
#include "tools/llama/planning.hpp"
#include "tools/support/plan_scores.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/scored_heads.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

/// Scores of a model's rows by weights about 0; all rows alike where `size` is 0. Every head deserves as much.
ha::RowScorer scorer_of(Model const& model, float size) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  ha::RowScorer scorer;
  auto& saved = scorer.saved;
  saved.model = "made up";
  saved.shape = model.shape();
  saved.pieces = 1;
  saved.piece_tokens = 64;
  saved.layers.resize(static_cast<std::size_t>(model.shape().num_layers()));
  std::size_t heads = 0;
  for (ha::LayerShape const& layer : model.shape().layers()) {
    auto& weights = scorer.weights.emplace_back();
    if (!layer.has_cache()) continue;
    heads += static_cast<std::size_t>(layer.num_kv_heads);
    weights.resize(static_cast<std::size_t>(layer.num_kv_heads * ha::ScoreFeatures::of(layer).count()));
    for (float& weight : weights) weight = size * normal(random);
  }
  saved.budgets = {.shares = {0.25}, .heads = {std::vector<double>(heads, 0.25)}};
  return scorer;
}

std::vector<double> losses(Model const& model, ha::PolicyTable const& table, ha::FormatTable const& formats,
                           ha::RowScorer const* scorer, std::vector<std::int32_t> const& tokens, std::int32_t chunk) {
  CachedModel<float> cached(model, table, formats, std::ssize(tokens),
                            {.chunk = chunk, .all_logits = true, .scorer = scorer});
  auto const result = losses_of(cached, tokens, static_cast<std::size_t>(chunk), [](std::int64_t) {});
  double const kept = static_cast<double>(ha::held_tokens(ha::within_layers(table, model.shape()), std::ssize(tokens)));
  CHECK(std::abs(cached.cache().mean_kept() * static_cast<double>(table.heads().total()) - kept) < 1e-6);
  return result;
}

double farthest(std::vector<double> const& a, std::vector<double> const& b) {
  double far = 0;
  for (std::size_t i = 0; i < a.size(); ++i) far = std::max(far, std::abs(a[i] - b[i]));
  return far;
}

}  // namespace

TEST_CASE(
    "a model on a cache with scored slots: by tokens or in chunks, in formats, and as windows where rows are alike") {
  for (auto const write : {write_sliding_model, write_heads_model}) {
    TemporaryFolder const folder;
    write(folder / "model.gguf");
    Model const model(folder / "model.gguf");
    auto tokens = model.tokenize(numbered_text(150), true);
    auto const table = [&](auto const& policy) { return ha::table_from_model_config(model.shape(), policy); };
    ha::PolicyTable mixed = table(ha::SinkWindowScored{.sink = 2, .window = 8, .scored = 20});
    // Before they have seen others, equal tokens are equal rows, whose scores rounding alone tells apart.
    for (std::int32_t head = 0; head < mixed.num_kv_heads(0); ++head) mixed.set(0, head, ha::Full{});
    if (mixed.num_kv_heads(1) > 1) mixed.set(1, 0, ha::Prune{});
    mixed.set(model.shape().num_layers() - 1, 0, ha::Full{});
    auto const alike = scorer_of(model, 0);
    auto const learned = scorer_of(model, 0.1F);
    auto const wide = losses(model, table(ha::SinkWindow{.sink = 2, .window = 28}), {}, nullptr, tokens, 50);

    // Of equal scores the newer token stays.
    CHECK(farthest(
              losses(model, table(ha::SinkWindowScored{.sink = 2, .window = 8, .scored = 20}), {}, &alike, tokens, 50),
              wide) < 1e-3);
    auto const chunks = losses(model, mixed, {}, &learned, tokens, 50);
    CHECK(farthest(chunks, losses(model, mixed, {}, &learned, tokens, 1)) < 1e-3);
    CHECK(farthest(chunks, losses(model, mixed, {}, &alike, tokens, 50)) > 1e-2);
    // As many slots as there are tokens.
    auto const full = losses(model, table(ha::Full{}), {}, nullptr, tokens, 50);
    CHECK(farthest(losses(model, table(ha::SinkWindowScored{.sink = 2, .window = 8, .scored = 200}), {}, &learned,
                          tokens, 50),
                   full) < 1e-3);
    ha::FormatTable const formats(model.shape(), ha::format_pair("int8", "int8"));
    auto const coded = losses(model, mixed, formats, &learned, tokens, 50);
    CHECK(farthest(coded, losses(model, mixed, formats, &learned, tokens, 7)) < 1e-3);
    CHECK(farthest(coded, chunks) < 0.3);

    check_error<ha::ArgumentError>([&] { (void)losses(model, mixed, {}, nullptr, tokens, 50); },
                                   {"scores", "--scores FOLDER", "none", "CachedModel"});
    ha::RowScorer other = learned;
    other.weights.clear();
    check_error<ha::ArgumentError>([&] { (void)losses(model, mixed, {}, &other, tokens, 50); },
                                   {"model of the scores", "the one that runs", "made up", "score_chunk"});
  }
}

TEST_CASE("plans with scored slots are tried beside others, name their scores, and run evicted beside windows") {
  TemporaryFolder const folder;
  auto const path = folder / "model.gguf";
  write_sliding_model(path);
  ha::write_file(folder / "text.txt", numbered_text(1200));
  PlanningOptions options;
  options.model = path;
  options.text = folder / "text.txt";
  options.pieces = {.text = 1, .probe = 1, .held_out = 1, .held_out_probes = 1};
  options.calibration.output_dir = folder / "plan";
  options.calibration.sensitivity = SensitivityOf::none;
  options.formats.measured = false;
  options.guard.context = 256;
  options.guard.blends = {};
  options.guard.slot_probe_weights = {1, 10};
  ha::RowScorer scorer;
  {
    Model const model(path);
    scorer = scorer_of(model, 0.1F);
  }
  std::filesystem::create_directories(folder / "scores");
  ha::save_row_scorer(folder / "scores", scorer);
  auto const budget = ha::Budget::tokens(48);
  std::size_t const without = plan_model(options, budget).tables.size();
  options.guard.scorer = &scorer;
  Guarded const guarded = plan_model(options, budget);
  REQUIRE(guarded.tables.size() == without + 2);
  CHECK(guarded.tables[without].name == "slots, probe 0.3");
  CHECK(guarded.tables[without + 1].name == "slots, probe 3");
  for (std::size_t i = without; i < guarded.tables.size(); ++i) {
    auto const& table = guarded.tables[i];
    // Chosen together they may all be windows.
    CHECK(table.scored);
    CHECK(table.plan.scores == (ha::has_scored_heads(table.plan.table) ? scorer.saved.weight_hash : std::string()));
    CHECK(table.plan.left() >= 0);
    CHECK(table.text_loss > 0);
    CHECK(table.score == table.text_loss + options.guard.probe_weight * table.probe_loss);
    CHECK(guarded.chosen().score <= (table.eligible ? table.score : guarded.tables[guarded.uniform].score));
  }
  CHECK(ha::load_plan(folder / "plan/plan.json") == guarded.chosen().plan);
  CHECK(std::filesystem::exists(folder / "plan/plan_classifications.json") !=
        ha::has_scored_heads(guarded.chosen().plan.table));

  // Errors of slots are known of heads in layers that do not slide, and are not measured again.
  auto const measured = ha::load_retention_statistics(folder / "plan/text/retention_statistics.json");
  REQUIRE(measured.info.scored == ha::ScoredGrid::up_to(256));
  CHECK(measured.info.scores == scorer.saved.weight_hash);
  bool observed = false;
  for (auto const& head : measured.heads) observed = observed || head.scored.rows > 0;
  CHECK(observed);
  CHECK(plan_model(options, budget).tables[without].plan == guarded.tables[without].plan);

  // As it would be chosen, with slots in any case: of one head's window.
  Guarded chosen = guarded;
  chosen.best = without + 1;
  GuardedTable& scored = chosen.tables[chosen.best];
  for (std::int32_t layer = 0; layer < scored.plan.num_layers; ++layer) {
    auto const& policy = scored.plan.table.at(layer, 0);
    auto const window = ha::policy_window(policy);
    if (scored.plan.table.window(layer) != 0 || !window || window->window < 16) continue;
    scored.plan.table.set(layer, 0, ha::SinkWindowScored{window->sink, window->window - 8, 8});
  }
  scored.plan.scores = scorer.saved.weight_hash;
  REQUIRE(ha::has_scored_heads(scored.plan.table));
  write_guarded(folder / "plan", chosen);
  CHECK_FALSE(std::filesystem::exists(folder / "plan/plan_classifications.json"));
  auto const file = folder / "plan/plan.json";
  CHECK(ha::load_plan(file) == scored.plan);
  CHECK(support::scores_of(file, scored.plan.table, folder / "scores")->weights == scorer.weights);
  CHECK(support::scores_of(file, guarded.tables[0].plan.table, {}) == nullptr);
  check_error<ha::ArgumentError>([&] { (void)support::scores_of(file, scored.plan.table, {}); },
                                 {"scores of plan.json", "--scores FOLDER", "none", "plan"});
  {
    Model const model(path);
    PolicyRun run(model, {.tokens = 256});
    LossStore losses(run, folder / "losses");
    auto const tokens = model.tokenize(numbered_text(100), true);
    std::vector<LossJob> const jobs{{tokens, scored.plan.table}};
    check_error<ha::ArgumentError>([&] { (void)losses.losses("", jobs); },
                                   {"policies", "masked", "scored", "LossStore"});
  }
#ifdef HEADAWARE_BENCHMARK_PROGRAM
  auto const quoted = [](std::filesystem::path const& one) { return "'" + one.string() + "'"; };
  std::string const command = std::string(HEADAWARE_BENCHMARK_PROGRAM) + " --model " + quoted(path) + " --text " +
                              quoted(folder / "text.txt") + " --context 256 --passages 2 --copies 1 --decode_tokens 3" +
                              " --plan " + quoted(file) + " --output_dir " + quoted(folder / "benchmark");
  auto const run = [&](std::string const& more) {
    return std::system((command + more + " > " + quoted(folder / "log") + " 2>&1").c_str()) == 0;
  };
  CHECK_FALSE(run(""));
  CHECK(ha::read_text_file(folder / "log").find("--scores FOLDER") != std::string::npos);
  CHECK_FALSE(run(" --masked --scores " + quoted(folder / "scores")));
  CHECK(ha::read_text_file(folder / "log").find("what scores keep is no mask") != std::string::npos);
  bool const ran = run(" --scores " + quoted(folder / "scores"));
  INFO(ha::read_text_file(folder / "log"));
  REQUIRE(ran);
  auto const results = nlohmann::json::parse(ha::read_text_file(folder / "benchmark/benchmark.json"))["runs"];
  REQUIRE(results.size() == 3);
  auto const& planned = results[2];
  CHECK(planned["method"] == "planned_scored");
  CHECK(results[1]["method"] == "streaming_llm");
  CHECK(planned["mean_kept_tokens"].get<double>() <= 48);
  CHECK(planned["mean_kept_tokens"].get<double>() > 40);
  CHECK(planned["record_bytes_end"] == ha::record_bytes(scored.plan.table));
  CHECK(results[1]["record_bytes_end"] == 0);
  CHECK(planned["compaction_s"].is_null());
  CHECK(planned["perplexity"].get<double>() > 1);
#endif
}
