#pragma once

/// @file
/// Reads policies, and formats of rows, from either file that holds them: a plan or classifications.

#include <headaware/classify/builders.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/table.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Tells a plan by its `format`. @throws FormatError if it holds no classifications either
template <class = void>
[[nodiscard]] bool holds_plan(JsonValue const& root) {
  bool const object = root.kind() == JsonKind::object;
  auto const format = object ? root.object().find("format") : std::nullopt;
  if (format && format->kind() == JsonKind::string && format->string() == plan_format) return true;
  if (root.kind() == JsonKind::array || (object && root.object().find("classifications"))) return false;
  auto const neither = [] {
    return Text{R"(a plan ("format": ")", plan_format,
                R"(") or classes of heads ("classifications": [...], or the array alone))"}
        .str();
  };
  if (format) format->fail("policies", neither);
  root.fail("policies", neither, object ? "an object with neither" : "another value");
}

/// Checks that a plan is of a model: its heads, and the channels of rows that it counts in bytes.
template <class = void>
void require_plan_of(ModelShape const& model, PolicyPlan const& plan, Text const& where) {
  bool const counts_alone = plan.layers.num_layers() == 0;
  require_same_shape(model, plan.shape(), counts_alone, "the plan", where);
  if (!counts_alone || !plan.by_bytes()) return;
  std::int64_t const planned = plan.options.formats.head_dim;
  for (std::int32_t i = 0; i < model.num_layers(); ++i) {
    LayerShape const& layer = model.layer(i);
    auto const place = [&] { return Text{where, ", layer ", i}.str(); };
    for (std::int64_t const channels : {layer.head_dim, layer.value_dim}) {
      require(!layer.has_cache() || channels == 0 || channels == planned, "head_dim of the plan", channels, planned,
              place);
    }
  }
}

}  // namespace detail

/// @brief Reads the table of a `plan.json`, or of classifications (`parse_classifications`); the plan's `format` tells
/// which.
/// @tparam Registry  the policies that the table may use
///
/// The windows of a plan by bytes keep its budget in its formats alone (`parse_format_table`): in 16 bits they take
/// several times as much.
/// @param model  whose KV heads the policies are for; channels are checked where both say them. A plan that says
///               nothing of differing layers has to have its numbers of heads, and in bytes its channels, alone
/// @param types  the policy of each type of classified head; unused for a plan
/// @throws FormatError if the text is neither, ArgumentError naming layer and field if it is of another model, or has a
///         policy that the registry lacks
template <class Registry = DefaultRegistry>
[[nodiscard]] BasicPolicyTable<Registry> parse_policy_table(
    std::string_view text, std::string const& source_name, ModelShape const& model,
    BasicTypePolicies<Registry> const& types = BasicTypePolicies<Registry>::conservative()) {
  {
    JsonTree const tree(text, source_name);
    if (detail::holds_plan(tree.root())) {
      PolicyPlan const read = detail::read_plan(tree);
      auto const where = [&] { return "parse_policy_table, " + source_name; };
      detail::require_plan_of<>(model, read, where);
      BasicPolicyTable<Registry> table = convert_table<Registry>(read.table);
      return read.layers.num_layers() == 0 ? within_layers(std::move(table), model) : table;
    }
    ModelShape shape;
    auto const classes = detail::read_classifications(tree.root(), shape);
    if (shape.num_layers() > 0) {
      auto const where = [&] { return "parse_policy_table, " + source_name; };
      detail::require_same_shape(model, shape, false, "the classifications", where);
    }
    return table_from_classifications<Registry>(classes, model, types);
  }
}

/// @brief Reads a file by `parse_policy_table`.
/// @throws FormatError and ArgumentError as there, FileError if the file cannot be read
template <class Registry = DefaultRegistry>
[[nodiscard]] BasicPolicyTable<Registry> load_policy_table(
    FilePath const& path, ModelShape const& model,
    BasicTypePolicies<Registry> const& types = BasicTypePolicies<Registry>::conservative()) {
  return parse_policy_table<Registry>(read_text_file(path), path.string(), model, types);
}

/// @brief Reads the formats of the heads' rows from either file: those of a plan by bytes, else 16 bits. The policies
/// of such a plan (`parse_policy_table`) hold its bytes in these formats alone.
/// @param model    as for the policies
/// @param sixteen  of heads whose file says no formats
/// @throws FormatError if the text is neither a plan nor classes of heads, ArgumentError if a plan is of another model
template <class = void>
[[nodiscard]] FormatTable parse_format_table(std::string_view text, std::string const& source_name,
                                             ModelShape const& model, HeadFormats const& sixteen = {}) {
  JsonTree const tree(text, source_name);
  if (!detail::holds_plan(tree.root())) return FormatTable(model, sixteen);
  PolicyPlan plan = detail::read_plan(tree);
  auto const where = [&] { return "parse_format_table, " + source_name; };
  detail::require_plan_of<>(model, plan, where);
  return plan.by_bytes() ? std::move(plan.formats) : FormatTable(model, sixteen);
}

/// @brief Reads a file by `parse_format_table`.
/// @throws FormatError and ArgumentError as there, FileError if the file cannot be read
template <class = void>
[[nodiscard]] FormatTable load_format_table(FilePath const& path, ModelShape const& model,
                                            HeadFormats const& sixteen = {}) {
  return parse_format_table<>(read_text_file(path), path.string(), model, sixteen);
}

HEADAWARE_NAMESPACE_END
