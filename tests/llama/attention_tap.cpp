#include "tools/llama/attention_tap.hpp"

#include "llama/models.hpp"
#include "support/errors.hpp"
#include "tools/llama/reference_attention.hpp"
#include "tools/llama/tensor_data.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

/// A layer's attention as it was handed over, kept.
struct Kept {
  TappedAttention layer;
  std::vector<float> queries;
  std::vector<float> keys;
  std::vector<float> values;

  explicit Kept(TappedAttention const& tapped)
      : layer(tapped),
        queries(tapped.queries, tapped.queries + tapped.tokens * tapped.num_query_heads * tapped.head_dim),
        keys(tapped.keys, tapped.keys + tapped.tokens * tapped.num_kv_heads * tapped.head_dim),
        values(tapped.values, tapped.values + tapped.tokens * tapped.num_kv_heads * tapped.head_dim) {
    layer.queries = queries.data();
    layer.keys = keys.data();
    layer.values = values.data();
  }
  Kept(Kept const&) = delete;
  Kept& operator=(Kept const&) = delete;
};

/// Lets a tap see the graph, and itself takes the engine's probabilities and outputs; can hide nodes from the tap.
class Checker : public NodeObserver {
 public:
  explicit Checker(AttentionTap& tap) : tap_(tap) {}
  std::string hidden;                             ///< nodes with this operation and name are not shown
  std::vector<std::vector<float>> probabilities;  ///< by layer, [num_query_heads, tokens, cells]
  std::vector<std::vector<float>> outputs;        ///< by layer, [tokens, num_query_heads · head_dim]

  void begin(std::span<std::int32_t const> positions) override { tap_.begin(positions); }
  bool on_node(ggml_tensor* node, bool asking) override {
    bool const named = !hidden.empty() && std::string(ggml_op_desc(node)) + " " + node->name == hidden;
    bool const wanted = !named && tap_.on_node(node, asking);
    auto const is = [&](char const* name) { return std::strncmp(node->name, name, std::strlen(name)) == 0; };
    bool const checked = is("kq_soft_max-") || is("kqv_out-");
    if (!asking && is("kq_soft_max-")) probabilities.push_back(floats_of(node));
    if (!asking && is("kqv_out-")) outputs.push_back(floats_of(node));
    return wanted || checked;
  }
  void finish() override { tap_.finish(); }

 private:
  AttentionTap& tap_;
};

/// Losses of the engine alone and of the engine with the reference's attention in the place of its own.
std::pair<std::vector<double>, std::vector<double>> losses_of_both(Model const& model,
                                                                   std::vector<std::int32_t> const& tokens,
                                                                   bool flash_attention,
                                                                   std::map<std::int32_t, std::int32_t>& windows) {
  auto const count = static_cast<std::int32_t>(tokens.size());
  std::vector<double> own;
  {
    Context alone(model, {.tokens = count, .flash_attention = flash_attention});
    alone.evaluate(tokens);
    own = alone.losses();
  }
  AttentionTap tap(
      model,
      [&](TappedAttention const& layer) {
        windows[layer.layer] = layer.sliding_window;
        // So that an output left as it was would show.
        std::fill_n(layer.output, layer.tokens * layer.num_query_heads * layer.head_dim, 0.0F);
        reference_attention(layer, layer.output);
      },
      TapMode::replace);
  Context replaced(model, {.tokens = count, .flash_attention = flash_attention, .observer = &tap});
  replaced.evaluate(tokens);
  return {own, replaced.losses()};
}

double mean(std::vector<double> const& losses) { return std::log(perplexity(losses)); }

}  // namespace

TEST_CASE("what the tap hands over gives the engine's own probabilities and outputs") {
  for (std::string const name : {smollm2, gemma3}) {
    HEADAWARE_REQUIRE_MODEL(name);
    Model const model(exact_model_path(name));
    std::vector<std::unique_ptr<Kept>> layers;
    AttentionTap tap(model, [&](TappedAttention const& layer) {
      CHECK(layer.output == nullptr);
      layers.push_back(std::make_unique<Kept>(layer));
    });
    Checker checker(tap);
    Context context(model, {.tokens = 48, .observer = &checker});
    auto const tokens = text_tokens(model, 48);
    context.evaluate(tokens, 7);

    auto const& shape = model.shape();
    REQUIRE(layers.size() == static_cast<std::size_t>(shape.num_layers()));
    REQUIRE(checker.probabilities.size() == layers.size());
    REQUIRE(checker.outputs.size() == layers.size());
    double worst_probability = 0;
    double worst_output = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      auto const& layer = layers[l]->layer;
      REQUIRE(layer.layer == static_cast<std::int32_t>(l));
      ha::LayerShape const& expected = shape.layer(layer.layer);
      REQUIRE(layer.num_query_heads == expected.num_query_heads);
      REQUIRE(layer.num_kv_heads == expected.num_kv_heads);
      REQUIRE(layer.head_dim == expected.head_dim);
      REQUIRE(layer.value_dim == expected.value_dim);
      REQUIRE(layer.tokens == 48);
      REQUIRE(layer.soft_cap == 0);
      REQUIRE(layer.sliding_window == expected.window);
      std::size_t const cells = checker.probabilities[l].size() / static_cast<std::size_t>(48 * layer.num_query_heads);
      for (std::int32_t head = 0; head < layer.num_query_heads; ++head) {
        for (std::int64_t query = 0; query < layer.tokens; ++query) {
          std::vector<double> p(static_cast<std::size_t>(query + 1));
          attention_probabilities(layer, head, query, p);
          for (std::size_t key = 0; key < p.size(); ++key) {
            auto const row = static_cast<std::size_t>(head * layer.tokens + query);
            worst_probability =
                std::max(worst_probability, std::abs(p[key] - checker.probabilities[l][row * cells + key]));
          }
        }
      }
      std::vector<float> output(checker.outputs[l].size());
      reference_attention(layer, output.data());
      double largest = 0;
      double error = 0;
      for (std::size_t i = 0; i < output.size(); ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(output[i])));
        error = std::max(error, std::abs(static_cast<double>(output[i]) - checker.outputs[l][i]));
      }
      worst_output = std::max(worst_output, error / largest);
    }
    std::printf("%s: probabilities differ by %.1e, outputs by %.1e of the largest\n", name.c_str(), worst_probability,
                worst_output);
    CHECK(worst_probability < 1e-5);
    CHECK(worst_output < 1e-5);
  }
}

TEST_CASE("positions are those of the evaluation") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  std::vector<std::int32_t> positions;
  AttentionTap tap(
      model, [&](TappedAttention const& layer) { positions.assign(layer.positions.begin(), layer.positions.end()); });
  Context context(model, {.tokens = 8, .all_logits = false, .observer = &tap});
  auto const tokens = text_tokens(model, 8);
  context.evaluate(tokens, 100);
  CHECK(positions == std::vector<std::int32_t>{100, 101, 102, 103, 104, 105, 106, 107});
  // A shorter one in the same context.
  context.evaluate(std::span(tokens).first(3));
  CHECK(positions == std::vector<std::int32_t>{0, 1, 2});
}

TEST_CASE("own attention in the place of the engine's leaves its losses as they were") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(exact_model_path(smollm2));
  auto const tokens = text_tokens(model, 512);
  for (bool const flash : {false, true}) {
    std::map<std::int32_t, std::int32_t> windows;
    auto const [own, replaced] = losses_of_both(model, tokens, flash, windows);
    std::printf("SmolLM2-135M, 512 tokens%s: perplexity %.5f, replaced %.5f\n", flash ? ", flash" : "", perplexity(own),
                perplexity(replaced));
    CHECK(std::abs(mean(own) - mean(replaced)) < 1e-3);
    CHECK(windows.size() == 30);
    CHECK(std::all_of(windows.begin(), windows.end(), [](auto const& w) { return w.second == 0; }));
  }
}

TEST_CASE("a layer's sliding window is the model's, and its mask's") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  Model const model(exact_model_path(gemma3));
  auto const tokens = text_tokens(model, 576);  // more than the windows
  std::map<std::int32_t, std::int32_t> windows;
  auto const [own, replaced] = losses_of_both(model, tokens, false, windows);
  std::printf("Gemma 3 270M, 576 tokens: perplexity %.5f, replaced %.5f\n", perplexity(own), perplexity(replaced));
  CHECK(std::abs(mean(own) - mean(replaced)) < 1e-3);
  REQUIRE(windows.size() == 18);
  for (auto const& [layer, window] : windows) {
    bool const global = layer == 5 || layer == 11 || layer == 17;
    CHECK(window == (global ? 0 : 512));
  }
}

TEST_CASE("what the handler leaves in the output is what the model goes on with") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  auto const tokens = text_tokens(model, 32);
  auto const losses = [&](AttentionTap::Handler handler, TapMode mode) {
    AttentionTap tap(model, std::move(handler), mode);
    Context context(model, {.tokens = 32, .observer = &tap});
    context.evaluate(tokens);
    return context.losses();
  };
  auto const observed = losses([](TappedAttention const&) {}, TapMode::observe);
  CHECK(losses([](TappedAttention const&) {}, TapMode::replace) == observed);
  auto const muted = losses(
      [](TappedAttention const& layer) {
        std::fill_n(layer.output, layer.tokens * layer.num_query_heads * layer.head_dim, 0.0F);
      },
      TapMode::replace);
  CHECK(mean(muted) > mean(observed) + 1);
}

TEST_CASE("an exception in the handler ends the evaluation and comes back, and the context can go on") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  auto const tokens = text_tokens(model, 16);
  int calls = 0;
  bool broken = true;
  AttentionTap tap(model, [&](TappedAttention const& layer) {
    ++calls;
    if (broken && layer.layer == 3) throw std::runtime_error("enough");
  });
  Context context(model, {.tokens = 16, .observer = &tap});
  CHECK_THROWS_WITH(context.evaluate(tokens), "enough");
  CHECK(calls == 4);
  broken = false;
  context.evaluate(tokens);
  CHECK(calls == 34);
  Context alone(model, {.tokens = 16});
  alone.evaluate(tokens);
  CHECK(context.losses() == alone.losses());
}

TEST_CASE("a node that is missing is named") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(model_path(smollm2));
  auto const tokens = text_tokens(model, 8);
  AttentionTap tap(model, [](TappedAttention const&) {});
  Checker checker(tap);
  std::vector<std::string> names;
  auto const check = [&](bool flash, std::string const& hidden, ha::ErrorDetail const& parts) {
    Context context(model, {.tokens = 8, .flash_attention = flash, .all_logits = false, .observer = &checker});
    checker.hidden = hidden;
    INFO("without " << hidden);
    check_error<ha::Error>([&] { context.evaluate(tokens); }, parts);
  };
  std::string const where = "architecture 'llama'";
  check(false, "SOFT_MAX kq_soft_max-4", {"scale and mask", "SOFT_MAX", "none", where + ", node CONT 'kqv_out-4'"});
  check(false, "MUL_MAT kq-29", {"queries", "MUL_MAT node with cache_k_l29", "none", where});
  check(false, "CONT kqv_out-0", {"attention of layer 0", "CONT", "none in the whole graph", where});
  check(false, "SET_ROWS cache_k_l2 (view)", {"keys", "SET_ROWS node that stores them in cache_k_l2", "none", where});
  check(true, "SET_ROWS cache_v_l2 (view)", {"values", "cache_v_l2", "none", where + ", node FLASH_ATTN_EXT"});
}
