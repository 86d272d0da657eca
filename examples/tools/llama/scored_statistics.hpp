#pragma once

// Errors of scored slots, measured while a model reads.

#include "tools/llama/policy_run.hpp"

#include <headaware/io/row_scorer.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <cstdint>
#include <vector>

namespace llama_adapter {

/// @brief Adds errors of scored slots to the statistics of the same pieces.
/// Layers that slide have none.
/// @param first_query, query_stride  as of the statistics; of these rows every fourth counts
/// @throws support::Interrupted on Ctrl-C; ArgumentError if the scores are another model's
void observe_scored_slots(PolicyRun& run, std::vector<std::vector<std::int32_t>> const& pieces,
                          headaware::RowScorer const& scorer, headaware::ScoredGrid const& grid,
                          headaware::RetentionStatistics& statistics);

}  // namespace llama_adapter
