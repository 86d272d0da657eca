#pragma once

/// @file
/// Reads `plan.json`.

#include <headaware/config.hpp>
#include <headaware/io/detail/json_records.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

inline constexpr std::string_view plan_format = "headaware.plan";
inline constexpr std::int32_t plan_version = 1;

/// What a plan's heads can follow, by the names in files.
enum class PlanPolicy : std::uint8_t { full, sink_window, window_only, prune };
inline constexpr std::array<std::string_view, 4> plan_policy_names{Full::name, SinkWindow::name, WindowOnly::name,
                                                                   Prune::name};

/// A number that is finite and not negative; JSON has no others that are not finite.
[[nodiscard]] inline double not_negative(JsonValue const& value) {
  double const number = value.number();
  if (!(number >= 0)) value.fail("negative number", ">= 0");
  return number;
}

[[nodiscard]] inline PlanOptions parse_plan_options(JsonObject fields, std::int64_t context, std::int32_t num_layers) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  PlanOptions options;
  options.measure = fields.get("measure", "a string").name_of<ErrorMeasure>(error_measure_names, "error measure");
  options.fold = fields.get("fold", "a string").name_of<GroupFold>(group_fold_names, "group fold");
  JsonValue const floor = fields.get("floor", "an integer or null");
  if (!floor.is_null()) options.floor = floor.integer<std::int64_t>(0, context);
  options.page_size = fields.get("page_size", "an integer").integer<std::int64_t>(1, most);
  options.ranks = fields.get("ranks", "an integer").integer<std::int32_t>(1, std::numeric_limits<std::int32_t>::max());
  options.layer_shares = fields.get("layer_shares", "true or false").boolean();
  options.negligible_output = not_negative(fields.get("negligible_output", "a number"));
  options.use_remainder = fields.get("use_remainder", "true or false").boolean();
  if (auto const skipped = fields.find("skip_layers")) {
    options.skip_layers = ascending(skipped->array(), 0);
    bool const within = options.skip_layers.back() < num_layers && std::ssize(options.skip_layers) < num_layers;
    if (!within) {
      skipped->fail("skip_layers", "less than all of " + std::to_string(num_layers) + " layers",
                    std::to_string(options.skip_layers.back()));
    }
  }
  return options;
}

/// Sinks or window; -1 is for heads that have none.
[[nodiscard]] inline std::int32_t plan_size(JsonObject& fields, char const* key, bool wanted) {
  JsonValue const value = fields.get(key, "an integer");
  return wanted ? value.integer<std::int32_t>(0, std::numeric_limits<std::int32_t>::max())
                : value.integer<std::int32_t>(-1, -1);
}

[[nodiscard]] inline AnyPolicy<> parse_plan_policy(JsonObject& fields) {
  auto const policy = fields.get("policy", "a string").name_of<PlanPolicy>(plan_policy_names, "policy of a plan");
  bool const sinks = policy == PlanPolicy::sink_window;
  std::int32_t const sink = plan_size(fields, "sink", sinks);
  std::int32_t const window = plan_size(fields, "window", sinks || policy == PlanPolicy::window_only);
  switch (policy) {
    case PlanPolicy::full: return Full{};
    case PlanPolicy::sink_window: return SinkWindow{.sink = sink, .window = window};
    case PlanPolicy::window_only: return WindowOnly{window};
    default: return Prune{};
  }
}

[[nodiscard]] inline PolicyPlan parse_plan_tree(JsonTree const& tree) {
  JsonObject root = tree.root().object();
  if (auto const classes = root.find("classifications"); classes && !root.find("format")) {
    classes->fail("another document", "a plan (\"format\": " + quoted(plan_format) + ")", "classes of heads");
  }
  require_format(root, plan_format, plan_version);
  PolicyPlan plan;
  JsonObject model = root.get("model_info", "an object").object();
  plan.num_layers = model.get("num_layers", "an integer").integer(1, max_index);
  plan.num_heads = model.get("num_heads", "an integer").integer(1, max_index);
  JsonValue const num_kv_heads = model.get("num_kv_heads", "an integer");
  plan.num_kv_heads = num_kv_heads.integer(1, plan.num_heads);
  if (plan.num_heads % plan.num_kv_heads != 0) {
    num_kv_heads.fail("num_kv_heads", "a divisor of " + std::to_string(plan.num_heads),
                      std::to_string(plan.num_kv_heads));
  }
  require_head_count(model, plan.num_layers, plan.num_heads);
  plan.context = root.get("context", "an integer").integer<std::int64_t>(1, std::int64_t{1} << 30);
  plan.budget_tokens = root.get("budget_tokens", "an integer").integer<std::int64_t>(0, max_json_count);
  JsonValue const planned = root.get("planned_tokens", "an integer");
  auto const planned_tokens = planned.integer<std::int64_t>(0, plan.budget_tokens);
  plan.floor = root.get("floor", "an integer").integer<std::int64_t>(0, plan.context);
  plan.predicted_error = not_negative(root.get("predicted_error", "a number"));
  plan.options = parse_plan_options(root.get("options", "an object").object(), plan.context, plan.num_layers);

  struct Record {
    std::int32_t layer_idx = 0;
    std::int32_t head_idx = 0;  ///< KV head
    AnyPolicy<> policy{};
    PlannedHead planned{};
  };
  std::vector<Record> records;
  JsonArray const array = root.get("heads", "an array").array();
  for (JsonValue const value : array) {
    JsonObject fields = value.object();
    Record record;
    record.layer_idx = fields.get("layer_idx", "an integer").integer(0, max_index - 1);
    record.head_idx = fields.get("kv_head", "an integer").integer(0, max_index - 1);
    record.policy = parse_plan_policy(fields);
    JsonValue const tokens = fields.get("tokens", "an integer");
    record.planned.tokens = tokens.integer<std::int64_t>(0, max_json_count);
    std::int64_t const held = held_tokens(record.policy, plan.context, plan.options.page_size);
    if (record.planned.tokens != held) {
      tokens.fail("tokens", std::to_string(held) + ", which the policy holds", std::to_string(record.planned.tokens));
    }
    plan.planned_tokens += held;
    record.planned.predicted_error = not_negative(fields.get("predicted_error", "a number"));
    records.push_back(record);
  }
  records = in_order(std::move(records), plan.num_layers, plan.num_kv_heads, array);
  if (plan.planned_tokens != planned_tokens) {
    planned.fail("planned_tokens", std::to_string(plan.planned_tokens) + ", the sum of the heads'",
                 std::to_string(planned_tokens));
  }
  plan.table = PolicyTable(plan.num_layers, plan.num_kv_heads, Full{});
  plan.heads.reserve(records.size());
  for (Record const& record : records) {
    plan.table.set(record.layer_idx, record.head_idx, record.policy);
    plan.heads.push_back(record.planned);
  }
  for (std::int32_t const layer : plan.options.skip_layers) {
    for (std::int32_t kv = 0; kv < plan.num_kv_heads; ++kv) {
      auto const& policy = plan.table.at(layer, kv);
      if (!policy.is<Full>())
        array.fail("policy of a skipped layer", std::string(Full::name), std::string(policy.name()));
    }
  }
  return plan;
}

}  // namespace detail

/// @brief A plan from the text of a `plan.json`: `{format, version, model_info{num_layers, num_heads, num_kv_heads},
/// context, budget_tokens, planned_tokens, floor, predicted_error, options{measure, fold, floor, page_size, ranks,
/// layer_shares, negligible_output, use_remainder, skip_layers[…] or nothing}, heads[{layer_idx, kv_head, policy, sink,
/// window, tokens, predicted_error}]}`. A policy is `full`, `sink_window`, `window_only` or `prune`; what it does not
/// have of sink and window is -1. Keys that are not known are passed over.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, of another format or
///         version, a field is missing, of another type or out of range, a head is missing or double, tokens are not
///         what the policies hold, or there are more than the budget
/// @par Cost  O(text)
[[nodiscard]] inline PolicyPlan parse_plan(std::string_view text, std::string source_name) {
  return detail::parse_plan_tree(JsonTree(text, std::move(source_name)));
}

/// @brief `parse_plan` of a file; its `table` is what compression takes.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline PolicyPlan load_plan(std::filesystem::path const& path) {
  return parse_plan(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
