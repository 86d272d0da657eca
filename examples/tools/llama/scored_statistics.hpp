#pragma once

// Errors of scored slots, measured while a model reads.

#include "tools/llama/policy_run.hpp"

#include <headaware/io/row_scorer.hpp>
#include <headaware/stats/output_metric.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace llama_adapter {

/// @brief Adds errors of scored slots to the statistics of the same pieces: of the rows that these are of, every fourth
/// counts. Layers that slide have none.
/// @param metrics  of W_O, [layers], as the statistics have them (`analysis::output_metrics`)
/// @param grid     pairs of windows and slots, the same for all texts whose errors are to add up
/// @throws support::Interrupted on Ctrl-C; ArgumentError if the scores are another model's
void observe_scored_slots(PolicyRun& run, std::vector<std::vector<std::int32_t>> const& pieces,
                          std::span<headaware::OutputMetric const> metrics, headaware::RowScorer const& scorer,
                          headaware::ScoredGrid const& grid, headaware::RetentionStatistics& statistics);

}  // namespace llama_adapter
