#pragma once

/// @file
/// Reads, checks and writes `plan.json`.

#include <headaware/config.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/plan_fields.hpp>
#include <headaware/io/detail/plan_formats.hpp>
#include <headaware/io/detail/shape_fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/plan/classifications.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/within_window.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

template <class = void>
[[nodiscard]] PlanOptions read_plan_options(JsonObject const& json, PolicyPlan const& plan) {
  std::int32_t const num_layers = plan.num_layers;
  PlanOptions options;
  ErrorMeasure measure{};
  FieldReader fields(json);
  plan_measure_fields(fields, measure, options);
  options.measure = measure;
  JsonValue const floor = fields.json().get("floor", "an integer or null");
  if (!floor.is_null()) options.floor = floor.integer<std::int64_t>(0, plan.context);
  plan_option_fields(fields, options);
  if (auto const slots = fields.json().find("scored_slots")) options.scored_slots = slots->boolean();
  if (auto const skipped = fields.json().find("skip_layers")) {
    fields.ascending("skip_layers", options.skip_layers, 0);
    bool const within =
        options.skip_layers.back() < num_layers && static_cast<std::int64_t>(options.skip_layers.size()) < num_layers;
    if (!within) {
      skipped->fail("skip_layers", {"less than all of ", num_layers, " layers"}, options.skip_layers.back());
    }
  }
  options.formats = read_format_choice<>(fields.json(), plan.layers.num_layers() == 0);
  return options;
}

/// Reads `row_costs[…]` and `budget_cost`, which plans have where tokens of layers cost differently, and by
/// bytes.
template <class = void>
void read_plan_costs(JsonObject& root, PolicyPlan& plan) {
  auto const costs = root.find("row_costs");
  if (!costs && root.find("planned_bytes")) (void)root.get("row_costs", "an array");  // missing
  if (!costs) return;
  JsonArray const array = costs->array();
  for (JsonValue const cost : array) plan.row_costs.push_back(cost.integer<std::int64_t>(0, max_int32));
  auto const count = static_cast<std::int64_t>(plan.row_costs.size());
  if (count != plan.num_layers) array.fail("row costs", {plan.num_layers, ", one per layer"}, count);
  FieldReader(root).integer("budget_cost", plan.budget_cost, 0, max_json_count);
}

template <class = void>
[[nodiscard]] PolicyPlan read_plan(JsonTree const& tree) {
  JsonObject root = tree.root().object();
  if (auto const classes = root.find("classifications"); classes && !root.find("format")) {
    classes->fail("another document", {R"(a plan ("format": ")", plan_format, R"("))"}, "classes of heads");
  }
  read_format(root, plan_format, plan_version);
  PolicyPlan plan;
  read_shape(root.get("model_info", "an object").object(), plan);
  read_plan_costs(root, plan);
  std::int64_t planned_tokens = 0;
  plan_fields(FieldReader(root), plan, planned_tokens, !plan.row_costs.empty());
  if (auto const scores = root.find("scores")) plan.scores = scores->string();
  JsonValue const options = root.get("options", "an object");
  plan.options = read_plan_options<>(options.object(), plan);
  FormatChoice const& choice = plan.options.formats;
  PlanPages const pages_of = as_format_error(options, [&] { return PlanPages(plan, "formats"); });
  if (choice.by_bytes()) {
    std::vector<std::int64_t> const costs = as_format_error(options, [&] { return pages_of.row_costs(); });
    bool const same = plan.row_costs == costs;
    if (!same) root.get("row_costs", "an array").fail("row costs", "bytes of a row of 16 bits, per layer", "others");
  }

  struct Record {
    std::int32_t layer_idx = 0;
    std::int32_t head_idx = 0;  ///< KV head
    AnyPolicy<> policy{};
    PlannedHead planned{};
    HeadFormats formats{};
  };
  std::vector<Record> records;
  JsonArray const array = root.get("heads", "an array").array();
  for (JsonValue const value : array) {
    FieldReader fields(value.object());
    Record record;
    SavedPolicy policy;
    planned_fields(fields, record.layer_idx, record.head_idx, policy, record.planned);
    record.policy = to_policy(policy);
    bool const slides = record.layer_idx < plan.layers.num_layers() && plan.layers.layer(record.layer_idx).window != 0;
    if (slides) {
      record.policy =
          within_window(record.policy, static_cast<std::int32_t>(plan.layers.layer(record.layer_idx).window));
    }
    if (choice.by_bytes()) {
      record.formats = read_head_formats<>(fields.json(), choice.sixteen_bits);
      fields.integer("bytes", record.planned.bytes, 0, max_json_count);
    }
    RowPages const pages = as_format_error(value, [&] { return pages_of.of(record.layer_idx, record.formats); });
    std::int64_t const held = held_tokens(record.policy, plan.context, pages.rows);
    auto const require_held = [&](char const* what, std::int64_t expected, std::int64_t got) {
      if (got == expected) return;
      fields.json().get(what, "an integer").fail(what, {expected, ", which the policy holds"}, got);
    };
    require_held("tokens", held, record.planned.tokens);
    require_held("bytes", pages.bytes_of(held), record.planned.bytes);
    plan.planned_tokens += held;
    records.push_back(record);
  }
  records = in_order(std::move(records), kv_head_counts(plan).view(), array);
  if (plan.planned_tokens != planned_tokens) {
    root.get("planned_tokens", "an integer")
        .fail("planned_tokens", {plan.planned_tokens, ", the sum of the heads'"}, planned_tokens);
  }
  plan.table = PolicyTable(plan.shape(), Full{});
  if (choice.by_bytes()) plan.formats = FormatTable(plan.shape(), choice.sixteen_bits);
  plan.heads.reserve(records.size());
  for (Record const& record : records) {
    plan.table.set(record.layer_idx, record.head_idx, record.policy);
    if (choice.by_bytes()) plan.formats.set(record.layer_idx, record.head_idx, record.formats);
    plan.heads.push_back(record.planned);
  }
  if (double const cost = cost_of(plan); cost > static_cast<double>(plan_budget(plan))) {
    root.get("budget_cost", "an integer").fail("budget_cost", {">= ", cost}, plan.budget_cost);
  }
  if (choice.by_bytes()) {
    JsonValue const bytes = root.get("planned_bytes", "an integer");
    if (bytes.integer<std::int64_t>(0, max_json_count) != plan.planned_bytes()) {
      bytes.fail("planned_bytes", {plan.planned_bytes(), ", the sum of the heads'"});
    }
  }
  for (std::int32_t const layer : plan.options.skip_layers) {
    for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv) {
      auto const& policy = plan.table.at(layer, kv);
      if (!plan.keeps_all(layer, kv)) array.fail("policy of a skipped layer", Full::name, policy.name());
    }
  }
  return plan;
}

}  // namespace detail

/// @brief Reads a plan from the text of a `plan.json`: `{format, version, model_info{num_layers, num_heads,
/// num_kv_heads, layers[…] or nothing}, row_costs[…] and budget_cost or nothing, context, budget_tokens,
/// planned_tokens, floor, predicted_error, scores or nothing, options{measure, fold, floor, page_size, ranks,
/// layer_shares, negligible_output, use_remainder, scored_slots or nothing, skip_layers[…] or nothing, formats or
/// nothing}, heads[{layer_idx, kv_head, policy, sink, window, tokens, predicted_error}]}`. A policy is `full`,
/// `sink_window`, `window_only` or `prune`; a sink or window that it does not have is -1. Unknown keys are ignored.
///
/// Plans by bytes have `options.formats{head_dim, sixteen_bits[key, value], pairs[[key, value]…]}`, formats by
/// name, or as `{name, scale}` where fp8 has a scale other than 1;
/// heads then have `bytes`, and `key_format` and `value_format` where these are not `sixteen_bits`; `row_costs` and
/// `budget_cost` are bytes, of 16-bit rows and of all heads, and `planned_bytes` is the heads' sum. Without, heads have
/// 16 bits.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, of another format or
///         version, a field is missing, of another type or out of range, a head is missing or duplicate, tokens or
///         bytes are not what the policies hold, or there are more than the budget
/// @par Cost  O(text)
template <class = void>
[[nodiscard]] PolicyPlan parse_plan(std::string_view text, std::string source_name) {
  return detail::read_plan(JsonTree(text, std::move(source_name)));
}

/// @brief Checks that a file can hold a plan: `format_plan` does.
/// @throws ArgumentError if tokens are not what the policies hold or more than the budget, an error is negative, NaN or
///         infinite, or a policy is none of `full`, `sink_window`, `window_only` and `prune`
template <class = void>
void validate_plan(PolicyPlan const& plan, Text const& where = "PolicyPlan") {
  bool const alike = plan.layers.num_layers() == 0;
  if (alike) plan.model().validate();
  detail::check_shape(plan, where);
  std::int64_t const heads = detail::kv_head_counts(plan).view().total();
  require(static_cast<std::int64_t>(plan.heads.size()) == heads, "planned heads", heads, plan.heads.size(), where);
  bool const shape = plan.table.num_layers() == plan.num_layers && plan.table.num_kv_heads() == plan.num_kv_heads;
  require(shape, "table", "one of the plan's shape", "another", where);
  detail::require_table_of(plan.table, plan.shape(), where);
  plan.options.validate(plan.context);
  require(plan.options.measure.has_value(), "measure", "the one planned with", "none", where);
  bool const by_bytes = plan.options.formats.by_bytes();
  require(plan.by_bytes() == by_bytes, "formats", by_bytes ? "of every head" : "none, as the options choose none",
          by_bytes ? "none" : "some", where);
  detail::PlanPages const pages_of(plan, "PolicyPlan");
  if (by_bytes) {
    detail::require_formats_of(plan.formats, plan.table.heads(), "PolicyPlan");
    require(plan.row_costs == pages_of.row_costs(), "row_costs", "bytes of a row of 16 bits, per layer", "others",
            where);
  }
  auto const costs = static_cast<std::int64_t>(plan.row_costs.size());
  require(costs == 0 || costs == plan.num_layers, "row_costs", {"none, or ", plan.num_layers}, costs, where);
  std::int64_t const budget = detail::plan_budget(plan);
  bool const fits =
      detail::cost_of(plan) <= static_cast<double>(budget) && (costs != 0 || plan.planned_tokens <= budget);
  require(plan.planned_tokens >= 0 && fits, "planned_tokens", {"at most the budget, ", budget}, plan.planned_cost(),
          where);
  require(plan.budget_cost <= detail::max_json_count, "budget_cost", "at most 2^53", plan.budget_cost, where);
  require(plan.budget_tokens <= detail::max_json_count, "budget_tokens", "at most 2^53", plan.budget_tokens, where);
  require(plan.floor >= 0 && plan.floor <= plan.context, "floor", "in [0, context]", plan.floor, where);
  auto const finite = [&](double error) {
    require(error >= 0 && detail::is_finite(error), "predicted_error", "a finite number >= 0", error, where);
  };
  finite(plan.predicted_error);
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < plan.heads.size(); ++i) {
    finite(plan.heads[i].predicted_error);
    auto const head = static_cast<std::int64_t>(i);
    std::int32_t const layer = plan.table.heads().layer_of(head, 1);
    auto const kv = static_cast<std::int32_t>(head - plan.table.heads().first(layer));
    RowPages const pages = pages_of.of(layer, plan.formats_of(layer, kv));
    std::int64_t const held = held_tokens(plan.table.at(layer, kv), plan.context, pages.rows);
    require(plan.heads[i].tokens == held, "tokens of a head", held, plan.heads[i].tokens, where);
    require(plan.heads[i].bytes == pages.bytes_of(held), "bytes of a head", pages.bytes_of(held), plan.heads[i].bytes,
            where);
    tokens += held;
  }
  require(plan.planned_tokens == tokens, "planned_tokens", tokens, plan.planned_tokens, where);
  for (std::int32_t const layer : plan.options.skip_layers) {
    require_index(layer, plan.num_layers, "skipped layer", where);
    for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv) {
      auto const& policy = plan.table.at(layer, kv);
      require(plan.keeps_all(layer, kv), "policy of a skipped layer", Full::name, policy.name(), where);
    }
  }
  require(plan.planned_heads() > 0, "layers that are not skipped", "at least one", "none", where);
}

/// @brief Returns the text of a `plan.json`, indented by 1; `parse_plan` reads the same values back.
/// @throws ArgumentError as `validate_plan`
template <class = void>
[[nodiscard]] std::string format_plan(PolicyPlan const& plan) {
  constexpr auto where = "format_plan";
  validate_plan(plan, where);
  PlanOptions const& options = plan.options;
  JsonWriter json(1);
  detail::FieldWriter const fields(json);
  json.object([&] {
    detail::write_format(json, detail::plan_format, detail::plan_version);
    json.field("model_info", [&] { detail::write_shape(json, plan); });
    if (!plan.row_costs.empty()) {
      json.field("row_costs", plan.row_costs);
      json.field("budget_cost", plan.budget_cost);
    }
    if (plan.by_bytes()) json.field("planned_bytes", plan.planned_bytes());
    detail::plan_fields(fields, plan, plan.planned_tokens, !plan.row_costs.empty());
    if (!plan.scores.empty()) json.field("scores", plan.scores);
    json.field("options", [&] {
      detail::plan_measure_fields(fields, *options.measure, options);
      json.key("floor");
      options.floor ? json.value(*options.floor) : json.value(nullptr);
      detail::plan_option_fields(fields, options);
      if (options.scored_slots) json.field("scored_slots", true);
      if (!options.skip_layers.empty()) json.field("skip_layers", options.skip_layers);
      detail::write_format_choice(json, options.formats);
    });
    json.key("heads");
    json.array([&] {
      std::size_t head = 0;
      for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
        for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv, ++head) {
          detail::SavedPolicy const policy = detail::to_saved(plan.table.at(layer, kv), where);
          PlannedHead const& planned = plan.heads[head];
          json.object([&] {
            detail::planned_fields(fields, layer, kv, policy, planned);
            if (!plan.by_bytes()) return;
            detail::write_head_formats(json, plan.formats.at(layer, kv), options.formats.sixteen_bits, planned.bytes);
          });
        }
      }
    });
  });
  return json.text();
}

/// @brief Reads a file by `parse_plan`; its `table` is what compression takes.
/// @throws FormatError as there, FileError if the file cannot be read
template <class = void>
[[nodiscard]] PolicyPlan load_plan(FilePath const& path) {
  return parse_plan(read_text_file(path), path.string());
}

/// @brief Writes `format_plan`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
template <class = void>
void save_plan(FilePath const& path, PolicyPlan const& plan) {
  write_file(path, format_plan(plan));
}

/// @brief Writes the plan in the reference's classification schema (`classifications_from_table`), which knows no
/// formats: readers of it hold 16 bits a number.
/// @throws ArgumentError as there, FileError if the file cannot be written
template <class = void>
void save_plan_classifications(FilePath const& path, PolicyPlan const& plan) {
  save_classifications(path, classifications_from_table(plan.table, plan.shape()), plan.shape());
}

HEADAWARE_NAMESPACE_END
