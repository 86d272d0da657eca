#pragma once

// A picture of configurations side by side: a bar each in two panels, from where nothing is lost.

#include "tools/report/gallery.hpp"

#include <array>
#include <optional>
#include <string>
#include <vector>

namespace report {

struct ComparedBar {
  std::string label;
  std::string color;             ///< "#RRGGBB"
  std::array<double, 2> from{};  ///< where nothing is lost, in each panel
  std::array<double, 2> value{};
};

struct ComparisonPicture {
  std::string name;  ///< of its files
  std::string title;
  std::string reading;                               ///< one sentence: how to read it
  std::array<std::string, 2> figures;                ///< of the panels, with their units
  std::vector<ComparedBar> bars;                     ///< from the top
  std::optional<std::array<double, 2>> reference{};  ///< a line across all bars
  std::string reference_name;
  std::vector<std::pair<std::string, std::string>> colors;  ///< name and colour, for the legend
};

/// Adds a picture and its data; nothing without bars.
void add_comparison(ComparisonPicture const& picture, Gallery& gallery);

}  // namespace report
