#pragma once

// An ablation study as files: results.json, summary.md, a picture a group.

#include "llama/ablation.hpp"

#include <filesystem>
#include <string>

namespace llama_adapter {

/// The study as Markdown: a table a group, the best of what compares marked, and what the numbers say.
[[nodiscard]] std::string ablation_summary(AblationStudy const& study);

/// The study as JSON: one object per configuration.
[[nodiscard]] std::string ablation_json(AblationStudy const& study);

/// @brief Writes both, and the folder `pictures`. @throws FileError, Error with gnuplot's words if it fails
void write_ablation(std::filesystem::path const& folder, AblationStudy const& study);

}  // namespace llama_adapter
