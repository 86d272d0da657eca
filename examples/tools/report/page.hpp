#pragma once

// The page that holds all tables and pictures.

#include "tools/report/gallery.hpp"
#include "tools/report/report.hpp"

#include <string>
#include <vector>

namespace report {

/// @brief One HTML document that refers to nothing outside itself.
/// @param drawings  the SVG of each picture; empty: there are none, and the page says so
[[nodiscard]] std::string page(ReportInput const& input, std::vector<Picture> const& pictures,
                               std::vector<std::string> const& drawings);

}  // namespace report
