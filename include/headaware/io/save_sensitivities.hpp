#pragma once

/// @file
/// Writes `sensitivities.json`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/json_text.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/sensitivities.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The text of a `sensitivities.json`; `parse_sensitivities` reads the same values back.
/// @throws ArgumentError if the number of values is another, or one cannot be read again
[[nodiscard]] inline std::string format_sensitivities(SavedSensitivities const& saved) {
  constexpr auto where = "format_sensitivities";
  require(saved.num_layers > 0, "num_layers", "> 0", saved.num_layers, where);
  require(saved.num_kv_heads >= 0, "num_kv_heads", ">= 0", saved.num_kv_heads, where);
  saved.cut.validate();
  std::int64_t const count = std::int64_t{saved.num_layers} * std::max(saved.num_kv_heads, 1);
  require(static_cast<std::int64_t>(saved.values.size()) == count, "number of values", count, saved.values.size(),
          where);
  for (double const value : saved.values) {
    require(std::isfinite(value) && (saved.losses || value >= 0), "value", "a finite number, a factor >= 0", value,
            where);
  }
  nlohmann::ordered_json document;
  document["format"] = detail::sensitivities_format;
  document["version"] = detail::sensitivities_version;
  document["num_layers"] = saved.num_layers;
  document["num_kv_heads"] = saved.num_kv_heads;
  document["kind"] = saved.losses ? "loss_increase" : "factor";
  document["cut"] = {{"sink", saved.cut.sink}, {"window", saved.cut.window}};
  document["values"] = saved.values;
  return detail::json_text(document, 1);
}

/// @brief Writes `format_sensitivities`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_sensitivities(std::filesystem::path const& path, SavedSensitivities const& saved) {
  write_file(path, format_sensitivities(saved));
}

HEADAWARE_NAMESPACE_END
