#include "tools/llama/engine.hpp"

#include "llama/models.hpp"
#include "support/errors.hpp"
#include "tools/llama/output_projection.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

TEST_CASE("a model's shape is read from its file") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  CHECK(model.info().architecture == "llama");
  CHECK_FALSE(model.info().name.empty());
  CHECK(model.info().hidden_size == 576);
  CHECK(model.info().vocabulary == 49152);
  CHECK_FALSE(model.info().recurrent);
  CHECK(model.shape() == ha::ModelConfig{30, 9, 3, 64});
}

TEST_CASE("a head need not be as wide as hidden size by heads") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  Model const model(model_path(gemma3));
  CHECK(model.info().architecture == "gemma3");
  CHECK(model.info().hidden_size == 640);
  REQUIRE(model.shape().num_layers() == 18);
  for (ha::LayerShape const& layer : model.shape().layers()) {
    CHECK(layer.num_query_heads == 4);
    CHECK(layer.num_kv_heads == 1);
    CHECK(layer.head_dim == 256);
    CHECK((layer.window == 0 || layer.window == 512));
  }
}

TEST_CASE("text survives being made into tokens and back") {
  std::string const text = "Robert Boulter is an English film actor.\n  Überall, 東京, 1999 — \"quoted\".";
  for (std::string const name : {smollm2, gemma3}) {
    HEADAWARE_REQUIRE_MODEL(name);
    Model const model(model_path(name));
    auto const tokens = model.tokenize(text, false);
    CHECK(model.detokenize(tokens) == text);
    std::string pieces;
    for (auto const token : tokens) pieces += model.piece(token);
    CHECK(pieces == text);

    auto const whole = model.tokenize(text, true);
    CHECK(model.begins_with_bos() == (name == gemma3));
    if (model.begins_with_bos()) {
      CHECK(whole.front() == model.bos());
      CHECK(std::vector(tokens.begin(), tokens.end()) == std::vector(whole.begin() + 1, whole.end()));
    } else {
      CHECK(whole == tokens);
    }
    CHECK(model.tokenize("", false).empty());
  }
}

TEST_CASE("a path that is no model says what to do") {
  check_error<ha::ArgumentError>([] { Model("HuggingFaceTB/SmolLM2-135M"); },
                                 {"model", "GGUF", "a name on a hub: download its GGUF file and give that path", ""});
  check_error<ha::ArgumentError>([] { Model("./missing/model.gguf"); }, {"model", "GGUF", "no such file", ""});
  check_error<ha::ArgumentError>([] { Model("/"); }, {"model", "GGUF", "a folder", ""});
  TemporaryFolder const folder;
  ha::write_file(folder / "text.gguf", "not a model");
  check_error<ha::FormatError>([&] { Model(folder / "text.gguf"); }, {"model", "GGUF", "", "text.gguf"});
  check_error<ha::ArgumentError>([&] { (void)exact_copy(folder / "none.gguf", folder.path()); },
                                 {"model", "GGUF", "none.gguf", "exact_copy"});
  check_error<ha::FileError>([&] { (void)exact_copy(folder / "text.gguf", folder.path()); },
                             {"single precision", "", "", "text-11-"});
  CHECK(folder.entries() == 1);
}

TEST_CASE("evaluations begin with an empty memory, and refuse what does not fit") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  Context context(model, {.tokens = 64});
  auto const tokens = text_tokens(model, 64);
  context.evaluate(tokens);
  auto const losses = context.losses();
  REQUIRE(losses.size() == 63);
  CHECK(perplexity(losses) > 1);
  CHECK(perplexity(losses) < 1000);
  context.evaluate(tokens);
  CHECK(context.losses() == losses);
  CHECK(context.logits(63).size() == 49152);

  std::vector<std::int32_t> const more(65, 1);
  check_error<ha::ArgumentError>([&] { context.evaluate(more); }, {"tokens", "1 to 64", "65", "evaluate"});
  check_error<ha::ArgumentError>([&] { context.evaluate({}); }, {"tokens", "1 to 64", "0", "evaluate"});
  std::vector<std::int32_t> const wrong{49152};
  check_error<ha::ArgumentError>([&] { context.evaluate(wrong); }, {"token", "[0, 49152)", "49152", "evaluate"});
  check_error<ha::ArgumentError>([&] { (void)context.logits(64); }, {"index", "[0, 64)", "64", "logits"});

  Context last(model, {.tokens = 64, .all_logits = false});
  last.evaluate(tokens);
  CHECK(last.logits(63).size() == 49152);
  check_error<ha::ArgumentError>([&] { (void)last.losses(); }, {"index", "the last", "0", "logits"});
}

TEST_CASE("a layer's output projection is the same matrix in every precision, but for rounding") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  OutputProjections const quantised(model.path(), model.info(), model.shape());
  OutputProjections const exact(exact_model_path(smollm2), model.info(), model.shape());
  for (std::int32_t const layer : {0, 29}) {
    auto const matrix = quantised.layer(layer);
    REQUIRE(matrix.size() == 576U * 576U);
    CHECK(matrix == exact.layer(layer));
    CHECK(std::any_of(matrix.begin(), matrix.end(), [](float x) { return x != 0; }));
    CHECK(std::all_of(matrix.begin(), matrix.end(), [](float x) { return std::abs(x) < 100; }));
  }
  check_error<ha::ArgumentError>([&] { (void)exact.layer(30); }, {"layer", "[0, 30)", "30", ""});
  ha::ModelShape const other = ha::ModelConfig{30, 8, 2, 64};
  check_error<ha::FormatError>([&] { (void)OutputProjections(model.path(), model.info(), other).layer(0); },
                               {"blk.0.attn_output.weight", "576 rows of 512", "576 rows of 576", "Q4_1"});
}
