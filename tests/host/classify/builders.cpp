#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/compressor.hpp>
#include <headaware/io/duo_gates.hpp>
#include <headaware/io/head_classifications.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ha = headaware;
using ha::Full;
using ha::HeadType;
using ha::Prune;
using ha::SinkWindow;
using ha::WindowOnly;
using Policy = ha::AnyPolicy<>;

namespace {

std::vector<ha::HeadClassification> heads_of(std::int32_t layers, std::vector<HeadType> const& types) {
  std::vector<ha::HeadClassification> heads;
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    for (std::size_t h = 0; h < types.size(); ++h) {
      ha::HeadClassification c;
      c.layer_idx = layer;
      c.head_idx = static_cast<std::int32_t>(h);
      c.head_type = types[h];
      heads.push_back(c);
    }
  }
  return heads;
}

constexpr ha::ModelConfig model(std::int32_t layers, std::int32_t heads, std::int32_t num_kv_heads) {
  return {
      .num_hidden_layers = layers, .num_attention_heads = heads, .num_key_value_heads = num_kv_heads, .head_dim = 64};
}

struct Wide {
  static constexpr std::string_view name = "wide";
  std::int32_t window = 1;
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token >= length - 2 * std::int64_t{window};
  }
  friend constexpr bool operator==(Wide const&, Wide const&) = default;
};

}  // namespace

TEST_CASE("each head type has its policy", "[classify]") {
  auto const careful = ha::TypePolicies::conservative();
  CHECK(careful[HeadType::sink_positional] == Policy(SinkWindow{4, 8}));
  CHECK(careful[HeadType::true_positional] == Policy(WindowOnly{8}));
  CHECK(careful[HeadType::sink_mixed] == Policy(SinkWindow{4, 24}));
  CHECK(careful[HeadType::gathering] == Policy(Full{}));
  CHECK(careful[HeadType::mixed] == Policy(Full{}));
  CHECK(careful[HeadType::dead] == Policy(Prune{}));
  CHECK(careful[HeadType::positional] == Policy(SinkWindow{4, 8}));

  auto bold = ha::TypePolicies::aggressive();
  CHECK(bold[HeadType::mixed] == Policy(SinkWindow{4, 64}));
  bold[HeadType::mixed] = Full{};
  CHECK(bold == careful);
}

TEST_CASE("a recommended window replaces the window of policies that have one", "[classify]") {
  auto policies = ha::TypePolicies::conservative();
  ha::HeadClassification c;
  c.recommended_window = 100;
  c.head_type = HeadType::sink_mixed;
  CHECK(policies.policy_of(c) == Policy(SinkWindow{4, 100}));
  c.head_type = HeadType::true_positional;
  CHECK(policies.policy_of(c) == Policy(WindowOnly{100}));
  c.head_type = HeadType::gathering;
  CHECK(policies.policy_of(c) == Policy(Full{}));
  c.head_type = HeadType::sink_mixed;
  c.recommended_window = -1;
  CHECK(policies.policy_of(c) == Policy(SinkWindow{4, 24}));
  c.recommended_window = 100;
  policies.use_recommended_window = false;
  CHECK(policies.policy_of(c) == Policy(SinkWindow{4, 24}));

  // Sinks are the head's where it says that it keeps some.
  policies = ha::TypePolicies::conservative();
  c.sink_size = 16;
  CHECK(policies.policy_of(c) == Policy(SinkWindow{4, 100}));
  c.keep_sinks = true;
  CHECK(policies.policy_of(c) == Policy(SinkWindow{16, 100}));
  policies.use_sink_size = false;
  CHECK(policies.policy_of(c) == Policy(SinkWindow{4, 100}));
  c.keep_sinks = false;

  using Registry = ha::DefaultRegistry::with<Wide>;
  auto mine = ha::BasicTypePolicies<Registry>::conservative();
  mine[HeadType::sink_mixed] = Wide{3};
  CHECK(mine.policy_of(c) == ha::AnyPolicy<Registry>(Wide{100}));
  auto const table =
      ha::table_from_classifications<Registry>(heads_of(1, {HeadType::sink_mixed}), model(1, 1, 1), mine);
  CHECK(table.at(0, 0) == ha::AnyPolicy<Registry>(Wide{3}));
}

TEST_CASE("classifications of query heads fold onto KV heads", "[classify]") {
  auto heads = heads_of(2, {HeadType::dead, HeadType::dead, HeadType::true_positional, HeadType::sink_mixed,
                            HeadType::gathering, HeadType::dead});
  heads[8].recommended_window = 32;  // layer 1, head 2
  auto const table = ha::table_from_classifications(heads, model(2, 6, 3));
  REQUIRE(table.num_layers() == 2);
  REQUIRE(table.num_kv_heads() == 3);
  CHECK(table.at(0, 0) == Policy(Prune{}));
  CHECK(table.at(0, 1) == Policy(SinkWindow{4, 24}));
  CHECK(table.at(0, 2) == Policy(Full{}));
  CHECK(table.at(1, 1) == Policy(SinkWindow{4, 32}));

  std::swap(heads.front(), heads.back());
  CHECK(ha::table_from_classifications(heads, model(2, 6, 3)) == table);

  auto const single = ha::table_from_classifications(heads, model(2, 6, 6), ha::TypePolicies::aggressive());
  CHECK(single.at(1, 2) == Policy(WindowOnly{32}));
}

TEST_CASE("a group of query heads folds as the caller says", "[classify]") {
  auto const heads = heads_of(1, {HeadType::sink_mixed, HeadType::gathering, HeadType::dead, HeadType::dead});
  auto const least = [](std::span<ha::AnyPolicy<ha::DefaultRegistry> const> policies) {
    return *std::min_element(policies.begin(), policies.end(), [](auto const& a, auto const& b) {
      return a.visit([](auto const& p) { return ha::kept_count(p, 1000); }) <
             b.visit([](auto const& p) { return ha::kept_count(p, 1000); });
    });
  };
  auto const table = ha::table_from_classifications(heads, model(1, 4, 2), ha::TypePolicies::conservative(), least);
  CHECK(table.at(0, 0) == ha::AnyPolicy<ha::DefaultRegistry>(ha::SinkWindow{.sink = 4, .window = 24}));
  CHECK(table.at(0, 1) == ha::AnyPolicy<ha::DefaultRegistry>(ha::Prune{}));
  auto const compressor = ha::Compressor::from_classifications(std::span<ha::HeadClassification const>(heads),
                                                               model(1, 4, 2), ha::TypePolicies::conservative(), least);
  CHECK(compressor.table() == table);
}

TEST_CASE("classifications of another model are an error", "[classify]") {
  auto const heads = heads_of(2, {HeadType::mixed, HeadType::mixed});
  constexpr auto where = "table_from_classifications";
  auto build = [](auto const& list, ha::ModelConfig const& config) {
    return [&list, config] { (void)ha::table_from_classifications(list, config); };
  };
  headaware_test::check_error<ha::ArgumentError>(build(heads, model(1, 2, 1)),
                                                 {"classified layer", "[0, 1)", "1", where});
  headaware_test::check_error<ha::ArgumentError>(build(heads, model(2, 1, 1)),
                                                 {"classified query head", "[0, 1)", "1", where});
  headaware_test::check_error<ha::ArgumentError>(build(heads, model(3, 2, 1)),
                                                 {"classifications", "3 layers x 2", "4", where});
  headaware_test::check_error<ha::ArgumentError>(build(heads, model(2, 3, 1)),
                                                 {"classifications", "2 layers x 3", "4", where});
  headaware_test::check_error<ha::ArgumentError>(build(heads, model(1 << 20, 1 << 30, 1)),
                                                 {"classifications", "1073741824", "4", where});
  headaware_test::check_error<ha::ArgumentError>(build(heads, model(1 << 30, 1, 1)),
                                                 {"num_hidden_layers", "2^20", "1073741824", "ModelShape"});
  headaware_test::check_error<ha::ArgumentError>(build(heads, model(2, 2, 0)),
                                                 {"num_key_value_heads", "> 0", "0", "ModelConfig"});
  auto twice = heads;
  twice[3].head_idx = 0;
  headaware_test::check_error<ha::ArgumentError>(build(twice, model(2, 2, 1)),
                                                 {"duplicate", "once", "layer 1, head 0", where});
  std::vector<ha::HeadClassification> const none;
  headaware_test::check_error<ha::ArgumentError>(build(none, model(1, 1, 1)),
                                                 {"classifications", "1 layers", "0", where});
}

TEST_CASE("a model's shape alone gives every KV head one policy", "[classify]") {
  auto const table = ha::table_from_model_config(model(3, 8, 2), SinkWindow{.sink = 4, .window = 508});
  CHECK(table == ha::PolicyTable(3, 2, SinkWindow{4, 508}));
  using Registry = ha::DefaultRegistry::with<Wide>;
  CHECK(ha::table_from_model_config<Registry>(model(1, 1, 1), Wide{7}).at(0, 0) == ha::AnyPolicy<Registry>(Wide{7}));
  CHECK_THROWS_AS(ha::table_from_model_config(model(0, 8, 2), Full{}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::table_from_model_config(model(3, 8, 3), Full{}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::table_from_model_config(model(3, 8, 2), SinkWindow{-1, 8}), ha::ArgumentError);
}

TEST_CASE("gates above the threshold keep everything", "[classify]") {
  ha::DuoGates gates{
      .num_layers = 2, .num_kv_heads = 2, .gates = {0.9, 0.5, -0.1, 0.51}, .sink_size = 64, .recent_size = 128};
  auto table = ha::table_from_duo_gates(gates, 0.5);
  CHECK(table.at(0, 0) == Policy(Full{}));
  CHECK(table.at(0, 1) == Policy(SinkWindow{64, 128}));
  CHECK(table.at(1, 0) == Policy(SinkWindow{64, 128}));
  CHECK(table.at(1, 1) == Policy(Full{}));
  CHECK(ha::table_from_duo_gates(gates, 0.6).at(1, 1) == Policy(SinkWindow{64, 128}));

  constexpr auto where = "table_from_duo_gates";
  headaware_test::check_error<ha::ArgumentError>(
      [&] { (void)ha::table_from_duo_gates(gates, std::numeric_limits<double>::quiet_NaN()); },
      {"threshold", "finite", "nan", where});
  gates.gates[2] = std::numeric_limits<double>::infinity();
  headaware_test::check_error<ha::ArgumentError>([&] { (void)ha::table_from_duo_gates(gates, 0.5); },
                                                 {"gate", "finite", "inf", where});
  gates.gates.pop_back();
  headaware_test::check_error<ha::ArgumentError>([&] { (void)ha::table_from_duo_gates(gates, 0.5); },
                                                 {"gates", "4", "3", where});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)ha::table_from_duo_gates(ha::DuoGates{}, 0.5); },
                                                 {"num_layers", "> 0", "0", where});
}

TEST_CASE("the reference's classifications become a table", "[classify][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const heads =
      ha::load_classifications(headaware_test::shared_data() / "pythia-2.8b" / "refined_classifications.json");
  auto const table = ha::table_from_classifications(heads, model(32, 32, 32));
  for (auto const& c : heads) {
    Policy const policy = table.at(c.layer_idx, c.head_idx);
    if (c.use_full_cache) CHECK(policy == Policy(Full{}));
    if (c.head_type == HeadType::sink_mixed) CHECK(policy == Policy(SinkWindow{4, c.recommended_window}));
    if (c.head_type == HeadType::true_positional) CHECK(policy == Policy(WindowOnly{c.recommended_window}));
  }
  CHECK_THROWS_AS(ha::table_from_classifications(heads, model(32, 16, 16)), ha::ArgumentError);
}

TEST_CASE("a share of the heads with the largest gates keeps everything, of equal ones the first", "[classify]") {
  ha::DuoGates gates{.num_layers = 2,
                     .num_kv_heads = 4,
                     .gates = {0.9, 0.5, -0.1, 0.9, 0.5, 1.2, 0.5, 0.5},
                     .sink_size = 64,
                     .recent_size = 128};
  auto const full_heads = [&](double share) {
    auto const table = ha::table_from_duo_gates(gates, ha::FullHeadShare{share});
    std::vector<int> heads;
    for (int i = 0; i < 8; ++i) {
      bool const full = table.at(i / 4, i % 4) == Policy(Full{});
      if (full) heads.push_back(i);
      if (!full) CHECK(table.at(i / 4, i % 4) == Policy(SinkWindow{64, 128}));
    }
    return heads;
  };
  CHECK(full_heads(0).empty());
  CHECK(full_heads(0.06).empty());
  CHECK(full_heads(0.07) == std::vector{5});
  CHECK(full_heads(0.25) == std::vector{0, 5});
  CHECK(full_heads(0.5) == std::vector{0, 1, 3, 5});
  CHECK(full_heads(0.625) == std::vector{0, 1, 3, 4, 5});
  CHECK(full_heads(1).size() == 8);
  constexpr auto where = "table_from_duo_gates";
  for (double const share : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    headaware_test::check_error<ha::ArgumentError>(
        [&] { (void)ha::table_from_duo_gates(gates, ha::FullHeadShare{share}); }, {"share", "in [0, 1]", "", where});
  }
  gates.gates[2] = std::numeric_limits<double>::quiet_NaN();
  // A number in braces is a share, never a threshold; a plain number of any type is a threshold.
  ha::DuoGates const high{1, 4, {0.9, 0.8, 0.7, 0.6}, 4, 8};
  CHECK(ha::table_from_duo_gates(high, {0.5}) == ha::table_from_duo_gates(high, ha::FullHeadShare{0.5}));
  CHECK(ha::table_from_duo_gates(high, {}) == ha::table_from_duo_gates(high, ha::FullHeadShare{0.5}));
  CHECK(ha::table_from_duo_gates(high, 0.5F) == ha::PolicyTable(1, 4, Full{}));
  CHECK(ha::table_from_duo_gates<ha::DefaultRegistry>(high, 1) == ha::PolicyTable(1, 4, SinkWindow{4, 8}));
  ha::ModelConfig const model{1, 4, 4, 8};
  CHECK(ha::Compressor::from_duo_gates(high, model, {0.5}).table() == ha::table_from_duo_gates(high, {0.5}));
  CHECK(ha::Compressor::from_duo_gates(high, model, 0.5).table() == ha::table_from_duo_gates(high, 0.5));

  headaware_test::check_error<ha::ArgumentError>([&] { (void)ha::table_from_duo_gates(gates, ha::FullHeadShare{}); },
                                                 {"gate", "finite", "nan", where});
}

TEST_CASE("DuoAttention's published gates become a table", "[classify][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const gates = ha::load_duo_gates(headaware_test::shared_data() / "duo-attention" / "Meta-Llama-3.1-8B-Instruct");
  auto const table = ha::table_from_duo_gates(gates, 0.5);
  CHECK(table.num_layers() == 32);
  CHECK(table.num_kv_heads() == 8);
  CHECK(table.at(0, 0) == Policy(Full{}));
  CHECK(table.at(0, 1) == Policy(SinkWindow{128, 256}));
  auto const full_heads = [](ha::PolicyTable const& heads) {
    int full = 0;
    for (int i = 0; i < 256; ++i) full += heads.at(i / 8, i % 8).is<Full>() ? 1 : 0;
    return full;
  };
  CHECK(full_heads(table) == 234);  // hardly compressed
  CHECK(full_heads(ha::table_from_duo_gates(gates, ha::FullHeadShare{0.5})) == 128);
}

TEST_CASE("a compressor says what its heads keep, and keeps it", "[classify]") {
  ha::PolicyTable table(2, 3, Full{});
  table.set(0, 0, SinkWindow{.sink = 1, .window = 1});
  table.set(0, 2, SinkWindow{.sink = 1, .window = 3});
  table.set(1, 1, Prune{});
  ha::Compressor const compressor(model(2, 6, 3), table);
  auto const summary = compressor.compression_summary(10);
  CHECK(summary.kept_total == 36);
  CHECK(summary.ratio == 36.0 / 60);
  std::vector<std::string_view> const names(summary.policies.begin(), summary.policies.end());
  auto const of = [&](std::string_view name) {
    return static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
  };
  CHECK(summary.heads[of("full")] == 3);
  CHECK(summary.mean_kept[of("full")] == 10);
  CHECK(summary.heads[of("sink_window")] == 2);
  CHECK(summary.mean_kept[of("sink_window")] == 3);
  CHECK(summary.heads[of("prune")] == 1);
  CHECK(summary.mean_kept[of("prune")] == 0);
  CHECK(summary.heads[of("window_only")] == 0);
  CHECK(compressor.compression_summary(0).ratio == 1);
  for (std::int64_t const length : {std::int64_t{-1}, std::int64_t{1} << 31}) {
    headaware_test::check_error<ha::ArgumentError>([&] { (void)compressor.compression_summary(length); },
                                                   {"length", "", std::to_string(length), "compression_summary"});
  }

  // Values wider than keys.
  constexpr std::int64_t tokens = 5;
  std::vector<float> keys(3 * tokens * 2);
  std::vector<float> values(3 * tokens * 4);
  std::iota(keys.begin(), keys.end(), 0.0F);
  std::iota(values.begin(), values.end(), 1000.0F);
  std::vector<ha::LayerKv<float const>> const layers(2, {keys.data(), values.data()});
  ha::KvLayouts const source{ha::strided_bhsd(1, 3, tokens, 2), ha::strided_bhsd(1, 3, tokens, 4)};
  auto const cache = compressor.compress(layers, source, std::vector<std::int32_t>{tokens}, 2, {}, 4);
  auto const row = [](std::vector<float> const& tensor, std::int64_t first, std::int64_t count) {
    return std::vector<float>(tensor.begin() + first, tensor.begin() + first + count);
  };
  auto const held = [](std::span<float const> rows) { return std::vector<float>(rows.begin(), rows.end()); };
  CHECK(held(cache.head_keys(0, 0, 0).subspan(2)) == row(keys, (tokens - 1) * 2, 2));  // the last token
  CHECK(held(cache.head_values(0, 0, 0).subspan(4)) == row(values, (tokens - 1) * 4, 4));
  CHECK(held(cache.head_values(0, 0, 1)) == row(values, tokens * 4, tokens * 4));
  CHECK(held(cache.head_keys(1, 0, 2)) == row(keys, 2 * tokens * 2, tokens * 2));
  CHECK(cache.head_values(1, 0, 1).empty());
  auto const skipped =
      compressor.compress(layers, source, std::vector<std::int32_t>{tokens}, 2, std::vector<std::int32_t>{0}, 4);
  CHECK(held(skipped.head_values(0, 0, 0)) == row(values, 0, tokens * 4));
}
