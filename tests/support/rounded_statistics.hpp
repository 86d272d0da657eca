#pragma once

// Statistics of made-up heads with errors of rounding: fewer bits err more, keys more than values, and heads differ.

#include "support/planned_statistics.hpp"

#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/stats/retention.hpp>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace headaware_test {

/// Adds errors of `formats` to statistics, of bits that their names end with (8 if with none).
inline headaware::RetentionStatistics with_rounding(headaware::RetentionStatistics statistics,
                                                    std::vector<std::string> formats, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> unit(0, 1);
  for (headaware::RetentionSums& sums : statistics.heads) {
    sums.rounding = headaware::RoundingSums(formats.size());
    sums.rounding.rows = sums.rounding.metric_rows = 10;
    double const size = 10 * sums.output_squared / static_cast<double>(sums.rows) * std::exp(3 * unit(random) - 1.5);
    for (std::size_t i = 0; i < formats.size(); ++i) {
      char const last = formats[i].back();
      double const bits = last >= '3' && last <= '8' ? last - '0' : 8;
      double const error = size / std::pow(std::exp2(bits) - 1, 2) * (0.8 + 0.4 * unit(random));
      sums.rounding.key_error_squared[i] = 5 * error;
      sums.rounding.value_error_squared[i] = error;
      sums.rounding.key_metric_error_squared[i] = 10 * error;
      sums.rounding.value_metric_error_squared[i] = 2 * error;
    }
  }
  statistics.info.formats = std::move(formats);
  return statistics;
}

/// Options that let heads choose among all pairs of what the errors know, and 16 bits.
inline headaware::PlanOptions any_format(headaware::KvErrors const& errors, std::int64_t head_dim = 64) {
  headaware::PlanOptions options;
  options.formats = {.pairs = headaware::all_format_pairs(errors.formats), .head_dim = head_dim};
  return options;
}

}  // namespace headaware_test
