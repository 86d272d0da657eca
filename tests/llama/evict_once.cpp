// A text's cache compressed once: full caches, windows and scores against what the engine and plain loops say.

#include "llama/evict_once.hpp"

#include "llama/lookup_text.hpp"
#include "llama/models.hpp"
#include "support/errors.hpp"
#include "tools/llama/attention_tap.hpp"
#include "tools/llama/reference_attention.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/plan/compare.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

/// Attention of queries after a prefix of which every head has kept sinks and a window; queries of the prefix see all.
void windowed_attention(TappedAttention const& layer, std::int64_t prefix, ha::WindowRule const& rule) {
  std::int64_t const dim = layer.value_dim;
  std::int64_t const group = layer.num_query_heads / layer.num_kv_heads;
  std::vector<double> probabilities;
  std::vector<double> sums(static_cast<std::size_t>(dim));
  for (std::int64_t query = 0; query < layer.tokens; ++query) {
    probabilities.resize(static_cast<std::size_t>(query + 1));
    for (std::int32_t head = 0; head < layer.num_query_heads; ++head) {
      attention_probabilities(layer, head, query, probabilities);
      double seen = 0;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (std::int64_t key = 0; key <= query; ++key) {
        if (query >= prefix && key < prefix && !rule.keeps(key, prefix)) continue;
        double const p = probabilities[static_cast<std::size_t>(key)];
        seen += p;
        float const* const v = layer.values + (key * layer.num_kv_heads + head / group) * dim;
        for (std::int64_t c = 0; c < dim; ++c) sums[static_cast<std::size_t>(c)] += p * v[c];
      }
      float* const row = layer.output + (query * layer.num_query_heads + head) * dim;
      for (std::int64_t c = 0; c < dim; ++c) row[c] = static_cast<float>(sums[static_cast<std::size_t>(c)] / seen);
    }
  }
}

double mean(std::span<double const> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

TEST_CASE("evicted once: full as the engine, all kept as full, windows as masked, kvzip ahead on a copy") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(exact_model_path(smollm2));
  OnceOptions const options{.prefix = 128, .continuation = 96, .single_precision = true};
  auto const tokens = text_tokens(model, 300);
  auto const pieces = once_pieces(model, tokens, options, {.passages = {0}, .copies = {20}, .lookups = 0});
  REQUIRE(pieces.size() == 2);
  TemporaryFolder const folder;
  auto runs = once_runs({"full", "streaming_llm", "kvzip"}, {32}, {}, model.shape(), options);
  auto const all = once_runs({"snapkv", "kvzip"}, {options.prefix}, {}, model.shape(), options);
  runs.insert(runs.end(), all.begin(), all.end());
  run_once(model, options, folder.path(), pieces, runs);
  OnceRun const& full = runs[0];
  OnceRun const& windows = runs[1];
  CHECK(full.mean_kept == 128);
  CHECK(windows.mean_kept == 32);
  CHECK(runs[2].mean_kept == 32);
  CHECK(runs[3].perplexity == full.perplexity);  // the same rows in the same order
  CHECK(runs[4].copy_nll == full.copy_nll);

  // The engine by itself, all tokens at once.
  std::vector<std::int32_t> text = pieces[0].prefix;
  text.insert(text.end(), pieces[0].continuation.begin(), pieces[0].continuation.end());
  auto const count = static_cast<std::int32_t>(text.size());
  Context engine(model, {.tokens = count});
  engine.evaluate(text);
  auto const after = [&](std::vector<double> const& losses) {
    return mean(std::span(losses).subspan(static_cast<std::size_t>(options.prefix)));
  };
  std::printf("NLL of 96 tokens after 128: %.6f full, %.6f by the engine\n", full.passage_nll[0],
              after(engine.losses()));
  CHECK(std::abs(full.passage_nll[0] - after(engine.losses())) < 1e-4);

  AttentionTap tap(
      model,
      [&](TappedAttention const& attention) {
        windowed_attention(attention, options.prefix, {.sink = 4, .window = 28});
      },
      TapMode::replace);
  Context masked(model, {.tokens = count, .observer = &tap});
  masked.evaluate(text);
  std::printf("32 tokens of the 128 kept: %.6f evicted, %.6f masked\n", windows.passage_nll[0], after(masked.losses()));
  CHECK(std::abs(windows.passage_nll[0] - after(masked.losses())) < 1e-4);
  CHECK(windows.passage_nll[0] > full.passage_nll[0]);

  std::printf("copy: %.3f full, %.3f streaming_llm, %.3f kvzip\n", full.copy_nll, windows.copy_nll, runs[2].copy_nll);
  CHECK(runs[2].copy_nll < windows.copy_nll - 0.5);
  CHECK(std::abs(runs[2].closed.share) < 10);

  // What ran is not run again, and a damaged file is refused.
  auto again = runs;
  auto const written = folder.entries();
  run_once(model, options, folder.path(), pieces, again);
  CHECK(folder.entries() == written);
  CHECK(again[2].passage_nll == runs[2].passage_nll);
}

TEST_CASE("lists of words with numbers: the same every time, and questions after some of them") {
  auto const pairs = lookup_pairs(50, 3);
  CHECK(pairs == lookup_pairs(50, 3));
  CHECK(pairs != lookup_pairs(50, 5));
  CHECK(pairs.front() == std::pair<std::string, std::string>{lookup_pairs(1, 3).front()});
  for (auto const& [word, number] : pairs) {
    CHECK(number.size() == 4);
    CHECK(std::count_if(pairs.begin(), pairs.end(), [&](auto const& pair) { return pair.first == word; }) == 1);
  }
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  LookupText const text = lookup_text(model, 200, 5, 7);
  CHECK(std::ssize(text.list) <= 200);
  CHECK(std::ssize(text.list) > 180);
  CHECK(text.digits.size() == 20);  // the model's tokens are single digits
  std::string const list = model.detokenize(text.list);
  std::string const questions = model.detokenize(text.questions);
  CHECK(list.find(questions.substr(0, questions.find('\n'))) != std::string::npos);
  for (std::int64_t const at : text.digits) {
    CHECK(std::isdigit(static_cast<unsigned char>(model.piece(text.questions[static_cast<std::size_t>(at)])[0])) != 0);
  }
  check_error<ha::ArgumentError>([&] { (void)lookup_text(model, 20, 5, 7); },
                                 {"tokens of a list", "room for 5 pairs", "20", "lookup_text"});
}

TEST_CASE("a plan's windows at another size: the mean is that size, proportions stay") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 4, .window = 100});
  table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 300});
  table.set(1, 0, ha::Prune{});
  table.set(1, 1, ha::Full{});
  for (std::int64_t const size : {8, 64, 250, 600}) {
    INFO(size);
    ha::PolicyTable const scaled = scaled_windows(table, size, 1024);
    std::int64_t held = 0;
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t head = 0; head < 2; ++head) held += ha::held_tokens(scaled.at(layer, head), 1024);
    }
    CHECK(held == 4 * size);
    CHECK(scaled.at(1, 0).is<ha::Prune>());
    CHECK(ha::held_tokens(scaled.at(0, 1), 1024) >= ha::held_tokens(scaled.at(0, 0), 1024));
  }
  check_error<ha::ArgumentError>([&] { (void)scaled_windows(table, 1, 1024); },
                                 {"tokens a KV head", "at least those of the sinks", "1", "scaled_windows"});
}

TEST_CASE("measurements of an earlier run are read whole or refused") {
  std::string const good =
      R"({"mean_kept": 3.5, "select_seconds": 0.1, "compress_seconds": 0, "right": [0, 1], "losses": [1.5, 2]})";
  OnceText const text = parse_once_text(good, "x.json", 2);
  CHECK(text == OnceText{{1.5, 2}, {0, 1}, 3.5, 0.1, 0});
  check_error<ha::FormatError>([&] { (void)parse_once_text(good, "x.json", 3); },
                               {"measurements", "3 losses", "", "x"});
  check_error<ha::FormatError>([&] { (void)parse_once_text(replaced(good, "[0, 1]", "[0, 2]"), "x.json", 2); },
                               {"measurements", "remove the file", "", "x.json"});
  check_error<ha::FormatError>([&] { (void)parse_once_text(replaced(good, "3.5", "-1"), "x.json", 2); },
                               {"measurements", "remove the file", "", "x.json"});
}
