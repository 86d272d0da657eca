#pragma once

/// @file
/// Reads `sensitivities.json`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/json_records.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/plan/measured_sensitivity.hpp>
#include <headaware/plan/sensitivity.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One `sensitivities.json`: either factors of errors, or the losses to make them of.
struct SavedSensitivities {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;  ///< 0: one number a layer
  bool losses = false;            ///< `values` are increases of the loss (nats) with one layer or head alone cut
  SinkWindow cut{.sink = 4, .window = 60};  ///< to this
  std::vector<double> values;               ///< [layers] or [layers, num_kv_heads]

  /// @throws ArgumentError unless they are of a model of this shape
  void require_shape(std::int32_t layers, std::int32_t layer_heads, char const* where) const {
    require(num_layers == layers, "sensitivities' layers", layers, num_layers, where);
    bool const heads = num_kv_heads == 0 || num_kv_heads == layer_heads;
    require(heads, "sensitivities' KV heads", layer_heads, num_kv_heads, where);
  }

  /// @brief The factors; from losses as `sensitivities_from_losses` makes them with this cut.
  /// @throws ArgumentError if the model is another, or as there
  [[nodiscard]] Sensitivities factors(RetentionStatistics const& statistics, SensitivityOptions options = {}) const {
    require_shape(statistics.info.num_layers, statistics.info.num_kv_heads, "SavedSensitivities::factors");
    options.cut = cut;
    if (losses) return sensitivities_from_losses(statistics, values, options);
    return num_kv_heads == 0 ? Sensitivities::per_layer(values)
                             : Sensitivities::per_head(num_layers, num_kv_heads, values);
  }

  friend bool operator==(SavedSensitivities const&, SavedSensitivities const&) = default;
};

namespace detail {
inline constexpr std::string_view sensitivities_format = "headaware.sensitivities";
inline constexpr std::int32_t sensitivities_version = 1;
}  // namespace detail

/// @brief Sensitivities from the text of a `sensitivities.json`: `{format, version, num_layers, num_kv_heads, kind,
/// cut{sink, window}, values[…]}`; kind is `factor` or `loss_increase`, num_kv_heads 0 where there is one number a
/// layer.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, of another format or
///         version, a field is missing, of another type or out of range, or a factor is negative
[[nodiscard]] inline SavedSensitivities parse_sensitivities(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();
  detail::require_format(root, detail::sensitivities_format, detail::sensitivities_version);
  SavedSensitivities saved;
  saved.num_layers = root.get("num_layers", "an integer").integer(1, detail::max_index);
  saved.num_kv_heads = root.get("num_kv_heads", "an integer").integer(0, detail::max_index);
  JsonValue const kind = root.get("kind", "a string");
  saved.losses = kind.string() == "loss_increase";
  if (!saved.losses && kind.string() != "factor") kind.fail("unknown kind", "factor or loss_increase");
  JsonObject cut = root.get("cut", "an object").object();
  constexpr std::int32_t most = std::int32_t{1} << 30;
  saved.cut.sink = cut.get("sink", "an integer").integer(0, most);
  saved.cut.window = cut.get("window", "an integer").integer(0, most);
  JsonArray const array = root.get("values", "an array").array();
  std::int64_t const count = std::int64_t{saved.num_layers} * std::max(saved.num_kv_heads, 1);
  if (static_cast<std::int64_t>(array.size()) != count) {
    array.fail("number of values", std::to_string(count), std::to_string(array.size()));
  }
  for (JsonValue const value : array) {
    saved.values.push_back(value.number());
    if (!saved.losses && !(saved.values.back() >= 0)) value.fail("negative factor", ">= 0");
  }
  return saved;
}

/// @brief `parse_sensitivities` of a file.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline SavedSensitivities load_sensitivities(std::filesystem::path const& path) {
  return parse_sensitivities(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
