#pragma once

/// @file
/// Tables in the reference's classification schema, for programs that read classifications.

#include <headaware/classify/head_type.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Converts a table to classifications, one per query head by its KV head's policy: SinkWindow as `sink_mixed`,
/// WindowOnly as `true_positional`, Full as `gathering`, Prune as `dead`; the type stands for the policy, not for what
/// a classifier saw. `sink_size` and `recommended_window` hold the sizes; confidence is 1. Loading them
/// (`table_from_classifications`) gives the table.
///
/// Layers that slide are as their windows: `WindowOnly`, also where their whole window is kept. Layers without
/// attention have no records.
///
/// The schema cannot hold a plan's budget, context, page size, formats and predictions (`plan.json` does), windows of
/// no tokens, policies other than these four, nor, for readers that take the sinks from the type as the Python
/// reference does, sinks other than 4.
/// @return every query head of every layer that attends, layer by layer
/// @throws ArgumentError if table and model differ in shape, or a policy cannot be carried
template <class = void>
[[nodiscard]] std::vector<HeadClassification> classifications_from_table(PolicyTable const& table,
                                                                         ModelShape const& model) {
  constexpr auto where = "classifications_from_table";
  detail::require_table_of(table, model, where);
  std::vector<HeadClassification> result;
  for (std::int32_t layer = 0; layer < model.num_layers(); ++layer) {
    LayerShape const& shape = model.layer(layer);
    for (std::int32_t head = 0; head < shape.num_query_heads; ++head) {
      AnyPolicy<> const& policy = table.at(model.cache_layer(layer), head / shape.group());
      HeadClassification c;
      c.layer_idx = layer;
      c.head_idx = head;
      c.confidence = 1;
      auto const limit = [&](HeadType type, CompressionStrategy strategy, std::int32_t window) {
        require(window > 0, "window", "> 0, as a recommended window", window, where);
        c.head_type = type;
        c.compression_strategy = strategy;
        c.can_limit_window = true;
        c.recommended_window = window;
      };
      if (policy.is<SinkWindow>()) {
        auto const p = policy.get<SinkWindow>();
        limit(HeadType::sink_mixed, CompressionStrategy::sink_window, p.window);
        c.keep_sinks = true;
        c.sink_size = p.sink;
      } else if (policy.is<WindowOnly>()) {
        limit(HeadType::true_positional, CompressionStrategy::window_only, policy.get<WindowOnly>().window);
      } else if (policy.is<Prune>()) {
        c.head_type = HeadType::dead;
        c.can_prune = true;
        c.compression_strategy = CompressionStrategy::prune;
      } else {
        require(policy.is<Full>(), "policy", "full, prune, sink_window or window_only", policy.name(), where);
        c.head_type = HeadType::gathering;
        c.use_full_cache = true;
        c.compression_strategy = CompressionStrategy::full;
      }
      result.push_back(c);
    }
  }
  return result;
}

HEADAWARE_NAMESPACE_END
