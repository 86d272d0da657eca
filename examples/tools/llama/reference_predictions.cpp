#include "tools/llama/reference_predictions.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace llama_adapter {

namespace {

/// log Σ exp.
float log_sum_exp(std::span<float const> logits) {
  float const top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float const logit : logits) sum += std::exp(logit - top);
  return top + static_cast<float>(std::log(sum));
}

}  // namespace

ReferencePredictions::ReferencePredictions(PolicyRun& run, std::span<std::int32_t const> tokens, std::int64_t first,
                                           PolicyRun::LayerDone const& layer_done)
    : first_(first), rows_(std::ssize(tokens) - 1 - first) {
  namespace ha = headaware;
  ha::require(first >= 0 && rows_ > 0, "first", {"in [0, ", std::ssize(tokens) - 1, ")"}, first,
              "ReferencePredictions");
  (void)run.losses(tokens, ha::PolicyTable(run.model().shape(), ha::Full{}), layer_done);
  std::size_t const vocabulary = run.logits(static_cast<std::int32_t>(first)).size();
  log_probabilities_.resize(static_cast<std::size_t>(rows_) * vocabulary);
#pragma omp parallel for
  for (std::int64_t row = 0; row < rows_; ++row) {
    auto const logits = run.logits(static_cast<std::int32_t>(first_ + row));
    float const total = log_sum_exp(logits);
    float* const to = log_probabilities_.data() + static_cast<std::size_t>(row) * vocabulary;
    std::transform(logits.begin(), logits.end(), to, [&](float logit) { return logit - total; });
  }
}

std::vector<double> ReferencePredictions::divergence(PolicyRun const& run) const {
  std::vector<double> result(static_cast<std::size_t>(rows_));
  std::size_t const vocabulary = log_probabilities_.size() / result.size();
#pragma omp parallel for
  for (std::int64_t row = 0; row < rows_; ++row) {
    auto const logits = run.logits(static_cast<std::int32_t>(first_ + row));
    float const total = log_sum_exp(logits);
    float const* const expected = log_probabilities_.data() + static_cast<std::size_t>(row) * vocabulary;
    double sum = 0;
    for (std::size_t i = 0; i < vocabulary; ++i) sum += std::exp(expected[i]) * (expected[i] - (logits[i] - total));
    result[static_cast<std::size_t>(row)] = std::max(0.0, sum);
  }
  return result;
}

}  // namespace llama_adapter
