#pragma once

// Size of the residual stream at each layer, to judge errors of a layer's attention by.

#include "tools/llama/calibration_text.hpp"
#include "tools/llama/engine.hpp"

#include <cstdint>
#include <vector>

namespace llama_adapter {

/// @brief Median over the rows from `first_query` on of |residual|², where a layer has just added its attention's
/// output. @return [layers]
/// @param pieces  of at most `tokens` tokens
/// @throws Error naming the architecture, if a layer adds its attention to nothing; support::Interrupted on Ctrl-C
[[nodiscard]] std::vector<double> residual_norms(Model const& model, CalibrationText::Pieces const& pieces,
                                                 std::int64_t first_query, std::int32_t threads);

}  // namespace llama_adapter
