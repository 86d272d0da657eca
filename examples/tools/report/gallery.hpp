#pragma once

// Pictures before they are drawn: their numbers, a script for each, and how to read it.

#include "tools/report/report.hpp"

#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace report {

enum class PictureKind { map, wide };

struct Picture {
  PictureKind kind = PictureKind::wide;
  std::string name;  ///< of its files
  std::string title;
  std::string reading;  ///< one sentence: how to read it
  std::string script;
};

struct DataFile {
  std::string name;
  std::string text;  ///< tab-separated, one line of column names
};

struct Gallery {
  std::vector<Picture> pictures;
  std::vector<DataFile> data;
};

// Each adds its pictures and data. `input` holds statistics and classes by (layer, head).

/// Layer x head: entropy, sink share, local share, type, recommended window.
void add_heat_maps(ReportInput const& input, Gallery& gallery);

/// Distributions of entropy and shares, and sink against local share.
void add_distributions(ReportInput const& input, Gallery& gallery);

/// Attention over distance, and, if it was measured, what is lost over the window.
void add_curves(ReportInput const& input, Gallery& gallery);

/// If they were measured, output errors of keys and of values in row formats.
void add_rounding(ReportInput const& input, Gallery& gallery);

/// @brief Writes data and scripts to `folder`, made if it is not there, and draws the pictures, each whole or not at
/// all. Without gnuplot in PATH there are none, and stderr says what to install.
/// @param names  of all pictures that such a folder may have: those not in the gallery are removed, with data and
/// script
/// @return the drawings as SVG, in the order of the pictures; empty without gnuplot
/// @throws FileError, Error with gnuplot's words if it fails
[[nodiscard]] std::vector<std::string> write_pictures(std::filesystem::path const& folder, Gallery const& gallery,
                                                      std::span<char const* const> names = {});

}  // namespace report
