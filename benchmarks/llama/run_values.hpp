#pragma once

// Figures of runs as JSON and CSV.

#include "tools/support/json_text.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <string>

namespace llama_adapter {

/// A number; null where it was not measured.
[[nodiscard]] inline nlohmann::ordered_json finite_or_null(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

/// The JSON's fields as columns; nothing where something was not measured.
[[nodiscard]] inline std::string csv_of(nlohmann::ordered_json const& runs) {
  std::string text;
  for (auto const& run : runs) {
    if (text.empty()) {
      for (auto const& [name, value] : run.items()) text += (text.empty() ? "" : ",") + name;
      text += "\n";
    }
    std::string line;
    for (auto const& [name, value] : run.items()) {
      if (name != run.items().begin().key()) line += ",";
      if (value.is_string()) {
        line += value.get<std::string>();
      } else if (!value.is_null()) {
        line += support::json_text(value);
      }
    }
    text += line + "\n";
  }
  return text;
}

}  // namespace llama_adapter
