// Documents of a model whose layers differ say every layer's shape; those of before load as they did, and of models
// whose layers are all alike not a byte has changed.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/mixed_statistics.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/compressor.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/io/attention_sums.hpp>
#include <headaware/io/head_statistics.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/io/sensitivities.hpp>
#include <headaware/layout/per_layer.hpp>
#include <headaware/plan/planner.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t context = 512;

ha::RetentionStatistics statistics() {
  auto result = mixed_statistics(planned_shape(), ha::RetentionGrid::up_to(context), 3);
  for (auto& head : result.heads) head.value_rows = head.metric_rows = head.rows;
  return result;
}

ha::PolicyPlan planned(ha::Budget const& budget, ha::PlanOptions const& options = {}) {
  return ha::plan_policies(statistics(), budget, context, options);
}

/// The planned shape with one field of one layer changed.
ha::ModelShape changed(std::size_t layer, std::function<void(ha::LayerShape&)> const& change) {
  ha::ModelShape const shape = planned_shape();
  std::vector<ha::LayerShape> layers(shape.layers().begin(), shape.layers().end());
  change(layers[layer]);
  return ha::ModelShape(layers);
}

constexpr auto plan_of_before = R"({
 "format": "headaware.plan",
 "version": 1,
 "model_info": {
  "num_layers": 1,
  "num_heads": 2,
  "num_kv_heads": 1
 },
 "context": 100,
 "budget_tokens": 40,
 "planned_tokens": 20,
 "floor": 0,
 "predicted_error": 0.5,
 "options": {
  "measure": "output",
  "fold": "sum",
  "floor": null,
  "page_size": 1,
  "ranks": 1,
  "layer_shares": false,
  "negligible_output": 1e-06,
  "use_remainder": true
 },
 "heads": [
  {
   "layer_idx": 0,
   "kv_head": 0,
   "policy": "sink_window",
   "sink": 4,
   "window": 16,
   "tokens": 20,
   "predicted_error": 0.5
  }
 ]
})";

constexpr auto retention_of_before =
    R"({"format":"headaware.retention_statistics","version":1,"model_info":{"num_layers":1,"num_heads":1,)"
    R"("num_kv_heads":1},"first_query":0,"query_stride":1,"with_values":true,"with_output_metric":false,)"
    R"("grid":{"sinks":[0],"windows":[8]},"heads":[{"layer_idx":0,"head_idx":0,"rows":2,"mass":[0.5],)"
    R"("mass_squared":[0.25],"output_squared":4.0,"error_squared":[1.0]}]})";

constexpr auto sums_of_before =
    R"({"format":"headaware.attention_sums","version":1,"source":"x","position":3,"model_info":{"num_layers":1,)"
    R"("num_heads":1,"num_kv_heads":1,"head_dim":8},"parameters":{"sink_size":4,"local_window":8,"recent_ratio":0.1,)"
    R"("num_distances":1,"chunk_size":0,"min_chunk":10,"first_query":0,"query_stride":1,"retention":null},)"
    R"("sums":[[0,0,0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0,0,0,0.0,0.0,0.0]]})";

constexpr auto sensitivities_of_before = R"({
 "format": "headaware.sensitivities",
 "version": 1,
 "num_layers": 1,
 "num_kv_heads": 1,
 "kind": "factor",
 "cut": {
  "sink": 4,
  "window": 60
 },
 "values": [
  0.5
 ]
})";

}  // namespace

TEST_CASE("documents of models whose layers are alike are those of before, byte for byte", "[io]") {
  auto const plan = ha::parse_plan(plan_of_before, "plan.json");
  CHECK(plan.layers.num_layers() == 0);
  CHECK(plan.table == ha::PolicyTable(1, 1, ha::SinkWindow{4, 16}));
  CHECK(ha::format_plan(plan) == plan_of_before);
  auto const retention = ha::parse_retention_statistics(retention_of_before, "retention_statistics.json");
  CHECK(retention.info.layers.num_layers() == 0);
  CHECK(ha::format_retention_statistics(retention) == retention_of_before);
  auto const sums = ha::parse_attention_sums(sums_of_before, "attention_sums.json");
  CHECK(ha::format_attention_sums(sums.observer, sums.position, sums.source) == sums_of_before);
  auto const sensitivities = ha::parse_sensitivities(sensitivities_of_before, "sensitivities.json");
  CHECK(ha::format_sensitivities(sensitivities) == sensitivities_of_before);
  // Named alike, layer by layer, they are alike.
  std::string const named = replaced(plan_of_before, "\"num_kv_heads\": 1\n",
                                     R"("num_kv_heads": 1, "layers": [
    {"kind": "attention", "num_query_heads": 2, "num_kv_heads": 1, "head_dim": 8, "value_dim": 8, "layers": [0, 0]}])"
                                     "\n");
  CHECK(ha::parse_plan(named, "plan.json") == plan);
}

TEST_CASE("plans of layers that differ survive a file", "[io]") {
  TemporaryFolder const folder;
  ha::ModelShape const shape = planned_shape();
  ha::PlanOptions skipping;
  skipping.skip_layers = {1, 5};
  skipping.page_size = 16;
  for (auto const& plan :
       {planned(ha::Budget::bytes(shape.bytes(context, 2) / 3, {shape, 2})), planned(ha::Budget::tokens(100)),
        planned(ha::Budget::share(1)), planned(ha::Budget::share(0.3), skipping)}) {
    ha::save_plan(folder / "plan.json", plan);
    auto const again = ha::load_plan(folder / "plan.json");
    REQUIRE(again == plan);
    CHECK(again.shape() == shape);
    CHECK(ha::load_policy_table(folder / "plan.json", shape) == plan.table);
    ha::save_plan_classifications(folder / "classes.json", plan);
    CHECK(ha::load_classifications(folder / "classes.json").size() == 36);
    CHECK(ha::load_policy_table(folder / "classes.json", shape) == plan.table);
    CHECK(ha::Compressor::from_policies(folder / "plan.json", shape).table() == plan.table);
    CHECK(ha::Compressor::from_policies(folder / "classes.json", shape).table() == plan.table);
    CHECK(ha::Compressor::from_classifications(folder / "classes.json", shape).table() == plan.table);
  }

  auto const plan = planned(ha::Budget::tokens(100));
  std::string const text = ha::format_plan(plan);
  CHECK(text.find(R"({
    "kind": "sliding",
    "num_query_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 32,
    "value_dim": 32,
    "window": 96,
    "layers": [
     1,
     1
    ]
   })") != std::string::npos);
  CHECK(text.find("\"cache_layer\": 0") != std::string::npos);
  auto const refused = [&](char const* from, char const* to, ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>([&] { (void)ha::parse_plan(replaced(text, from, to), "file"); }, parts);
  };
  refused("\"window\": 96,\n    \"layers\"", "\"window\": 0,\n    \"layers\"",
          {"out of range", "[1, ", "0", "/model_info/layers/1/window"});
  refused("\"cache_layer\": 0", "\"cache_layer\": 1", {"layer", "layer 1, whose cache", "others", "layers"});
  refused("\"kind\": \"latent\"", "\"kind\": \"lateral\"",
          {"unknown kind of layer", "one of attention, sliding", "lateral", "/kind"});
  refused("\"num_heads\": 8", "\"num_heads\": 7", {"most query heads of a layer", "7", "8", "/layers"});
  refused("\"num_kv_heads\": 4,\n  \"layers\"", "\"num_kv_heads\": 3,\n  \"layers\"",
          {"most KV heads of a layer", "3", "4", "/layers"});
  refused("\"num_layers\": 7", "\"num_layers\": 8", {"layers of the runs", "8", "7", "/layers"});
  refused("\"budget_cost\": ", "\"budget_cost\": 1, \"was\": ", {"budget_cost", ">= ", "1", "/budget_cost"});
  refused("\"row_costs\": [\n  128,", "\"row_costs\": [", {"row costs", "7, one per layer", "6", "/row_costs"});
}

TEST_CASE("a plan of another model is refused with what differs", "[io]") {
  TemporaryFolder const folder;
  ha::ModelShape const shape = planned_shape();
  ha::save_plan(folder / "plan.json", planned(ha::Budget::tokens(100)));
  ha::save_plan_classifications(folder / "classes.json", planned(ha::Budget::tokens(100)));
  auto const refused = [&](ha::ModelShape const& model, ha::ErrorDetail const& parts) {
    for (char const* const file : {"plan.json", "classes.json"}) {
      check_error<ha::ArgumentError>([&] { (void)ha::load_policy_table(folder / file, model); },
                                     {parts.what, parts.expected, parts.got, file + parts.where});
    }
  };
  refused(changed(1, [](auto& l) { l.window = 128; }), {"window of the", "128", "96", ", layer 1"});
  refused(changed(3, [](auto& l) { l.head_dim = 80; }), {"channels of a key of the", "80", "72", ", layer 3"});
  refused(changed(5, [](auto& l) { l.value_dim = 32; }), {"channels of a value of the", "32", "16", ", layer 5"});
  refused(changed(5, [](auto& l) { l.num_kv_heads = 2; }), {"KV heads of the", "2", "4", ", layer 5"});
  refused(changed(3, [](auto& l) { l.num_query_heads = 4; }), {"query heads of the", "4", "8", ", layer 3"});
  refused(changed(4, [](auto& l) { l.cache_layer = -1; }),
          {"cache of the", "its own", "another layer's, 0", ", layer 4"});
  refused(changed(2, [](auto& l) { l = {.num_query_heads = 4, .num_kv_heads = 4}; }),
          {"kind of the", "attention", "none", ", layer 2"});
  refused(ha::ModelConfig{3, 4, 2, 64}, {"layers of the", "3", "7", ""});
  // Channels that one does not say are not compared.
  auto const unknown = changed(5, [](auto& l) { l.head_dim = l.value_dim = 0; });
  CHECK(ha::load_policy_table(folder / "plan.json", unknown) == ha::load_policy_table(folder / "plan.json", shape));

  // A plan of before says numbers of heads alone: it is a plan of a model that slides, too.
  ha::ModelShape const slides({{.kind = ha::LayerKind::sliding,
                                .num_query_heads = 2,
                                .num_kv_heads = 1,
                                .head_dim = 8,
                                .value_dim = 8,
                                .window = 12}});
  CHECK(ha::parse_policy_table(plan_of_before, "plan.json", slides).at(0, 0) == ha::AnyPolicy<>(ha::WindowOnly{12}));
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::parse_policy_table(plan_of_before, "plan.json",
                                     ha::ModelShape(std::vector<ha::LayerShape>{{.kind = ha::LayerKind::none}}));
      },
      {"query heads of the plan", "0", "2", "plan.json, layer 0"});
}

TEST_CASE("statistics and sensitivities of layers that differ survive a file", "[io]") {
  TemporaryFolder const folder;
  ha::ModelShape const shape = planned_shape();
  auto const before = statistics();
  ha::save_retention_statistics(folder / "retention_statistics.json", before);
  auto const retention = ha::load_retention_statistics(folder / "retention_statistics.json");
  CHECK(retention == before);
  CHECK(retention.info.shape() == shape);
  std::string const text = ha::format_retention_statistics(before);
  check_error<ha::FormatError>(
      [&] {
        (void)ha::parse_retention_statistics(
            replaced(text, "{\"layer_idx\":3,\"head_idx\":0,", "{\"layer_idx\":2,\"head_idx\":0,"), "file");
      },
      {"head out of range", "no heads in layer 2", "layer 2, head 0", "/heads/16"});
  auto wrong = before;
  wrong.info.num_kv_heads = 2;
  check_error<ha::ArgumentError>([&] { (void)ha::format_retention_statistics(wrong); },
                                 {"layers", "as many KV heads", "others", "format_retention_statistics"});

  ha::ModelStatistics model;
  ha::detail::set_shape(model.model_info, shape);
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < shape.layer(layer).num_query_heads; ++head) {
      ha::HeadStatistics& s = model.heads.emplace_back();
      s.layer_idx = layer;
      s.head_idx = head;
      s.mean_entropy = layer + 0.25;
    }
  }
  ha::save_statistics(folder / "head_statistics.json", model);
  CHECK(ha::load_statistics(folder / "head_statistics.json") == model);

  for (std::int32_t const heads : {0, 4}) {
    ha::SavedSensitivities saved{7, heads, false, {4, 60}, std::vector<double>(heads == 0 ? 7 : 13, 0.5), shape};
    ha::save_sensitivities(folder / "sensitivities.json", saved);
    auto const again = ha::load_sensitivities(folder / "sensitivities.json");
    CHECK(again == saved);
    CHECK(again.factors(before).at(6, 1) == 0.5);
    saved.losses = true;
    CHECK(saved.factors(before).num_kv_heads() == heads);
    saved.layers = changed(6, [](auto& l) { l.window = 64; });
    check_error<ha::ArgumentError>([&] { (void)saved.factors(before); },
                                   {"window of sensitivities", "48", "64", "SavedSensitivities::factors, layer 6"});
  }
  ha::SavedSensitivities const uniform{7, 4, false, {4, 60}, std::vector<double>(28, 0.5)};
  check_error<ha::ArgumentError>([&] { (void)uniform.factors(before); },
                                 {"sensitivities' KV heads", "2", "4", "layer 0"});

  // The shape of an observed model.
  for (ha::ModelShape const& observed : {shape, ha::ModelShape(ha::ModelConfig{2, 4, 2, 8})}) {
    ha::JsonWriter json;
    json.object([&] { ha::detail::write_observed_shape(json, observed); });
    ha::JsonTree const tree(json.text(), "written");
    CHECK(ha::detail::read_observed_shape(tree.root().object()).shape() == observed);
  }
}

TEST_CASE("from attention to a cache by way of files, where layers differ", "[io]") {
  TemporaryFolder const folder;
  ha::LayerShape const full{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 16, .value_dim = 16};
  ha::LayerShape slides{.kind = ha::LayerKind::sliding,
                        .num_query_heads = 2,
                        .num_kv_heads = 1,
                        .head_dim = 16,
                        .value_dim = 16,
                        .window = 24};
  ha::LayerShape reads = full;
  reads.cache_layer = 0;
  ha::ModelShape const shape({full, slides, {.kind = ha::LayerKind::none}, reads});
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {0, 4}, .windows = {8, 16, 24, 48}};
  ha::AttentionObserver observer(shape, parameters);
  std::vector<Problem> problems;
  for (std::int32_t layer = 0; layer < 4; ++layer) {
    ha::LayerShape const& l = shape.layer(layer);
    problems.emplace_back(l.num_query_heads, l.num_kv_heads, 96, 16, static_cast<unsigned>(layer) + 1);
    if (l.attends()) observer.observe(layer, problems.back().layer(true));
  }
  ha::save_attention_sums(folder / "attention_sums.json", observer, 1, "made up");
  auto const resumed = ha::load_attention_sums(folder / "attention_sums.json");
  CHECK(resumed.observer.model() == shape);
  CHECK(resumed.observer.sums() == observer.sums());
  ha::save_statistics(folder / "head_statistics.json", resumed.observer.statistics());
  auto const classes = ha::classify(ha::load_statistics(folder / "head_statistics.json"));
  CHECK(classes.size() == 10);
  ha::save_classifications(folder / "head_classifications.json", classes, shape);
  CHECK(ha::load_classifications(folder / "head_classifications.json") == classes);
  ha::save_retention_statistics(folder / "retention_statistics.json", resumed.observer.retention_statistics());
  auto const retention = ha::load_retention_statistics(folder / "retention_statistics.json");
  CHECK(retention.info.shape() == shape);

  std::int64_t const held = shape.bytes(96, 4) / 2;
  ha::PlanOptions options;
  options.floor = 8;
  ha::save_plan(folder / "plan.json", ha::plan_policies(retention, ha::Budget::bytes(held, {shape, 4}), 96, options));
  auto const compressor = ha::Compressor::from_policies(folder / "plan.json", shape);
  CHECK(compressor.table().window(1) == 24);
  std::vector<std::int32_t> const lengths{96};
  std::vector<ha::LayerKv<float>> layers;
  std::vector<ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>> layouts;
  for (std::int32_t layer = 0; layer < 4; ++layer) {
    auto& problem = problems[static_cast<std::size_t>(layer)];
    bool const own = shape.layer(layer).has_cache();
    layers.push_back({own ? problem.keys.data() : nullptr, own ? problem.values.data() : nullptr});
    auto const layout = ha::strided_bhsd(1, own ? shape.layer(layer).num_kv_heads : 0, 96, own ? 16 : 0);
    layouts.push_back({layout, layout});
  }
  auto const cache = compressor.compress(layers, ha::per_layer(layouts), lengths, shape);
  CHECK(cache.cache_info().bytes <= held);
  CHECK(cache.cache_info().bytes > held * 9 / 10);
  auto const kept = cache.compaction.kept(1, 0, 0);
  CHECK(kept <= 24);
  CHECK(cache.head_keys(1, 0, 0)[0] == problems[1].keys[static_cast<std::size_t>((96 - kept) * 16)]);
}
