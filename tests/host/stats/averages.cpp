// What becomes of an observer's sums, on numbers that are known; and observers without anything to average.

#include "support/errors.hpp"

#include <headaware/layout/strided.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr ha::ModelConfig model{
    .num_hidden_layers = 1, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 4};

/// Twelve tokens of one head whose keys are all alike.
struct Tokens {
  std::vector<float> queries = std::vector<float>(12 * 4, 0.5F);
  std::vector<float> keys = std::vector<float>(12 * 4, 0.5F);

  [[nodiscard]] ha::LayerQkv<float, ha::StridedLayout, ha::StridedLayout> layer() const {
    auto const layout = ha::strided_bhsd(1, 1, 12, 4);
    return {.queries = queries.data(),
            .keys = keys.data(),
            .query_layout = layout,
            .key_layout = layout,
            .num_query_heads = 1,
            .num_kv_heads = 1,
            .tokens = 12,
            .head_dim = 4};
  }
};

}  // namespace

TEST_CASE("averages over chunks of known sums", "[stats]") {
  ha::ChunkSums first(1);
  first.rows = 4;
  first.uniformity_rows = 3;  // all but the first of the chunk
  first.entropy = 4;
  first.sink = 2.8;
  first.local = 2.4;
  first.uniformity = 6;
  first.distances[0] = 2;
  ha::ChunkSums second(1);
  second.rows = 2;
  second.uniformity_rows = 1;
  second.entropy = 6;
  second.sink = 0.2;
  second.local = 0.4;
  second.uniformity = 4;
  second.distances[0] = 0.5;
  ha::HeadSums sums(1);
  sums.add(first);
  sums.add(second);
  ha::HeadStatistics const statistics = sums.statistics(0, 0);
  CHECK(statistics.mean_entropy == 2);      // of 1 and 3
  CHECK(statistics.std_entropy == 1);       // the population's, not the sample's
  CHECK(statistics.uniformity_score == 3);  // of 6 / 3 and 4 / 1
  CHECK(std::abs(statistics.sink_ratio - 0.4) < 1e-15);
  CHECK(statistics.relative_position_dist == std::vector{0.375});  // of 0.5 and 0.25
  // Of 1 - 0.7 - 0.6, which counts as none, and 1 - 0.1 - 0.2.
  CHECK(std::abs(statistics.position_preference.global - 0.35) < 1e-15);
}

TEST_CASE("an observer's default scale is that of attention", "[stats]") {
  Tokens tokens;
  for (std::size_t i = 0; i < tokens.keys.size(); ++i) tokens.keys[i] = static_cast<float>(i % 7);
  auto const entropy = [&](ha::AttentionScore const& score) {
    ha::AttentionObserver observer(model);
    observer.observe(0, tokens.layer(), score);
    return observer.statistics().heads.front().mean_entropy;
  };
  CHECK(entropy({}) == entropy({.scale = 0.5F}));  // 1 / sqrt(4)
  CHECK(entropy({}) != entropy({.scale = 1}));
  CHECK(entropy({.soft_cap = 2}) == entropy({.scale = 0.5F, .soft_cap = 2}));
}

TEST_CASE("statistics of nothing say what there was", "[stats]") {
  ha::AttentionObserver observer(model);
  check_error<ha::ArgumentError>([&] { (void)observer.statistics(); },
                                 {"chunks seen", "at least one", "none", "layer 0, head 0"});
  Tokens tokens;
  tokens.keys[0] = std::numeric_limits<float>::quiet_NaN();  // which every query sees
  observer.observe(0, tokens.layer());
  CHECK(observer.invalid_rows() == 12);
  check_error<ha::ArgumentError>([&] { (void)observer.statistics(); },
                                 {"valid rows", "at least one", "all 12 are invalid", "layer 0, head 0"});
}

TEST_CASE("an observer that was moved from observes a model without layers", "[stats]") {
  Tokens const tokens;
  ha::AttentionObserver observer(model);
  observer.observe(0, tokens.layer());
  ha::AttentionObserver moved(std::move(observer));
  CHECK(moved.head(0, 0).head.rows == 12);
  // NOLINTBEGIN(bugprone-use-after-move): what it then does is what is asked here.
  CHECK(observer.statistics().heads.empty());
  CHECK(observer.sums().empty());
  CHECK(observer.invalid_rows() == 0);
  CHECK_THROWS_AS(observer.observe(0, tokens.layer()), ha::ArgumentError);
  CHECK_THROWS_AS(observer.head(0, 0), ha::ArgumentError);
  CHECK_THROWS_AS(moved.merge(observer), ha::ArgumentError);
  CHECK_THROWS_AS(observer.merge(moved), ha::ArgumentError);
  CHECK_THROWS_AS(observer.add_sums(moved.sums()), ha::ArgumentError);
  observer = std::move(moved);
  CHECK(observer.head(0, 0).head.rows == 12);
  CHECK(moved.statistics().heads.empty());
  // NOLINTEND(bugprone-use-after-move)
}

TEST_CASE("an observer refuses pointers that no element can have", "[stats]") {
  Tokens const tokens;
  ha::AttentionObserver observer(model);
  auto const shifted = [](float const* data) {
    return reinterpret_cast<float const*>(reinterpret_cast<std::uintptr_t>(data) + 2);
  };
  auto layer = tokens.layer();
  auto const refused = [&](char const* what) {
    check_error<ha::ArgumentError>([&] { observer.observe(0, layer); },
                                   {what, "aligned to its elements", "misaligned", "AttentionObserver::observe"});
    layer = tokens.layer();
  };
  layer.queries = shifted(layer.queries);
  refused("queries");
  layer.keys = shifted(layer.keys);
  refused("keys");
  layer.values = shifted(tokens.keys.data());
  layer.value_layout = layer.key_layout;
  refused("values");
  layer.values = tokens.keys.data();
  layer.value_layout = layer.key_layout;
  layer.output_factors = shifted(tokens.keys.data());
  refused("output factors");
}
