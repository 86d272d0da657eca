#pragma once

// Pictures and one self-contained page of what a model's heads look at.
//
//   RESULTS/report.html        tables and all pictures, readable offline
//   RESULTS/pictures/*.tsv     the numbers of the pictures
//   RESULTS/pictures/*.gp      gnuplot scripts; run one in its folder to draw it again
//   RESULTS/pictures/*.svg, *.png

#include <headaware/classify/head_type.hpp>
#include <headaware/classify/thresholds.hpp>
#include <headaware/stats/head_statistics.hpp>
#include <headaware/stats/retention.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace report {

struct ReportInput {
  std::string title;  ///< the model's name
  headaware::ModelStatistics statistics;
  std::vector<headaware::HeadClassification> classifications;  ///< of the same heads, in any order
  std::optional<headaware::RetentionStatistics> retention;
  headaware::ClassifierThresholds thresholds;                        ///< drawn as lines
  std::vector<std::pair<std::string, std::string>> parameters = {};  ///< more rows of the page's last table
  std::string notice = {};                                           ///< shown at the top, if any
};

/// @brief Writes the page, the pictures, and their data and scripts, each whole or not at all; says on
///        stdout what it wrote. Without gnuplot in PATH there are no pictures; stderr and the page then say what
///        to install.
/// @throws ArgumentError if statistics, classes and retention are not of the same heads, FileError if a file
///         cannot be written, Error with gnuplot's words if it fails
void write_report(std::filesystem::path const& results_dir, ReportInput const& input);

/// Removes what `write_report` wrote there, if anything: for results that it does not show. @return whether there was a
/// page
bool remove_report(std::filesystem::path const& results_dir);

}  // namespace report
