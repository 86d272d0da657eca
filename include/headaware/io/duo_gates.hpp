#pragma once

/// @file
/// Reads the gates that DuoAttention publishes: `full_attention_heads.tsv` and `config.json`.

#include <headaware/config.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/detail/text.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/policy/duo_gates.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Reads the table of gates: a row per layer, a column per KV head, separated by tabs.
template <class = void>
void read_gate_table(std::string_view text, std::string const& source, DuoGates& result) {
  std::size_t columns = 0;
  std::size_t row = 0;
  std::size_t column = 0;
  auto const check = [&](bool ok, char const* what, Text const& expected, Text const& got) {
    if (ok) return;
    throw FormatError(
        {what, expected.str(), got.str(), Text{source, ", row ", row + 1, ", column ", column + 1}.str()});
  };
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
  check(!text.empty(), "no gates", "at least one row", "an empty table");
  for (bool more_rows = true; more_rows; ++row) {
    std::size_t const line_end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, line_end);
    more_rows = line_end < text.size();
    if (more_rows) text.remove_prefix(line_end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);

    column = 0;
    for (bool more_columns = true; more_columns; ++column) {
      std::size_t const end = std::min(line.find('\t'), line.size());
      std::string_view const field = line.substr(0, end);
      more_columns = end < line.size();
      if (more_columns) line.remove_prefix(end + 1);

      double gate = 0;
      auto const [last, error] = std::from_chars(field.data(), field.data() + field.size(), gate);
      bool const number = error == std::errc{} && last == field.data() + field.size() && detail::is_finite(gate);
      check(number, "not a gate", "a finite number", [&] { return quoted(field); });
      check(static_cast<std::int64_t>(result.gates.size()) < max_heads, "too many gates", {"at most ", max_heads},
            "more");
      result.gates.push_back(gate);
    }
    if (row == 0) columns = column;
    check(column == columns, "ragged row", {columns, " columns as in the first row"}, column);
  }
  result.num_layers = static_cast<std::int32_t>(row);
  result.num_kv_heads = static_cast<std::int32_t>(columns);
}

/// Reads the sizes of streaming heads: `deploy_*` unless null, else those of the training.
template <class = void>
void read_gate_config(std::string_view text, std::string source, DuoGates& result) {
  JsonTree const tree(text, std::move(source));
  JsonObject config = tree.root().object();
  auto tokens = [&](char const* deployed, char const* trained, std::int32_t least) {
    auto value = config.find(deployed);
    if (!value || value->is_null()) value = config.get(trained, "an integer");
    return value->integer(least, std::numeric_limits<std::int32_t>::max());
  };
  result.sink_size = tokens("deploy_sink_size", "sink_size", 0);
  result.recent_size = tokens("deploy_recent_size", "recent_size", 1);
}

}  // namespace detail

/// @brief Reads gates from the texts of `full_attention_heads.tsv` and `config.json`.
/// @param table_name, config_name  name the texts in messages, for example their paths
/// @throws FormatError naming source and row and column, or line and JSON pointer, if a row is ragged, a field
///         is not a finite number, a size is missing or out of range, or there are more than `max_heads` gates
template <class = void>
[[nodiscard]] DuoGates parse_duo_gates(std::string_view table, std::string_view config, std::string const& table_name,
                                       std::string config_name) {
  DuoGates result;
  detail::read_gate_table(table, table_name, result);
  detail::read_gate_config(config, std::move(config_name), result);
  return result;
}

/// @brief Reads gates from a folder that holds `full_attention_heads.tsv` and `config.json`.
/// @throws FormatError as `parse_duo_gates`, FileError if a file cannot be read
template <class = void>
[[nodiscard]] DuoGates load_duo_gates(FilePath const& folder) {
  FilePath const table_path = folder / "full_attention_heads.tsv";
  FilePath const config_path = folder / "config.json";
  std::string const table = read_text_file(table_path);
  std::string const config = read_text_file(config_path);
  return parse_duo_gates(table, config, table_path.string(), config_path.string());
}

HEADAWARE_NAMESPACE_END
