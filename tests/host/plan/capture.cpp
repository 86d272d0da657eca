// A plan from a real model's statistics, its errors measured with the very windows that it chose.

#include "support/catch.hpp"

#include <headaware/io/npy.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <set>
#include <span>
#include <vector>

namespace ha = headaware;

namespace {

/// The capture of examples/data/smollm2-135m: 4 layers, 9 query heads, 3 KV heads, 512 tokens.
struct Capture {
  ha::NpyArray queries;
  ha::NpyArray keys;
  ha::NpyArray values;

  static std::filesystem::path folder() {
    return std::filesystem::path(__FILE__).parent_path() / "../../../examples/data/smollm2-135m";
  }
  Capture()
      : queries(ha::load_npy(folder() / "chunk0_q.npy")),
        keys(ha::load_npy(folder() / "chunk0_k.npy")),
        values(ha::load_npy(folder() / "chunk0_v.npy")) {}

  [[nodiscard]] ha::RetentionStatistics observe(ha::RetentionGrid const& grid) const {
    auto const size = [&](ha::NpyArray const& array, std::size_t axis) {
      return static_cast<std::int32_t>(array.shape[axis]);
    };
    ha::ModelConfig const model{size(keys, 0), size(queries, 1), size(keys, 1), size(keys, 3)};
    ha::ObserverParameters parameters;
    parameters.retention = grid;
    ha::AttentionObserver observer(model, parameters);
    for (std::int32_t layer = 0; layer < model.num_hidden_layers; ++layer) {
      ha::LayerQkv<ha::float16, ha::StridedLayout, ha::StridedLayout> qkv;
      qkv.queries = queries.as<ha::float16>().data();
      qkv.keys = keys.as<ha::float16>().data();
      qkv.values = values.as<ha::float16>().data();
      auto const layout = [&](std::int32_t heads) {
        return ha::strided_bhsd(model.num_hidden_layers, heads, keys.shape[2], model.head_dim);
      };
      qkv.query_layout = layout(model.num_attention_heads);
      qkv.key_layout = qkv.value_layout = layout(model.num_key_value_heads);
      qkv.num_query_heads = model.num_attention_heads;
      qkv.num_kv_heads = model.num_key_value_heads;
      qkv.tokens = keys.shape[2];
      qkv.head_dim = model.head_dim;
      qkv.sequence = layer;
      observer.observe(layer, qkv, {.scale = 0.125F});
    }
    return observer.retention_statistics();
  }
};

ha::KvErrors output_errors(ha::RetentionStatistics const& statistics) {
  ha::WeightedStatistics const text{&statistics};
  return ha::weighted_errors(std::span(&text, 1), ha::ErrorMeasure::output);
}

/// The pairs that a table keeps.
void collect(ha::PolicyTable const& table, std::set<std::int32_t>& sinks, std::set<std::int32_t>& windows) {
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t kv = 0; kv < table.num_kv_heads(); ++kv) {
      auto const kept = ha::policy_window(table.at(layer, kv), "test");
      if (!kept) continue;
      sinks.insert(kept->sink);
      windows.insert(kept->window);
    }
  }
}

}  // namespace

TEST_CASE("plans of a real model lose less than uniform windows at every budget", "[plan]") {
  Capture const capture;
  auto const statistics = capture.observe(ha::RetentionGrid::up_to(512));
  constexpr std::int64_t context = 512;
  std::vector<double> const budgets{24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 448, 496};
  for (auto const fold : {ha::GroupFold::sum, ha::GroupFold::maximum}) {
    ha::WeightedStatistics const text{&statistics};
    auto const errors = ha::weighted_errors(std::span(&text, 1), ha::ErrorMeasure::output, fold);
    std::vector<ha::PolicyTable> planned;
    std::vector<ha::PolicyTable> uniform;
    std::set<std::int32_t> sinks;
    std::set<std::int32_t> windows;
    double last = std::numeric_limits<double>::infinity();
    for (double const mean : budgets) {
      auto const budget = ha::Budget::tokens(mean);
      auto const plan = ha::plan_policies(errors, budget, context);
      uniform.push_back(ha::uniform_table(4, 3, budget, context));
      auto const baseline = ha::evaluate_table(uniform.back(), errors, context);
      CHECK(plan.left() == 0);
      CHECK(plan.planned_tokens == baseline.planned_tokens);
      CHECK(plan.predicted_error < baseline.predicted_error);
      // The default floor rises with the budget, so this is not the planner's own promise.
      CHECK(plan.predicted_error < last * 1.05);
      last = plan.predicted_error;
      planned.push_back(plan.table);
      collect(plan.table, sinks, windows);
      collect(uniform.back(), sinks, windows);
    }
    if (fold == ha::GroupFold::maximum) continue;
    // What was predicted, measured: one more pass with all the windows that were chosen.
    auto const measured = output_errors(
        capture.observe({.sinks = {sinks.begin(), sinks.end()}, .windows = {windows.begin(), windows.end()}}));
    for (std::size_t i = 0; i < budgets.size(); ++i) {
      auto const plan = ha::evaluate_table(planned[i], measured, context);
      auto const baseline = ha::evaluate_table(uniform[i], measured, context);
      CAPTURE(budgets[i], plan.predicted_error, baseline.predicted_error);
      CHECK(plan.predicted_error < baseline.predicted_error);
    }
  }
}
