#pragma once

// Standard errors of means over passages: passages of a text differ more than methods do.

#include <headaware/error.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>

namespace llama_adapter {

/// @brief Returns the standard error of a mean of one value per passage: sample deviation / √count; NaN of fewer
/// than two.
[[nodiscard]] inline double standard_error_of(std::span<double const> values) {
  if (values.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  auto const count = static_cast<double>(values.size());
  double const mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (double const value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (count - 1) / count);
}

/// A share of the gap between uniform windows and the full cache, 1 where nothing is lost.
struct GapClosed {
  double share = std::numeric_limits<double>::quiet_NaN();
  double standard_error = std::numeric_limits<double>::quiet_NaN();  ///< jackknife over passages
};

/// @brief Computes (Σ uniform − Σ method) / (Σ uniform − Σ full) over passages, NLL each.
/// @param full, uniform, method  the same passages in the same order
/// @throws ArgumentError if their counts differ
/// @par Source  jackknife of a ratio: Efron and Stein, The Jackknife Estimate of Variance, 1981
[[nodiscard]] inline GapClosed gap_closed(std::span<double const> full, std::span<double const> uniform,
                                          std::span<double const> method) {
  std::size_t const count = method.size();
  headaware::require(full.size() == count, "passages of the full cache", count, full.size(), "gap_closed");
  headaware::require(uniform.size() == count, "passages of uniform windows", count, uniform.size(), "gap_closed");
  double gained = 0;
  double gap = 0;
  for (std::size_t i = 0; i < count; ++i) {
    gained += uniform[i] - method[i];
    gap += uniform[i] - full[i];
  }
  GapClosed result;
  if (count == 0 || gap == 0) return result;
  result.share = gained / gap;
  if (count < 2) return result;
  double sum = 0;
  double squares = 0;
  for (std::size_t i = 0; i < count; ++i) {
    double const without = (gained - (uniform[i] - method[i])) / (gap - (uniform[i] - full[i]));
    sum += without;
    squares += without * without;
  }
  auto const n = static_cast<double>(count);
  result.standard_error = std::sqrt(std::fmax(0, (n - 1) / n * (squares - sum * sum / n)));
  return result;
}

}  // namespace llama_adapter
