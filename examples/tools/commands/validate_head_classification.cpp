// Checks the classes of a model's heads against the statistics that they came from, or makes them anew.

#include "tools/analysis/about.hpp"
#include "tools/report/report.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/options.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/classify/summary.hpp>
#include <headaware/classify/validation.hpp>
#include <headaware/io/json.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace ha = headaware;

namespace {

constexpr int inconsistent = 2;

struct Threshold {
  char const* name;
  double ha::ClassifierThresholds::*value;
  char const* help;
};

constexpr std::array<Threshold, 6> known_thresholds{{
    {"low_entropy", &ha::ClassifierThresholds::low_entropy, "nats; below it a head is focused"},
    {"high_entropy", &ha::ClassifierThresholds::high_entropy, "nats; above it a head gathers"},
    {"high_local", &ha::ClassifierThresholds::high_local, "share; above it a focused head is positional"},
    {"high_sink", &ha::ClassifierThresholds::high_sink, "share; above it a head needs its sinks"},
    {"dead_uniformity", &ha::ClassifierThresholds::dead_uniformity, "nats; below it a head is dead"},
    {"coverage", &ha::ClassifierThresholds::coverage, "share that a positional head's window has to exceed"},
}};

struct Options {
  std::filesystem::path results_dir;
  std::filesystem::path output_dir;
  bool reclassify = false;
  bool strict = false;
  bool report = false;
  std::size_t samples = 3;
  std::vector<std::string> threshold_list;
  ha::ClassifierThresholds thresholds;

  void add_to(CLI::App& app) {
    support::add_results_dir(app, results_dir, "folder with head_statistics.json and head_classifications.json");
    support::add_output_dir(
        app, output_dir,
        "where refined_classifications.json and validation_report.txt go; default: RESULTS_DIR/validation");
    app.add_flag("--reclassify", reclassify, "classes from the statistics, not from head_classifications.json");
    app.add_flag("--strict", strict, "exit code 2 if anything does not fit");
    app.add_flag("--report", report, "pictures and report.html, too");
    app.add_option("--samples", samples, "heads of each type that the report shows");
    app.add_option("--thresholds", threshold_list, "thresholds as NAME=VALUE, separated by commas")->delimiter(',');
    for (auto const& threshold : known_thresholds) {
      app.add_option(std::string("--") + threshold.name, thresholds.*threshold.value, threshold.help)
          ->capture_default_str();
    }
  }
};

/// NAME=VALUE into the thresholds. @throws ArgumentError
void set_threshold(ha::ClassifierThresholds& t, std::string const& assignment) {
  auto const equals = assignment.find('=');
  std::string const name = assignment.substr(0, equals);
  std::string known;
  for (auto const& threshold : known_thresholds) {
    known += (known.empty() ? "" : ", ") + std::string(threshold.name);
    if (name != threshold.name) continue;
    char const* const text = equals == std::string::npos ? "" : assignment.c_str() + equals + 1;
    char* end = nullptr;
    double const value = std::strtod(text, &end);
    if (end == text || *end != '\0') {
      throw ha::ArgumentError({"threshold", name + "=NUMBER", assignment, "--thresholds"});
    }
    t.*threshold.value = value;
    return;
  }
  throw ha::ArgumentError({"threshold", "one of " + known, name, "--thresholds"});
}

/// The surest heads of each type beside the numbers that made them what they are.
std::string sample_checks(ha::ModelStatistics const& model, std::span<ha::HeadClassification const> classes,
                          ha::ClassifierThresholds const& t, std::size_t count) {
  std::string text = "SAMPLE CHECKS: THE SUREST HEADS OF EACH TYPE\n" + std::string(40, '-') + "\n";
  for (std::size_t type = 0; type < ha::num_head_types; ++type) {
    std::vector<ha::HeadClassification const*> heads;
    for (auto const& c : classes) {
      if (static_cast<std::size_t>(c.head_type) == type) heads.push_back(&c);
    }
    std::stable_sort(heads.begin(), heads.end(), [](auto* a, auto* b) { return a->confidence > b->confidence; });
    if (heads.size() > count) heads.resize(count);
    if (!heads.empty()) text += "\n  " + std::string(ha::head_type_names[type]) + "\n";
    for (auto const* c : heads) {
      auto const& s = *std::find_if(model.heads.begin(), model.heads.end(), [&](ha::HeadStatistics const& head) {
        return head.layer_idx == c->layer_idx && head.head_idx == c->head_idx;
      });
      auto const by_rules = ha::classify(s, t).head_type;
      std::array<char, 200> line{};
      std::snprintf(line.data(), line.size(),
                    "    layer %3d head %3d: confidence %.3f, entropy %.3f, sink %.3f, local %.3f, uniformity %.3f: ",
                    s.layer_idx, s.head_idx, c->confidence, s.mean_entropy, s.sink_ratio, s.position_preference.local,
                    s.uniformity_score);
      text += line.data();
      text += by_rules == c->head_type ? "fits\n" : "the rules say " + std::string(to_string(by_rules)) + "\n";
    }
  }
  return text;
}

/// Counts the heads that went from one type to another.
std::string changes(std::span<ha::HeadClassification const> before, std::span<ha::HeadClassification const> after) {
  std::map<std::pair<ha::HeadType, ha::HeadType>, int> moved;
  for (std::size_t i = 0; i < after.size(); ++i) {
    if (before[i].head_type != after[i].head_type) ++moved[{before[i].head_type, after[i].head_type}];
  }
  std::string text;
  for (auto const& [types, heads] : moved) {
    text += "  " + std::string(to_string(types.first)) + " -> " + std::string(to_string(types.second)) + ": " +
            std::to_string(heads) + "\n";
  }
  return text.empty() ? "  none\n" : text;
}

int run(Options options) {
  for (auto const& assignment : options.threshold_list) set_threshold(options.thresholds, assignment);
  options.thresholds.validate();
  support::require_folder(options.results_dir, "results",
                          "a folder with head_statistics.json and head_classifications.json");
  if (options.output_dir.empty()) options.output_dir = options.results_dir / "validation";

  support::require_place(options.output_dir, {"refined_classifications.json", "validation_report.txt", "report.html"},
                         {"pictures"});
  analysis::warn_if_partial(options.results_dir);
  ha::ModelStatistics const model = ha::load_statistics(options.results_dir / "head_statistics.json");
  auto const stored_path = options.results_dir / "head_classifications.json";
  std::vector<ha::HeadClassification> classes;
  if (!options.reclassify || std::filesystem::exists(stored_path)) classes = ha::load_classifications(stored_path);
  std::printf("%s: %d layers, %d query heads per layer\n\n", options.results_dir.string().c_str(),
              model.model_info.num_layers, model.model_info.num_heads);
  if (options.reclassify) {
    auto const stored = std::move(classes);
    classes = ha::classify(model, options.thresholds);
    if (!stored.empty()) {
      auto const differing = ha::check_classifications(model, stored, options.thresholds);
      std::printf("head_classifications.json as it is\n%s\nreclassified, type by type\n%s\n",
                  ha::format_issues(differing, static_cast<std::int64_t>(stored.size()), 0).c_str(),
                  changes(stored, classes).c_str());
    }
  }

  auto const issues = ha::check_classifications(model, classes, options.thresholds);
  std::string const consistency = "CONSISTENCY\n" + std::string(40, '-') + "\n" +
                                  ha::format_issues(issues, static_cast<std::int64_t>(classes.size()));
  std::string const text = ha::format_validation_report(model, classes, options.thresholds) + "\n\n" +
                           sample_checks(model, classes, options.thresholds, options.samples) + "\n" + consistency;
  std::printf("%s\n%s\n", ha::format_summary(ha::summarize(classes)).c_str(), consistency.c_str());

  support::make_folder(options.output_dir);
  ha::save_refined_classifications(options.output_dir / "refined_classifications.json", classes,
                                   model.model_info.layers);
  ha::write_file(options.output_dir / "validation_report.txt", text);
  std::printf("wrote refined_classifications.json and validation_report.txt to %s\n",
              options.output_dir.string().c_str());
  std::error_code ignored;
  bool const of_results = std::filesystem::equivalent(options.output_dir, options.results_dir, ignored);
  if (options.report) {
    report::write_report(options.output_dir,
                         {.title = std::filesystem::weakly_canonical(options.results_dir).filename().string(),
                          .statistics = model,
                          .classifications = classes,
                          .retention = {},
                          .thresholds = options.thresholds});
  } else if (!of_results && report::remove_report(options.output_dir)) {
    std::printf("removed the report of an earlier check: --report makes one\n");
  }
  if (!issues.empty() && !options.reclassify) {
    std::printf("note: the classes are not what these thresholds make of the statistics; --reclassify makes them so\n");
  }
  return options.strict && !issues.empty() ? inconsistent : 0;
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv,
      "Checks the classes of a model's heads against its statistics.\n"
      "Exit code 1: inputs that cannot be read or do not belong together; 2: --strict, and something does not fit",
      run);
}
