#pragma once

// Observes a source text by text, and keeps what has been seen safe from interruptions.

#include "tools/analysis/attention_source.hpp"

#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/output_metric.hpp>

#include <cstdint>
#include <filesystem>
#include <vector>

namespace analysis {

struct AnalysisOptions {
  std::filesystem::path output_dir;
  headaware::ObserverParameters parameters;
  bool output_metric = true;  ///< errors after W_O too, where the source knows it
  bool resume = false;        ///< go on from output_dir/attention_sums.json
};

/// The observation so far.
struct Analysis {
  headaware::AttentionObserver observer;
  std::int64_t texts_done = 0;
  std::int64_t texts = 0;
  std::int64_t tokens_done = 0;
  std::int64_t tokens = 0;
  double seconds = 0;
  std::vector<headaware::AttentionScore> scores;  ///< of each layer, as the last text of this run had it
  [[nodiscard]] bool complete() const { return texts_done == texts; }
};

/// The factors of W_O of all layers, [layers]; none where they are not wanted or the source does not know them.
[[nodiscard]] std::vector<headaware::OutputMetric> output_metrics(AttentionSource const& source, bool wanted);

/// @brief Observes all texts of a source, showing progress on stderr. Ctrl-C ends it after the last whole text.
///        `output_dir/attention_sums.json` always holds all whole texts of at most ten seconds ago.
/// @throws ArgumentError if what is to be resumed was another observation; what the source throws
[[nodiscard]] Analysis analyze(AttentionSource& source, AnalysisOptions const& options);

/// @brief Writes head_statistics.json, retention_statistics.json, head_classifications.json, analysis.json and the
///        report, and prints the summary of the classes. @pre at least one text was observed
///
/// What an earlier analysis left there and this one does not make goes: retention statistics, refined classes, reports
/// and plans made of them.
void write_results(Analysis const& analysis, AttentionSource const& source, std::filesystem::path const& output_dir);

}  // namespace analysis
