#pragma once

// Predictions of a model with everything kept, and how far its other predictions are from them.

#include "tools/llama/policy_run.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace llama_adapter {

/// The predictions of one run with everything kept, from one token on.
///
/// How far a cut moves predictions is told from far fewer tokens than how much it raises the loss, which differs from
/// token to token by more than most cuts cost.
class ReferencePredictions {
 public:
  /// @param first  the first token whose prediction counts; memory is (tokens − 1 − first) · vocabulary floats
  /// @throws ArgumentError if no token is left, and what `PolicyRun::losses` throws
  ReferencePredictions(PolicyRun& run, std::span<std::int32_t const> tokens, std::int64_t first,
                       PolicyRun::LayerDone const& layer_done = {});

  /// @brief KL(kept everything ‖ last run) of the next token, nats. @param run  has run over the same tokens
  /// @return [tokens − 1 − first]
  [[nodiscard]] std::vector<double> divergence(PolicyRun const& run) const;

  [[nodiscard]] std::size_t bytes() const { return log_probabilities_.size() * sizeof(float); }

 private:
  std::int64_t first_;
  std::int64_t rows_;
  std::vector<float> log_probabilities_;  ///< [rows, vocabulary]
};

}  // namespace llama_adapter
