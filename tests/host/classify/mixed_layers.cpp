// Classes of a model whose layers differ: query heads fold onto the KV heads of the cache that they read.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_model.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/classify/classifier.hpp>
#include <headaware/classify/summary.hpp>
#include <headaware/classify/validation.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/plan/classifications.hpp>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

using Policy = ha::AnyPolicy<>;

/// Every query head of every layer that attends, of one type.
std::vector<ha::HeadClassification> classes_of(ha::ModelShape const& shape, ha::HeadType type) {
  std::vector<ha::HeadClassification> heads;
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < shape.layer(layer).num_query_heads; ++head) {
      heads.push_back({.layer_idx = layer, .head_idx = head, .head_type = type});
    }
  }
  return heads;
}

ha::HeadClassification& at(std::vector<ha::HeadClassification>& heads, std::int32_t layer, std::int32_t head) {
  for (auto& c : heads) {
    if (c.layer_idx == layer && c.head_idx == head) return c;
  }
  throw std::out_of_range("head");
}

}  // namespace

TEST_CASE("query heads fold onto the cache that they read, with those of layers that share it", "[classify]") {
  ha::ModelShape const shape = mixed_shape();
  auto heads = classes_of(shape, ha::HeadType::dead);
  REQUIRE(heads.size() == 6 * 8);
  at(heads, 0, 2).head_type = ha::HeadType::sink_positional;  // KV head 1
  at(heads, 4, 3).head_type = ha::HeadType::sink_mixed;       // the same, read by layer 4
  at(heads, 4, 7).head_type = ha::HeadType::gathering;        // KV head 3
  at(heads, 3, 5).head_type = ha::HeadType::sink_positional;  // the latent
  at(heads, 1, 7).head_type = ha::HeadType::gathering;        // slides
  at(heads, 6, 0).head_type = ha::HeadType::sink_mixed;       // slides
  ha::PolicyTable const table = ha::table_from_classifications(heads, shape);
  CHECK(table.num_kv_heads(2) == 0);
  CHECK(table.num_kv_heads(4) == 0);
  CHECK(table.at(0, 0) == Policy(ha::Prune{}));
  CHECK(table.at(0, 1) == Policy(ha::SinkWindow{4, 24}));
  CHECK(table.at(0, 3) == Policy(ha::Full{}));
  CHECK(table.at(3, 0) == Policy(ha::SinkWindow{4, 8}));
  CHECK(table.at(1, 0) == Policy(ha::Prune{}));
  CHECK(table.at(1, 1) == Policy(ha::WindowOnly{7}));
  CHECK(table.at(6, 0) == Policy(ha::WindowOnly{7}));
  CHECK(table == ha::within_layers(table, shape));

  // And back: each query head as its KV head's policy.
  auto const again = ha::classifications_from_table(table, shape);
  CHECK(again.size() == heads.size());
  CHECK(ha::table_from_classifications(again, shape) == table);
  CHECK(ha::summarize(again).total_heads == 48);
  check_error<ha::ArgumentError>([&] { (void)ha::classifications_from_table(ha::PolicyTable(7, 4), shape); },
                                 {"table's KV heads", "2", "4", "layer 1"});
}

TEST_CASE("classes of other heads than the model's are refused", "[classify]") {
  ha::ModelShape const shape = mixed_shape();
  constexpr auto where = "table_from_classifications";
  auto const refused = [&](auto const& change, ha::ErrorDetail const& parts) {
    auto heads = classes_of(shape, ha::HeadType::mixed);
    change(heads);
    check_error<ha::ArgumentError>([&] { (void)ha::table_from_classifications(heads, shape); }, parts);
  };
  refused([](auto& heads) { heads.back().layer_idx = 2; }, {"classified layer", "one that attends", "2", where});
  refused([](auto& heads) { heads.back().layer_idx = 7; }, {"classified layer", "[0, 7)", "7", where});
  refused([](auto& heads) { heads.back().head_idx = 8; }, {"classified query head", "[0, 8)", "8", where});
  refused([](auto& heads) { heads.pop_back(); }, {"classifications", "48 query heads in 7 layers", "47", where});
  refused([](auto& heads) { heads.back().head_idx = 0; }, {"duplicate head", "once", "layer 6, head 0", where});

  // Grids whose layers have different numbers of heads.
  ha::detail::HeadCounts const counts(std::vector<std::int32_t>{2, 0, 1});
  auto const grid = [&](std::vector<ha::HeadClassification> const& heads, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>([&] { ha::require_grid(std::span(heads), counts.view(), "here"); }, parts);
  };
  ha::require_grid(std::span<ha::HeadClassification const>(std::vector<ha::HeadClassification>{{2, 0}, {0, 1}, {0, 0}}),
                   counts.view(), "here");
  grid({{0, 0}, {1, 0}}, {"head out of range", "no heads in layer 1", "layer 1, head 0", "here"});
  grid({{0, 0}, {2, 1}}, {"head out of range", "1 heads in layer 2", "layer 2, head 1", "here"});
  grid({{3, 0}}, {"head out of range", "3 layers", "layer 3, head 0", "here"});
  grid({{0, 0}, {2, 0}}, {"missing head", "2 heads in layer 0, each head once", "none for layer 0, head 1", "here"});
  grid({{0, 0}, {0, 1}}, {"missing head", "1 heads in layer 2", "none for layer 2, head 0", "here"});
}

TEST_CASE("one policy and gates for all heads stay within the windows of the layers", "[classify]") {
  ha::ModelShape const shape = mixed_shape();
  auto const table = ha::table_from_model_config(shape, ha::SinkWindow{.sink = 4, .window = 508});
  CHECK(table.at(0, 0) == Policy(ha::SinkWindow{4, 508}));
  CHECK(table.at(1, 0) == Policy(ha::WindowOnly{7}));
  CHECK(table.at(3, 0) == Policy(ha::SinkWindow{4, 508}));
  CHECK(table.heads().total() == 12);

  ha::DuoGates gates{.num_layers = 7, .num_kv_heads = 4, .gates = {}, .sink_size = 2, .recent_size = 3};
  gates.gates.assign(28, 0.0);
  gates.gates[2] = 0.75;   // layer 0, KV head 2
  gates.gates[5] = 0.5;    // layer 1, KV head 1
  gates.gates[12] = 0.25;  // the latent
  auto const gated = ha::table_from_duo_gates(gates, shape, 0.3);
  CHECK(gated.at(0, 2) == Policy(ha::Full{}));
  CHECK(gated.at(0, 0) == Policy(ha::SinkWindow{2, 3}));
  CHECK(gated.at(1, 1) == Policy(ha::WindowOnly{7}));
  CHECK(gated.at(1, 0) == Policy(ha::WindowOnly{5}));
  CHECK(gated.at(3, 0) == Policy(ha::SinkWindow{2, 3}));
  CHECK(ha::table_from_duo_gates(gates, shape, ha::FullHeadShare{3.0 / 12}).at(3, 0) == Policy(ha::Full{}));
  CHECK(ha::table_from_duo_gates(gates, shape, ha::FullHeadShare{2.0 / 12}) == gated);
  gates.gates[8] = 0.5;  // layer 2, which has no cache
  check_error<ha::ArgumentError>([&] { (void)ha::table_from_duo_gates(gates, shape, 0.3); },
                                 {"gate of a head that the layer does not have", "0", "0.5", "layer 2, KV head 0"});
  gates.num_layers = 4;
  gates.num_kv_heads = 7;
  check_error<ha::ArgumentError>([&] { (void)ha::table_from_duo_gates(gates, shape, 0.3); },
                                 {"table's layers", "7", "4", "table_from_duo_gates"});
}

TEST_CASE("statistics of layers that attend are classified and checked", "[classify]") {
  ha::ModelShape const shape = mixed_shape();
  ha::ModelStatistics model;
  ha::detail::set_shape(model.model_info, shape);
  CHECK(model.model_info.num_layers == 7);
  CHECK(model.model_info.num_heads == 8);
  for (auto const& c : classes_of(shape, ha::HeadType::mixed)) {
    ha::HeadStatistics s;
    s.layer_idx = c.layer_idx;
    s.head_idx = c.head_idx;
    s.mean_entropy = 3;
    s.max_attention_mean = 0.5;
    s.position_preference = {.sink = 0.1, .recent = 0.1, .local = 0.2, .global = 0.7};
    s.sink_ratio = 0.1;
    s.uniformity_score = c.layer_idx == 3 ? 0.01 : 2;
    s.relative_position_dist.assign(64, 0.01);
    model.heads.push_back(s);
  }
  auto const classes = ha::classify(model);
  REQUIRE(classes.size() == 48);
  CHECK(classes[16].layer_idx == 3);
  CHECK(classes[16].head_type == ha::HeadType::dead);
  CHECK(ha::check_classifications(model, classes).empty());
  CHECK(ha::type_statistics(model, classes).size() >= 2);
  CHECK(ha::table_from_classifications(classes, shape).at(3, 0) == Policy(ha::Prune{}));
  model.heads[16].layer_idx = 2;
  check_error<ha::ArgumentError>([&] { (void)ha::classify(model); },
                                 {"head out of range", "no heads in layer 2", "layer 2, head 0", "classify"});
}
