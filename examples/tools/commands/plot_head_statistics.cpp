// Pictures and a page from the files of a results folder, without the model that they came from.

#include "tools/analysis/about.hpp"
#include "tools/report/report.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/options.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/io/head_statistics.hpp>
#include <headaware/io/retention_statistics.hpp>

#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

struct Options {
  std::filesystem::path results_dir;
  std::filesystem::path output_dir;
  std::string title;

  void add_to(CLI::App& app) {
    support::add_results_dir(app, results_dir, "folder with head_statistics.json and, if any, classifications");
    support::add_output_dir(app, output_dir, "where report.html and pictures/ go; default: the results folder");
    app.add_option("--title", title, "the model's name; default: the folder's");
  }
};

/// The best classes that the folder has; those of the rules where it has none.
std::vector<ha::HeadClassification> classes(std::filesystem::path const& folder, ha::ModelStatistics const& model) {
  for (char const* const name :
       {"validation/refined_classifications.json", "refined_classifications.json", "head_classifications.json"}) {
    if (!std::filesystem::exists(folder / name)) continue;
    std::printf("classes: %s\n", name);
    return ha::load_classifications(folder / name);
  }
  std::printf("classes: by the rules, since the folder has none\n");
  return ha::classify(model);
}

void run(Options options) {
  support::require_folder(options.results_dir, "results", "a folder with head_statistics.json");
  if (options.output_dir.empty()) options.output_dir = options.results_dir;
  support::prepare_results(options.output_dir, {"report.html"}, {"pictures"});
  auto const about = analysis::load_about(options.results_dir);
  if (options.title.empty() && about) options.title = about->model;
  if (options.title.empty())
    options.title = std::filesystem::absolute(options.results_dir / ".").parent_path().filename().string();
  report::ReportInput input{.title = options.title,
                            .statistics = ha::load_statistics(options.results_dir / "head_statistics.json"),
                            .classifications = {},
                            .retention = {},
                            .thresholds = {}};
  input.classifications = classes(options.results_dir, input.statistics);
  if (auto const path = options.results_dir / "retention_statistics.json"; std::filesystem::exists(path)) {
    input.retention = ha::load_retention_statistics(path);
  }
  if (about) {
    input.parameters = analysis::about_rows(*about);
    input.notice = analysis::partial_notice(*about);
  }
  report::write_report(options.output_dir, input);
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv, "Draws pictures and one self-contained page, report.html, from the JSON files of a results folder",
      run);
}
