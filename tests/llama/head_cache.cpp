// The engine's attention on a per-head cache, its own memory emptied after every step.

#include "llama/models.hpp"
#include "tools/llama/cached_model.hpp"
#include "tools/llama/policy_run.hpp"

#include <headaware/classify/builders.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

/// −log p(token i + 1 | tokens 0 … i), the text read in chunks through a cache under a table of policies.
std::vector<double> losses(Model const& model, ha::PolicyTable const& table, std::vector<std::int32_t> const& tokens,
                           std::size_t chunk) {
  CachedModel<float> cached(model, table, {}, static_cast<std::int64_t>(tokens.size()),
                            {.chunk = static_cast<std::int32_t>(chunk), .all_logits = true});
  return losses_of(cached, tokens, chunk, [](std::int64_t) {});
}

}  // namespace

TEST_CASE("a full per-head cache leaves the perplexity where the engine's own has it") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(exact_model_path(smollm2));
  auto const tokens = text_tokens(model, 300);
  auto const own = losses(model, ha::table_from_model_config(model.shape(), ha::Full{}), tokens, 64);
  ContextOptions options;
  options.tokens = 300;
  Context engine(model, options);
  engine.evaluate(tokens);
  std::printf("SmolLM2-135M, 300 tokens: perplexity %.5f on a full per-head cache, %.5f on the engine's\n",
              perplexity(own), perplexity(engine.losses()));
  CHECK(std::abs(perplexity(own) - perplexity(engine.losses())) < 1e-3 * perplexity(own));
}

TEST_CASE("evicting in chunks, token by token and masking come to the same") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(exact_model_path(smollm2));
  auto const tokens = text_tokens(model, 200);
  // Every second KV head keeps sinks and a window, the others all or little.
  ha::PolicyTable table = ha::table_from_model_config(model.shape(), ha::SinkWindow{.sink = 4, .window = 40});
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    table.set(layer, 1, ha::Full{});
    if (layer % 5 == 0) table.set(layer, 2, ha::WindowOnly{.window = 16});
  }
  double const chunks = perplexity(losses(model, table, tokens, 64));
  double const pieces = perplexity(losses(model, table, tokens, 7));
  PolicyRun masked(model, PolicyRunOptions{.tokens = 200, .threads = 1});
  double const masks = perplexity(masked.losses(tokens, table));
  std::printf("perplexity %.5f in chunks of 64, %.5f of 7, %.5f with masks\n", chunks, pieces, masks);
  CHECK(std::abs(chunks - pieces) < 1e-3);
  CHECK(std::abs(chunks - masks) < 1e-3);
}

TEST_CASE("a model with sliding windows of its own on a per-head cache") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  Model const model(exact_model_path(gemma3));
  auto const tokens = text_tokens(model, 600);
  auto const table = ha::table_from_model_config(model.shape(), ha::Full{});
  ContextOptions options;
  options.tokens = 600;
  Context engine(model, options);
  engine.evaluate(tokens);
  double const own = perplexity(losses(model, table, tokens, 128));
  CHECK(std::abs(own - perplexity(engine.losses())) < 1e-3 * own);
}
