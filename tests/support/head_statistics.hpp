#pragma once

// How far apart statistics are.

#include "support/catch.hpp"

#include <headaware/stats/head_statistics.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

namespace headaware_test {

namespace ha = headaware;

/// The largest difference of any field of two heads' statistics.
inline double difference(ha::HeadStatistics const& a, ha::HeadStatistics const& b) {
  double worst = 0;
  for (auto const& [x, y] : {std::pair{a.mean_entropy, b.mean_entropy},
                             {a.std_entropy, b.std_entropy},
                             {a.max_attention_mean, b.max_attention_mean},
                             {a.sink_ratio, b.sink_ratio},
                             {a.position_preference.sink, b.position_preference.sink},
                             {a.position_preference.recent, b.position_preference.recent},
                             {a.position_preference.local, b.position_preference.local},
                             {a.position_preference.global, b.position_preference.global},
                             {a.uniformity_score, b.uniformity_score}}) {
    worst = std::max(worst, std::abs(x - y));
  }
  REQUIRE(a.relative_position_dist.size() == b.relative_position_dist.size());
  for (std::size_t d = 0; d < a.relative_position_dist.size(); ++d) {
    worst = std::max(worst, std::abs(a.relative_position_dist[d] - b.relative_position_dist[d]));
  }
  return worst;
}

/// The same of all heads of two models.
inline double difference(ha::ModelStatistics const& a, ha::ModelStatistics const& b) {
  double worst = 0;
  REQUIRE(a.heads.size() == b.heads.size());
  for (std::size_t i = 0; i < a.heads.size(); ++i) worst = std::max(worst, difference(a.heads[i], b.heads[i]));
  return worst;
}

}  // namespace headaware_test
