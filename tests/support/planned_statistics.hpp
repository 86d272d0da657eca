#pragma once

// Retention statistics of made-up heads: errors that fall with the window and mostly with the sinks, and stray a
// little.

#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/weighted_errors.hpp>
#include <headaware/stats/retention.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>

namespace headaware_test {

/// @param noise  how far errors stray from falling, as a share of them
inline headaware::RetentionStatistics random_statistics(std::int32_t layers, std::int32_t heads,
                                                        std::int32_t num_kv_heads, headaware::RetentionGrid const& grid,
                                                        unsigned seed, double noise = 0.1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> unit(0, 1);
  headaware::RetentionStatistics result;
  result.info = {layers, heads, num_kv_heads, 0, 1, true, true, grid};
  for (std::int32_t i = 0; i < layers * heads; ++i) {
    headaware::RetentionSums sums(grid);
    sums.rows = sums.value_rows = sums.metric_rows = 100 + i;
    auto const rows = static_cast<double>(sums.rows);
    double const size = std::exp(4 * unit(random) - 2);
    double const power = 0.2 + 1.5 * unit(random);
    double const sink_share = unit(random);
    sums.output_squared = rows * size * 4;
    sums.output_metric_squared = 2 * sums.output_squared;
    for (std::size_t s = 0; s < grid.sinks.size(); ++s) {
      for (std::size_t w = 0; w < grid.windows.size(); ++w) {
        double const kept = std::pow(static_cast<double>(grid.windows[w]), -power);
        double const sinks = grid.sinks[s] == 0 ? 1 : 1 - sink_share * (1 - 0.3 / grid.sinks[s]);
        double const error = rows * size * kept * sinks * (1 + noise * (unit(random) - 0.5));
        std::size_t const cell = grid.cell(s, w);
        sums.mass[cell] = error / (1 + size);
        sums.mass_squared[cell] = error / (2 + size);
        sums.error_squared[cell] = error;
        sums.metric_error_squared[cell] = 2 * error;
      }
    }
    result.heads.push_back(sums);
  }
  return result;
}

/// Errors of all heads of one text.
inline headaware::KvErrors errors_of(headaware::RetentionStatistics const& statistics,
                                     headaware::ErrorMeasure measure = headaware::ErrorMeasure::output) {
  headaware::WeightedStatistics const text{&statistics};
  return headaware::weighted_errors(std::span(&text, 1), measure);
}

}  // namespace headaware_test
