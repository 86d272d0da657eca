#pragma once

// The tables that a benchmark compares: each method at each size.

#include "llama/method_options.hpp"
#include "llama/policy_benchmark.hpp"

#include <headaware/model_shape.hpp>
#include <headaware/policy/duo_gates.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace llama_adapter {

/// @brief The methods' tables. Beside head_aware there is streaming_llm at its size.
/// @throws ArgumentError where an option is missing, of no method, does not fit another or is of a model of another
///         shape; FormatError and FileError as the files' loaders
[[nodiscard]] std::vector<BenchmarkRun> benchmark_runs(MethodOptions const& options,
                                                       headaware::ModelShape const& model);

/// @brief DuoAttention at the size of a budget: heads keep all of the context, those of the largest gates first, the
/// others sinks and a window; as many as the budget holds. What then is left, less than one such head, widens the
/// others' windows, so that the mean is the budget.
/// @param budget  mean tokens per KV head
/// @param sink    of the others; 4 unless given
/// @param window  of the others; unless given 252, or less where sinks and window would be more than half of the budget
/// @throws ArgumentError if there is not one finite gate a KV head, layers differ, or sinks and window are more than
/// the budget
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819 (gates; the budget is ours)
[[nodiscard]] headaware::PolicyTable duo_table(headaware::DuoGates const& gates, headaware::ModelShape const& model,
                                               std::int64_t budget, std::int64_t context,
                                               std::optional<std::int32_t> sink = {},
                                               std::optional<std::int32_t> window = {});

/// @brief DuoAttention as its gates are published: the share of KV heads with the largest gates keeps everything, the
/// others the sinks and the window that belong to the gates, or those given.
/// @throws ArgumentError if there is not one finite gate a KV head, or the share is not in [0, 1]
[[nodiscard]] headaware::PolicyTable duo_share_table(headaware::DuoGates gates, headaware::ModelShape const& model,
                                                     double share, std::optional<std::int32_t> sink = {},
                                                     std::optional<std::int32_t> window = {});

/// Says what rules cost beside uniform windows of their size; empty where no run is by rules.
[[nodiscard]] std::string rules_advice(std::vector<BenchmarkRun> const& runs);

/// Names the plans that have only uniform windows of other sizes beside them; empty where there are none.
[[nodiscard]] std::string size_advice(std::vector<BenchmarkRun> const& runs);

}  // namespace llama_adapter
