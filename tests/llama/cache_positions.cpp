// Keys at positions inside the cache.

#include "tools/llama/cache_positions.hpp"

#include "llama/models.hpp"
#include "support/errors.hpp"
#include "support/rotary.hpp"
#include "tools/llama/attention_tap.hpp"
#include "tools/llama/key_rotations.hpp"
#include "tools/llama/policy_run.hpp"
#include "tools/llama/residual_norms.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

/// One layer's attention by its definition: of each query the kept keys, re-rotated to their slots one by one.
std::vector<double> by_definition(TappedAttention const& layer, ha::PolicyTable const& table, Rotary const& rotary) {
  auto const width = static_cast<std::size_t>(layer.head_dim);
  std::vector<double> output(static_cast<std::size_t>(layer.tokens * layer.num_query_heads) * width);
  auto const row = [&](float const* from, std::int64_t index) {
    return std::vector<double>(from + index * layer.head_dim, from + (index + 1) * layer.head_dim);
  };
  for (std::int64_t t = 0; t < layer.tokens; ++t) {
    for (std::int32_t head = 0; head < layer.num_query_heads; ++head) {
      std::int32_t const kv_head = head / (layer.num_query_heads / layer.num_kv_heads);
      std::vector<std::int64_t> kept;
      table.at(layer.layer, kv_head).visit([&](auto const& policy) {
        for (std::int64_t key = 0; key <= t; ++key) {
          if (policy.keeps(key, t + 1)) kept.push_back(key);
        }
      });
      if (kept.empty()) continue;
      auto query = row(layer.queries, t * layer.num_query_heads + head);
      rotary.turn(query, static_cast<double>(std::ssize(kept) - 1 - t));
      std::vector<double> weights;
      double sum = 0;
      for (std::size_t slot = 0; slot < kept.size(); ++slot) {
        auto key = row(layer.keys, kept[slot] * layer.num_kv_heads + kv_head);
        rotary.turn(key, static_cast<double>(slot) - static_cast<double>(kept[slot]));
        double score = 0;
        for (std::size_t i = 0; i < width; ++i) score += query[i] * key[i];
        weights.push_back(std::exp(score * layer.scale));
        sum += weights.back();
      }
      for (std::size_t slot = 0; slot < kept.size(); ++slot) {
        auto const value = row(layer.values, kept[slot] * layer.num_kv_heads + kv_head);
        for (std::size_t i = 0; i < width; ++i) {
          output[static_cast<std::size_t>(t * layer.num_query_heads + head) * width + i] +=
              weights[slot] / sum * value[i];
        }
      }
    }
  }
  return output;
}

/// Keys and values of all layers of tokens that begin at a position.
std::vector<std::vector<float>> keys_at(Model const& model, std::vector<std::int32_t> const& tokens,
                                        std::int32_t position) {
  std::vector<std::vector<float>> keys;
  AttentionTap tap(model, [&](TappedAttention const& layer) {
    keys.emplace_back(layer.keys, layer.keys + layer.tokens * layer.num_kv_heads * layer.head_dim);
  });
  Context context(model, {.tokens = static_cast<std::int32_t>(tokens.size()), .observer = &tap});
  context.evaluate(tokens, position);
  return keys;
}

void check_rotations(std::string const& name) {
  Model const model(exact_model_path(name));
  auto const tokens = text_tokens(model, 24);
  constexpr std::int32_t shift = 37;
  auto const rotations = key_rotations(model);
  REQUIRE(static_cast<std::int32_t>(rotations.size()) == model.shape().num_layers());
  auto const before = keys_at(model, tokens, 0);
  auto after = keys_at(model, tokens, shift);
  auto const width = static_cast<std::size_t>(model.shape().layer(0).head_dim);
  for (std::size_t layer = 0; layer < rotations.size(); ++layer) {
    double largest = 0;
    double size = 0;
    for (std::size_t row = 0; row < after[layer].size() / width; ++row) {
      float* const key = after[layer].data() + row * width;
      for (std::int32_t i = 0; i < rotations[layer].rotary_dim() / 2; ++i) {
        auto const pair = ha::rotary_pair(rotations[layer], i);
        rotations[layer].turn_back(shift, i, key[pair.a], key[pair.b]);
      }
      for (std::size_t i = 0; i < width; ++i) {
        double const expected = before[layer][row * width + i];
        largest = std::max(largest, std::abs(key[i] - expected));
        size = std::max(size, std::abs(expected));
      }
    }
    CAPTURE(name, layer, largest, size);
    CHECK(largest < 2e-3 * size);
  }
}

}  // namespace

TEST_CASE("attention at positions of the cache is that over keys re-rotated to their slots") {
  constexpr std::int64_t tokens = 40;
  constexpr std::int32_t heads = 6;
  constexpr std::int32_t num_kv_heads = 3;
  std::mt19937 random(20);
  std::normal_distribution<float> normal;
  for (std::int64_t const head_dim : {8, 12}) {
    for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
      constexpr std::int32_t rotary_dim = 8;
      auto const rotary = Rotary::of_base(pairing, rotary_dim, 100);
      auto const rotation = ha::KeyRotation::from_base(pairing, rotary_dim, 100);
      auto const values = [&](std::int64_t count) {
        std::vector<float> result(static_cast<std::size_t>(count * head_dim * tokens));
        for (float& value : result) value = normal(random);
        return result;
      };
      auto const queries = values(heads);
      auto const keys = values(num_kv_heads);
      auto const contents = values(num_kv_heads);
      std::vector<float> output(queries.size(), 7);
      std::vector<std::int32_t> const positions(tokens);
      TappedAttention const layer{.layer = 1,
                                  .queries = queries.data(),
                                  .keys = keys.data(),
                                  .values = contents.data(),
                                  .num_query_heads = heads,
                                  .num_kv_heads = num_kv_heads,
                                  .tokens = tokens,
                                  .head_dim = head_dim,
                                  .value_dim = head_dim,
                                  .positions = positions,
                                  .scale = 0.3F,
                                  .output = output.data()};
      for (auto const& policy : std::vector<ha::AnyPolicy<>>{
               ha::SinkWindow{.sink = 4, .window = 9}, ha::SinkWindow{.sink = 1, .window = 50},
               ha::SinkWindow{.sink = 3, .window = 1}, ha::WindowOnly{.window = 5}, ha::Full{}, ha::Prune{}}) {
        ha::PolicyTable table(2, num_kv_heads, ha::Full{});
        table.set(1, 0, policy);
        table.set(1, 2, policy);
        attend_at_cache_positions(layer, table, rotation);
        auto const expected = by_definition(layer, table, rotary);
        double largest = 0;
        for (std::size_t i = 0; i < expected.size(); ++i)
          largest = std::max(largest, std::abs(output[i] - expected[i]));
        CAPTURE(head_dim, pairing == ha::RotaryPairing::neox, policy.name(), largest);
        CHECK(largest < 1e-5);
      }
    }
  }
}

TEST_CASE("keys are rotated as the engine rotates them") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  check_rotations(smollm2);
}

TEST_CASE("keys of layers with rotations of their own are rotated as the engine rotates them") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  check_rotations(gemma3);
}

TEST_CASE("where nothing was evicted the positions of the cache are those of the text") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(exact_model_path(smollm2));
  auto const tokens = text_tokens(model, 96);
  PolicyRun text(model, {.tokens = 96});
  PolicyRun cache(model, {.tokens = 96, .positions = KeyPositions::cache});
  ha::PolicyTable const table(30, 3, ha::SinkWindow{.sink = 4, .window = 60});
  auto const expected = text.losses(tokens, table);
  auto const got = cache.losses(tokens, table);
  for (std::size_t i = 0; i < 63; ++i) CHECK(std::abs(got[i] - expected[i]) < 1e-3);
  CHECK(got != expected);
}

TEST_CASE("the residual stream grows with depth") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  Model const model(exact_model_path(smollm2));
  CalibrationText::Pieces const pieces{text_tokens(model, 64)};
  auto const norms = residual_norms(model, pieces, 32, 1);
  REQUIRE(norms.size() == 30);
  for (double const norm : norms) CHECK(norm > 0);
  CHECK(norms[28] > 20 * norms[0]);
  check_error<ha::ArgumentError>([&] { (void)residual_norms(model, pieces, 64, 1); }, {"first_query", "64", "64", ""});
}
