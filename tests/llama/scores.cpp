// Scores of rows measured by second readings: what the engine looks at, ridge regression, files, going on after a stop.

#include "llama/synthetic_models.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "tools/llama/attention_tap.hpp"
#include "tools/llama/key_rotations.hpp"
#include "tools/llama/ridge.hpp"
#include "tools/llama/score_calibration.hpp"
#include "tools/llama/score_choice.hpp"
#include "tools/llama/score_chunk.hpp"
#include "tools/llama/second_reading.hpp"
#include "tools/support/interrupt.hpp"

#include <headaware/score/score_features.hpp>

#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

struct Written {
  TemporaryFolder folder;
  Model model;

  explicit Written(void (*write)(std::filesystem::path const&)) : model(path(write)) {}

 private:
  std::filesystem::path path(void (*write)(std::filesystem::path const&)) const {
    write(folder / "model.gguf");
    return folder / "model.gguf";
  }
};

void write_hybrid(std::filesystem::path const& path) { write_hybrid_model(path, 0); }

/// What the tap hands over of a layer, kept.
struct Kept {
  std::vector<float> queries, keys;
  TappedAttention attention;
};

/// Probability of each of the first rows from one query, in double.
std::vector<double> probabilities(Kept const& layer, std::int64_t query, std::int64_t head, std::int64_t rows) {
  auto const& a = layer.attention;
  std::int64_t const kv = head / (a.num_query_heads / a.num_kv_heads);
  double const sink = a.sinks != nullptr ? std::exp(static_cast<double>(a.sinks[head])) : 0;
  std::vector<double> result(static_cast<std::size_t>(rows));
  double sum = sink;
  for (std::int64_t row = 0; row <= query; ++row) {
    if (a.sliding_window > 0 && row <= query - a.sliding_window) continue;
    double logit = 0;
    for (std::int64_t c = 0; c < a.head_dim; ++c) {
      logit += static_cast<double>(
                   layer.queries[static_cast<std::size_t>((query * a.num_query_heads + head) * a.head_dim + c)]) *
               static_cast<double>(layer.keys[static_cast<std::size_t>((row * a.num_kv_heads + kv) * a.head_dim + c)]);
    }
    double const weight = std::exp(static_cast<double>(a.scale) * logit);
    sum += weight;
    if (row < rows) result[static_cast<std::size_t>(row)] = weight;
  }
  for (double& p : result) p /= sum;
  return result;
}

ScoreOptions tiny_options(std::filesystem::path const& folder) {
  ScoreOptions options;
  options.output_dir = folder;
  options.pieces = 3;
  options.held_out = 1;
  options.piece_tokens = 64;
  options.penalties = {0.1, 1};
  options.shares = {0.125, 0.5};
  return options;
}

}  // namespace

TEST_CASE("a second reading tells the largest probability of every row, and its features before rotation") {
  for (auto const write : {write_sliding_model, write_hybrid, write_sinks_model}) {
    Written const written(write);
    Model const& model = written.model;
    std::int64_t const count = 40;
    std::string const instruction = " Again: ";
    auto piece = model.tokenize(numbered_text(200), true);
    piece.resize(count);
    // The same tokens by the tap alone.
    auto text = piece;
    auto const more = model.tokenize(instruction, false);
    text.insert(text.end(), more.begin(), more.end());
    std::int64_t const first = std::ssize(text);
    text.insert(text.end(), piece.begin() + (model.begins_with_bos() ? 1 : 0), piece.end());
    std::vector<Kept> kept(static_cast<std::size_t>(model.shape().num_layers()));
    std::vector<std::vector<float>> sinks(kept.size());
    AttentionTap tap(model, [&](TappedAttention const& a) {
      Kept& layer = kept[static_cast<std::size_t>(a.layer)];
      layer.attention = a;
      layer.queries.assign(a.queries, a.queries + a.tokens * a.num_query_heads * a.head_dim);
      layer.keys.assign(a.keys, a.keys + a.tokens * a.num_kv_heads * a.head_dim);
      if (a.sinks == nullptr) return;
      auto& of_layer = sinks[static_cast<std::size_t>(a.layer)];
      of_layer.assign(a.sinks, a.sinks + a.num_query_heads);
      layer.attention.sinks = of_layer.data();
    });
    Context context(model, {.tokens = static_cast<std::int32_t>(text.size()), .observer = &tap});
    context.evaluate(text);

    auto const rotations = key_rotations(model);
    SecondReading reading(model, instruction, count, 1);
    std::vector<std::int32_t> layers;
    reading.read(piece, [&](ReadLayer const& layer) {
      layers.push_back(layer.layer);
      Kept const& expected = kept[static_cast<std::size_t>(layer.layer)];
      auto const& a = expected.attention;
      REQUIRE(std::ssize(layer.probabilities) == a.num_kv_heads * count);
      std::int64_t const group = a.num_query_heads / a.num_kv_heads;
      double far = 0;
      for (std::int64_t kv = 0; kv < a.num_kv_heads; ++kv) {
        std::vector<double> most(static_cast<std::size_t>(count));
        for (std::int64_t head = kv * group; head < (kv + 1) * group; ++head) {
          for (std::int64_t query = first; query < a.tokens; ++query) {
            auto const p = probabilities(expected, query, head, count);
            for (std::size_t row = 0; row < most.size(); ++row) most[row] = std::max(most[row], p[row]);
          }
        }
        for (std::size_t row = 0; row < most.size(); ++row) {
          double const got = static_cast<double>(layer.probabilities[static_cast<std::size_t>(kv * count) + row]);
          far = std::max(far, std::abs(got - most[row]));
        }
      }
      CHECK(far < 1e-5);

      // Features turned forward again are what the tap saw.
      auto const f = ha::ScoreFeatures::of(model.shape().layer(layer.layer));
      REQUIRE(std::ssize(layer.features) == count * f.count());
      auto const& rotation = rotations[static_cast<std::size_t>(layer.layer)];
      far = 0;
      for (std::int64_t row = 0; row < count; ++row) {
        float const* const features = layer.features.data() + row * f.count();
        for (std::int64_t head = 0; head < f.num_kv_heads; ++head) {
          std::vector<float> key(features + f.keys() + head * f.head_dim,
                                 features + f.keys() + (head + 1) * f.head_dim);
          for (std::int32_t i = 0; i < rotation.rotary_dim() / 2; ++i) {
            auto const pair = ha::rotary_pair(rotation, i);
            rotation.turn_back(-row, i, key[static_cast<std::size_t>(pair.a)], key[static_cast<std::size_t>(pair.b)]);
          }
          for (std::int64_t c = 0; c < f.head_dim; ++c) {
            float const seen = expected.keys[static_cast<std::size_t>((row * f.num_kv_heads + head) * f.head_dim + c)];
            far = std::max(far, static_cast<double>(std::abs(key[static_cast<std::size_t>(c)] - seen)));
          }
        }
        CHECK(features[f.constant()] == 1);
      }
      CHECK(far < 1e-4);
    });
    std::vector<std::int32_t> attending;
    for (std::int32_t i = 0; i < model.shape().num_layers(); ++i) {
      if (model.shape().layer(i).has_cache()) attending.push_back(i);
    }
    CHECK(layers == attending);
    check_error<ha::ArgumentError>([&] { reading.read(std::span(piece).first(39), [](ReadLayer const&) {}); },
                                   {"tokens of a piece", "40", "39", "SecondReading::read"});
  }
}

TEST_CASE("ridge regression finds the weights, shrinks them by the penalty, and goes on from a state") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  constexpr std::size_t count = 400;
  // Two features of other sizes, one that never changes, the constant; two targets.
  std::vector<float> features;
  std::vector<float> targets(2 * count);
  for (std::size_t i = 0; i < count; ++i) {
    float const a = 100 * normal(random) + 1000;
    float const b = 0.01F * normal(random);
    features.insert(features.end(), {a, b, 5, 1});
    targets[i] = 0.02F * a - 30 * b + 7;
    targets[count + i] = 3;
  }
  RidgeSums all(4, 2);
  all.add(features, targets);
  auto const weights = all.solve(1e-9);
  REQUIRE(weights.size() == 8);
  CHECK(std::abs(weights[0] - 0.02F) < 1e-5F);
  CHECK(std::abs(weights[1] + 30) < 1e-2F);
  CHECK(weights[2] == 0);
  CHECK(std::abs(weights[3] - 7) < 1e-2F);
  for (std::size_t i = 4; i < 7; ++i) CHECK(std::abs(weights[i]) < 1e-6F);
  CHECK(std::abs(weights[7] - 3) < 1e-3F);

  // Of one feature alone the penalty λ divides the weight by 1 + λ.
  std::vector<float> alone;
  std::vector<float> target;
  for (std::size_t i = 0; i < count; ++i) {
    alone.insert(alone.end(), {features[4 * i], 1});
    target.push_back(2 * features[4 * i]);
  }
  RidgeSums one(2, 1);
  one.add(alone, target);
  CHECK(std::abs(one.solve(0.25)[0] - 1.6F) < 1e-4F);

  // Half, through a state, and the other half.
  RidgeSums half(4, 2);
  auto const samples = [&](std::size_t begin, std::size_t end) {
    std::vector<float> y(targets.begin() + static_cast<std::ptrdiff_t>(begin),
                         targets.begin() + static_cast<std::ptrdiff_t>(end));
    y.insert(y.end(), targets.begin() + static_cast<std::ptrdiff_t>(count + begin),
             targets.begin() + static_cast<std::ptrdiff_t>(count + end));
    return std::pair(std::span<float const>(features).subspan(4 * begin, 4 * (end - begin)), y);
  };
  auto const [x, y] = samples(0, 150);
  half.add(x, y);
  RidgeSums rest(4, 2);
  rest.restore(half.state());
  auto const [more_x, more_y] = samples(150, count);
  rest.add(more_x, more_y);
  auto const again = rest.solve(0.1);
  auto const once = all.solve(0.1);
  for (std::size_t i = 0; i < once.size(); ++i) CHECK(std::abs(again[i] - once[i]) <= 1e-4F * (1 + std::abs(once[i])));

  check_error<ha::ArgumentError>([&] { (void)all.solve(0); }, {"penalty", "> 0", "0", "RidgeSums::solve"});
  check_error<ha::ArgumentError>([] { (void)RidgeSums(2, 1).solve(1); }, {"samples", "> 0", "0", "RidgeSums::solve"});
  check_error<ha::ArgumentError>([&] { all.add(features, target); }, {"targets", "800", "400", "RidgeSums::add"});
  check_error<ha::ArgumentError>([&] { one.restore(all.state()); }, {"saved sums", "5", "18", "RidgeSums::restore"});
}

TEST_CASE("the best rows of all heads are chosen, the first of equal ones first") {
  std::vector<float> const scores{3, 1, 4, 1, 5, 9, 2, 6};
  auto const order = best_first(scores);
  CHECK(order == std::vector<std::uint32_t>{5, 7, 4, 2, 0, 6, 1, 3});
  auto const rows = chosen(order, 3);
  CHECK(count_by_head(rows, 2) == std::vector<std::int64_t>{0, 3});
  CHECK(chosen_by_head(scores, std::vector<std::int64_t>{2, 1}) ==
        std::vector<bool>{true, false, true, false, false, true, false, false});
  Overlap overlap;
  CHECK(overlap.share() == 1);
  overlap.add(rows, chosen(order, 2), 0, 8);
  CHECK(overlap.wanted == 3);
  CHECK(overlap.both == 2);
}

TEST_CASE("scores of a model are calibrated, written and read, and score the model's chunks") {
  for (auto const write : {write_hybrid, write_sliding_model}) {
    Written const written(write);
    Model const& model = written.model;
    auto const tokens = model.tokenize(numbered_text(600), false);
    auto const options = tiny_options(written.folder / "scores");
    auto const scorer = calibrate_scores(model, tokens, options);
    auto const read = ha::load_row_scorer(options.output_dir);
    CHECK(read.saved == scorer.saved);
    CHECK(read.weights == scorer.weights);
    CHECK(read.saved.shape == model.shape());
    CHECK_FALSE(std::filesystem::exists(options.output_dir / "scores_state"));
    // A global choice: shares of the heads have its mean.
    for (std::size_t i = 0; i < options.shares.size(); ++i) {
      auto const& heads = read.saved.budgets.heads[i];
      double const mean = std::accumulate(heads.begin(), heads.end(), 0.0) / static_cast<double>(heads.size());
      CHECK(std::abs(mean - options.shares[i]) < 1e-9);
    }
    CHECK(read.saved.overlap > 0.125);
    CHECK(score_summary(read.saved).find("3 pieces of 64 tokens") != std::string::npos);

    // The same again measures nothing: the files stay, byte for byte, and nothing is left behind.
    auto const before = std::filesystem::last_write_time(options.output_dir / "scores.json");
    CHECK(calibrate_scores(model, tokens, options).weights == scorer.weights);
    CHECK(std::filesystem::last_write_time(options.output_dir / "scores.json") == before);

    // A chunk after others is scored as it is within them.
    auto const rotations = key_rotations(model);
    auto const scores_of = [&](std::span<std::int32_t const> chunk, std::int32_t first) {
      std::vector<float> all;
      AttentionTap tap(model, [&](TappedAttention const& a) {
        std::vector<float> scores(static_cast<std::size_t>(a.num_kv_heads * a.tokens));
        score_chunk(scorer, rotations, a, ha::RowScores::dense(scores.data(), a.num_kv_heads, a.tokens));
        all.insert(all.end(), scores.begin(), scores.end());
      });
      Context context(model, {.tokens = 64, .observer = &tap});
      context.evaluate(chunk, first);
      return all;
    };
    // Positions alone change nothing: queries and keys are turned back from wherever they are.
    auto const chunk = std::span(tokens).first(20);
    auto const here = scores_of(chunk, 0);
    auto const there = scores_of(chunk, 500);
    REQUIRE(here.size() == there.size());
    float far = 0;
    for (std::size_t i = 0; i < here.size(); ++i) far = std::max(far, std::abs(here[i] - there[i]));
    CHECK(far < 1e-2F);

    auto wrong = scorer;
    wrong.weights.pop_back();
    AttentionTap tap(model, [&](TappedAttention const& a) {
      std::vector<float> scores(static_cast<std::size_t>(a.num_kv_heads * a.tokens));
      score_chunk(wrong, std::span(rotations).first(wrong.weights.size()), a,
                  ha::RowScores::dense(scores.data(), a.num_kv_heads, a.tokens));
    });
    Context context(model, {.tokens = 64, .observer = &tap});
    check_error<ha::ArgumentError>([&] { context.evaluate(chunk); }, {"model of the scores", "", "", "score_chunk"});
  }
}

TEST_CASE("a calibration of scores that is stopped goes on, and ends as if it had not been") {
  Written const written(write_sinks_model);
  Model const& model = written.model;
  auto const tokens = model.tokenize(numbered_text(3000), false);
  auto options = tiny_options(written.folder / "whole");
  options.pieces = 12;
  auto const whole = calibrate_scores(model, tokens, options);

  options.output_dir = written.folder / "parts";
  auto const state = options.output_dir / "scores_state" / "state.json";
  std::atomic<bool> stopped{false};
  std::thread stopper([&] {
    while (!stopped && !std::filesystem::exists(state)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (!stopped) std::raise(SIGINT);
  });
  bool interrupted = false;
  try {
    (void)calibrate_scores(model, tokens, options);
  } catch (support::Interrupted const&) {
    interrupted = true;
  }
  stopped = true;
  stopper.join();
  CHECK(interrupted);
  CHECK(std::filesystem::exists(state));
  CHECK_FALSE(std::filesystem::exists(options.output_dir / "scores.json"));
  auto const resumed = calibrate_scores(model, tokens, options);
  CHECK(resumed.weights == whole.weights);
  CHECK(resumed.saved == whole.saved);
}

TEST_CASE("scores cannot be calibrated on too little, or by options that make no sense") {
  Written const written(write_sliding_model);
  Model const& model = written.model;
  auto const tokens = model.tokenize(numbered_text(600), false);
  auto const refused = [&](ha::ErrorDetail const& parts, auto const& change) {
    auto options = tiny_options(written.folder / "scores");
    change(options);
    check_error<ha::ArgumentError>([&] { (void)calibrate_scores(model, tokens, options); }, parts);
  };
  constexpr auto where = "calibrate_scores";
  refused({"tokens of the text", "at least 704, for 11 pieces of 64", "600", where}, [](auto& o) { o.pieces = 10; });
  refused({"pieces", "> 0", "0", where}, [](auto& o) { o.pieces = 0; });
  refused({"pieces held out", "> 0", "0", where}, [](auto& o) { o.held_out = 0; });
  refused({"tokens of a piece", ">= 32", "8", where}, [](auto& o) { o.piece_tokens = 8; });
  refused({"floor", "in (0, 1)", "0", where}, [](auto& o) { o.floor = 0; });
  refused({"penalty", "> 0", "-1", where}, [](auto& o) { o.penalties = {1, -1}; });
  refused({"penalties", "at least one", "none", where}, [](auto& o) { o.penalties.clear(); });
  refused({"share", "ascending", "0.25", ""}, [](auto& o) { o.shares = {0.5, 0.25}; });
  CHECK_FALSE(std::filesystem::exists(written.folder / "scores" / "scores.json"));
}
