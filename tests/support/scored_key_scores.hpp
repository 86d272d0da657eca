#pragma once

// Scores of rows of caches with scored slots by the attention that they get, in plain double-precision loops over what
// the records say that each query sees.

#include "support/scored_pages.hpp"

#include <headaware/attention/key_score_buffer.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace headaware_test {

/// The largest relative error of scores, but for the least ones, whose absolute error counts.
inline double worst_error(std::vector<float> const& scores, std::vector<double> const& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    worst = std::max(worst, std::abs(double{scores[i]} - expected[i]) / (1e-3 + expected[i]));
  }
  return worst;
}

/// [segments, stride] of the newest tokens' queries, rows as `ScoredRows` has them: sinks, window, scored slots.
template <class T>
std::vector<double> naive_scored_key_scores(ScoredPages<T>& p, std::int32_t layer, std::int64_t tokens,
                                            std::int32_t group, std::vector<T> const& queries,
                                            ha::KeyScoreReduction reduction, std::int64_t stride) {
  std::vector<double> result(at(p.batch * p.heads * stride));
  auto const layout = ha::strided_bshd(p.batch, tokens, p.heads * group, p.key_dim);
  auto const slots = p.pages.slots().view();
  T const* const keys = p.keys.data() + layer * p.pages.slots().rows_total(0) * p.key_dim;
  for (std::int32_t b = 0; b < p.batch; ++b) {
    std::int64_t const length = p.state.length(b);
    for (std::int32_t h = 0; h < p.heads; ++h) {
      ha::RollingHead const& head = slots.head(layer, h);
      auto const window = ha::RollingRows::of(head, b, head.rule.range_of_queries(length, tokens));
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::vector<std::int32_t> positions(at(head.slots()));
        ha::slot_positions(slots, p.rolled.view(), layer, h, b, length - tokens + t + 1, positions);
        for (std::int32_t g = 0; g < group; ++g) {
          T const* const query = queries.data() + layout.offset(b, h * group + g, t, 0);
          std::vector<double> weights(positions.size());
          double whole = 0;
          for (std::size_t slot = 0; slot < positions.size(); ++slot) {
            if (positions[slot] < 0) continue;
            T const* const key = keys + head.row(b, static_cast<std::int64_t>(slot)) * p.key_dim;
            double logit = 0;
            for (std::int64_t c = 0; c < p.key_dim; ++c) {
              logit += double{ha::to_float(query[c])} * double{ha::to_float(key[c])};
            }
            whole += weights[slot] = std::exp(logit / std::sqrt(static_cast<double>(p.key_dim)));
          }
          for (std::size_t slot = 0; slot < positions.size(); ++slot) {
            if (positions[slot] < 0) continue;
            std::int64_t const scored = static_cast<std::int64_t>(slot) - head.ring_end();
            std::int64_t const row = scored < 0 ? window.tokens.kept_before(positions[slot]) : window.rows() + scored;
            double& score = result[at((b * p.heads + h) * stride + row)];
            double const probability = weights[slot] / whole;
            score = reduction == ha::KeyScoreReduction::max ? std::max(score, probability) : score + probability;
          }
        }
      }
    }
  }
  return result;
}

/// A cache whose slack has been used: drafts taken back, and chunks.
template <class P>
void use_slack(P& p) {
  p.append({110, 40, 70});
  p.append({5, 9, 1});
  p.rollback(0, 4);
  p.fork(0, 2);
  p.append({7, 7, 7});
}

}  // namespace headaware_test
