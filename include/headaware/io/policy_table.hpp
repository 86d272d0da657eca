#pragma once

/// @file
/// Reads policies from whichever file holds them: a plan or classifications.

#include <headaware/classify/builders.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/types.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The table of a `plan.json`, or of classifications (`parse_classifications`), told apart by the plan's
/// `format`.
/// @param model  whose KV heads the policies are for; `head_dim` is not looked at
/// @param types  the policy of each type of classified head; a plan does not ask
/// @throws FormatError if the text is neither, ArgumentError if it is of a model of another shape
[[nodiscard]] inline PolicyTable parse_policy_table(std::string_view text, std::string source_name,
                                                    ModelConfig const& model,
                                                    TypePolicies const& types = TypePolicies::conservative()) {
  {
    JsonTree const tree(text, source_name);
    JsonValue const root = tree.root();
    bool const object = root.kind() == JsonKind::object;
    auto const format = object ? root.object().find("format") : std::nullopt;
    bool const classes = root.kind() == JsonKind::array || (object && root.object().find("classifications"));
    bool const plan = format && format->kind() == JsonKind::string && format->string() == detail::plan_format;
    if (!plan && !classes) {
      std::string const neither = R"(a plan ("format": ")" + std::string(detail::plan_format) +
                                  R"(") or classes of heads ("classifications": [...], or the array alone))";
      if (format) format->fail("policies", neither);
      root.fail("policies", neither, object ? "an object with neither" : "another value");
    }
    if (plan) {
      PolicyPlan const read = detail::parse_plan_tree(tree);
      std::string const place = "parse_policy_table, " + source_name;
      char const* const where = place.c_str();
      require(read.num_layers == model.num_hidden_layers, "layers of the plan", model.num_hidden_layers,
              read.num_layers, where);
      require(read.num_heads == model.num_attention_heads, "query heads of the plan", model.num_attention_heads,
              read.num_heads, where);
      require(read.num_kv_heads == model.num_key_value_heads, "KV heads of the plan", model.num_key_value_heads,
              read.num_kv_heads, where);
      return read.table;
    }
  }
  return table_from_classifications(parse_classifications(text, std::move(source_name)), model, types);
}

/// @brief `parse_policy_table` of a file.
/// @throws FormatError and ArgumentError as there, FileError if the file cannot be read
[[nodiscard]] inline PolicyTable load_policy_table(std::filesystem::path const& path, ModelConfig const& model,
                                                   TypePolicies const& types = TypePolicies::conservative()) {
  return parse_policy_table(read_text_file(path), path.string(), model, types);
}

HEADAWARE_NAMESPACE_END
