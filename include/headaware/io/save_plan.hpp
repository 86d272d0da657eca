#pragma once

/// @file
/// Writes `plan.json`, and plans as classifications.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/json_text.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/io/save.hpp>
#include <headaware/plan/classifications.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/policy_window.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Rejects what could be written but not read again. @throws ArgumentError
inline void require_savable(PolicyPlan const& plan, char const* where) {
  plan.model().validate();
  std::int64_t const heads = std::int64_t{plan.num_layers} * plan.num_kv_heads;
  require(std::int64_t{plan.num_layers} * plan.num_heads <= max_heads, "number of heads", "at most 2^20",
          std::int64_t{plan.num_layers} * plan.num_heads, where);
  require(static_cast<std::int64_t>(plan.heads.size()) == heads, "planned heads", heads, plan.heads.size(), where);
  bool const shape = plan.table.num_layers() == plan.num_layers && plan.table.num_kv_heads() == plan.num_kv_heads;
  require(shape, "table", "one of the plan's shape", "another", where);
  plan.options.validate(plan.context);
  require(plan.options.measure.has_value(), "measure", "the one planned with", "none", where);
  require(plan.planned_tokens >= 0 && plan.planned_tokens <= plan.budget_tokens, "planned_tokens",
          {"at most the budget, ", plan.budget_tokens}, plan.planned_tokens, where);
  require(plan.budget_tokens <= max_json_count, "budget_tokens", "at most 2^53", plan.budget_tokens, where);
  require(plan.floor >= 0 && plan.floor <= plan.context, "floor", "in [0, context]", plan.floor, where);
  auto const finite = [&](double error) {
    require(error >= 0 && std::isfinite(error), "predicted_error", "a finite number >= 0", error, where);
  };
  finite(plan.predicted_error);
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < plan.heads.size(); ++i) {
    finite(plan.heads[i].predicted_error);
    auto const num_kv_heads = static_cast<std::size_t>(plan.num_kv_heads);
    auto const& policy =
        plan.table.at(static_cast<std::int32_t>(i / num_kv_heads), static_cast<std::int32_t>(i % num_kv_heads));
    std::int64_t const held = held_tokens(policy, plan.context, plan.options.page_size);
    require(plan.heads[i].tokens == held, "tokens of a head", held, plan.heads[i].tokens, where);
    tokens += held;
  }
  require(plan.planned_tokens == tokens, "planned_tokens", tokens, plan.planned_tokens, where);
  require(plan.planned_heads() > 0, "layers that are not skipped", "at least one", "none", where);
  for (std::int32_t const layer : plan.options.skip_layers) {
    require_index(layer, plan.num_layers, "skipped layer", where);
    for (std::int32_t kv = 0; kv < plan.num_kv_heads; ++kv) {
      auto const& policy = plan.table.at(layer, kv);
      require(policy.is<Full>(), "policy of a skipped layer", Full::name, policy.name(), where);
    }
  }
}

}  // namespace detail

/// @brief The text of a `plan.json`, indented by 1; `parse_plan` reads the same values back.
/// @throws ArgumentError if tokens are not what the policies hold or more than the budget, an error is negative, NaN or
///         infinite, or a policy is none of `full`, `sink_window`, `window_only` and `prune`
[[nodiscard]] inline std::string format_plan(PolicyPlan const& plan) {
  constexpr auto where = "format_plan";
  detail::require_savable(plan, where);
  PlanOptions const& options = plan.options;
  nlohmann::ordered_json document;
  document["format"] = detail::plan_format;
  document["version"] = detail::plan_version;
  document["model_info"] = {
      {"num_layers", plan.num_layers}, {"num_heads", plan.num_heads}, {"num_kv_heads", plan.num_kv_heads}};
  document["context"] = plan.context;
  document["budget_tokens"] = plan.budget_tokens;
  document["planned_tokens"] = plan.planned_tokens;
  document["floor"] = plan.floor;
  document["predicted_error"] = plan.predicted_error;
  document["options"] = {{"measure", to_string(*options.measure)},
                         {"fold", to_string(options.fold)},
                         {"floor", nullptr},
                         {"page_size", options.page_size},
                         {"ranks", options.ranks},
                         {"layer_shares", options.layer_shares},
                         {"negligible_output", options.negligible_output},
                         {"use_remainder", options.use_remainder}};
  if (options.floor) document["options"]["floor"] = *options.floor;
  if (!options.skip_layers.empty()) document["options"]["skip_layers"] = options.skip_layers;
  auto& heads = document["heads"] = nlohmann::ordered_json::array();
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    for (std::int32_t kv = 0; kv < plan.num_kv_heads; ++kv) {
      AnyPolicy<> const& policy = plan.table.at(layer, kv);
      PolicyWindow const kept = policy_window(policy, where);
      PlannedHead const& head = plan.heads[heads.size()];
      heads.push_back({{"layer_idx", layer},
                       {"kv_head", kv},
                       {"policy", policy.name()},
                       {"sink", policy.is<SinkWindow>() ? kept.sink : -1},
                       {"window", kept.windowed ? kept.window : -1},
                       {"tokens", head.tokens},
                       {"predicted_error", head.predicted_error}});
    }
  }
  return detail::json_text(document, 1);
}

/// @brief Writes `format_plan`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_plan(std::filesystem::path const& path, PolicyPlan const& plan) {
  write_file(path, format_plan(plan));
}

/// @brief Writes the plan in the reference's classification schema (`classifications_from_table`).
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_plan_classifications(std::filesystem::path const& path, PolicyPlan const& plan) {
  save_classifications(path, classifications_from_table(plan.table, plan.model()));
}

HEADAWARE_NAMESPACE_END
