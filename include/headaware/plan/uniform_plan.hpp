#pragma once

/// @file
/// Uniform windows in a fixed pair of formats, to compare plans by bytes with.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/detail/budget_parts.hpp>
#include <headaware/plan/detail/cache_costs.hpp>
#include <headaware/plan/detail/largest_fitting.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief StreamingLLM over heads of given formats: the same sinks and the widest window whose rows take at most so
/// many bytes (`held_bytes`) in every KV head of the layers that are not skipped.
/// @param formats  of the model's KV heads, also of the layers that are skipped, which keep everything
/// @param context  tokens of the sequence
/// @throws ArgumentError if the bytes leave a head not more than the sinks, or the formats are those of other heads
/// @par Cost    O(heads · log(context))
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453
[[nodiscard]] inline PolicyTable uniform_table(ModelShape const& model, FormatTable const& formats, std::int64_t bytes,
                                               std::int64_t context, std::int32_t sink = 4,
                                               std::span<std::int32_t const> skipped = {}) {
  constexpr auto where = "uniform_table";
  require(sink >= 0, "sink", ">= 0", sink, where);
  require(context > sink, "context", {"> ", sink}, context, where);
  auto const table = [&](std::int64_t tokens) {
    SinkWindow const window{.sink = sink, .window = static_cast<std::int32_t>(tokens - sink)};
    return PolicyTable(model, window).skip_layers(skipped);
  };
  std::int64_t const each = detail::largest_fitting(sink, context + 1, [&](std::int64_t tokens) {
    return held_bytes(table(tokens), formats, model, context) <= bytes;
  });
  require(each > sink, "bytes", {"those of more than ", sink, " tokens per head"}, bytes, where);
  return table(each);
}

/// @brief StreamingLLM at the bytes of a plan, in one pair of formats: every KV head of the layers that are not skipped
/// keeps `sink` sinks and a window, as many tokens as fit the budget, of layers that slide as many tokens of window;
/// everything where the budget holds it. With 16 bits as the pair, StreamingLLM as it is.
/// @param options  as for the plan; `formats.pairs` become the pair alone
/// @param sink     tokens, at most one less than the budget leaves a head
/// @throws ArgumentError as `plan_policies`, or if the budget leaves a head not more than the sinks
/// @par Cost    O(heads · windows)
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453
[[nodiscard]] inline PolicyPlan uniform_plan(KvErrors const& errors, Budget const& budget, std::int64_t context,
                                             PlanOptions options, HeadFormats const& formats, std::int32_t sink = 4) {
  constexpr auto where = "uniform_plan";
  options.formats.pairs = {formats};
  options.validate(context);
  require(sink >= 0, "sink", ">= 0", sink, where);
  auto const layers = planned_layers(errors.num_layers, options.skip_layers);
  detail::CacheCosts costs = detail::cache_costs(errors, &budget, context, options.formats).select(layers);
  std::int64_t const total = budget.total(costs);
  auto const channels = detail::known_channels(errors.layers, errors.num_layers, options.formats.head_dim, where);
  std::vector<RowPages> pages;
  for (std::int32_t const layer : layers) {
    pages.push_back(options.formats.pages(formats, channels[static_cast<std::size_t>(layer)], options.page_size));
  }
  costs.rows.clear();  // whole pages' bytes instead of tokens
  auto const bytes = [&](std::int64_t tokens) {
    return costs.of([&](std::int32_t layer) {
      return pages[static_cast<std::size_t>(layer)].bytes_of(std::min(tokens, costs.visible(layer)));
    });
  };
  PolicyTable table(errors.shape(), Full{});
  if (bytes(context) > total) {
    std::int64_t const each =
        detail::largest_fitting(0, context, [&](std::int64_t tokens) { return bytes(tokens) <= total; });
    require(each > sink, "budget", {"more than ", sink, " tokens per head"}, each, where);
    SinkWindow const window{.sink = sink, .window = static_cast<std::int32_t>(each - sink)};
    table = PolicyTable(errors.shape(), window).skip_layers(options.skip_layers);
  }
  FormatTable of_heads(errors.shape(), options.formats.sixteen_bits);
  for (std::int32_t const layer : layers) {
    for (std::int32_t kv = 0; kv < of_heads.heads().count(layer); ++kv) of_heads.set(layer, kv, formats);
  }
  return evaluate_table(table, of_heads, errors, context, options, budget);
}

/// @brief StreamingLLM in 16 bits at the size of a plan, by bytes or by tokens as the options have it.
/// @throws ArgumentError as the other, or as `uniform_table`
[[nodiscard]] inline PolicyPlan uniform_plan(KvErrors const& errors, Budget const& budget, std::int64_t context,
                                             PlanOptions const& options) {
  if (options.formats.by_bytes()) {
    return uniform_plan(errors, budget, context, options, options.formats.sixteen_bits);
  }
  return evaluate_table(uniform_table(errors, budget, context, options), errors, context, options, budget);
}

HEADAWARE_NAMESPACE_END
