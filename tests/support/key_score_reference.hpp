#pragma once

// Scores of rows by the attention that they get, in plain double-precision loops, and their comparison.

#include "support/kept_rows.hpp"

#include <headaware/attention/key_scores.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace headaware_test {

/// [segments, stride], zeros where no row is.
template <class T>
std::vector<double> naive_key_scores(HeldProblem<T> const& p, ha::KeyScoreReduction reduction, std::int64_t stride) {
  auto const& shape = p.shape;
  double const scale = p.options.scale != 0 ? double(p.options.scale) : 1 / std::sqrt(double(shape.head_dim));
  std::vector<double> result(at(shape.segments() * stride));
  for (std::int64_t b = 0; b < shape.num_sequences; ++b) {
    for (std::int64_t h = 0; h < shape.num_query_heads; ++h) {
      std::int64_t const segment = b * shape.num_kv_heads + h / shape.group();
      auto const& held = p.segments[at(segment)];
      for (std::int64_t t = 0; t < shape.query_tokens; ++t) {
        float const* const query = &p.queries[at(p.query_layout().offset(b, h, t, 0))];
        std::vector<double> weights;
        double z = p.sinks.empty() ? 0 : std::exp(double(p.sinks[at(h)]));
        for (std::size_t i = 0; i < held.positions.size(); ++i) {
          double x = 0;
          for (std::int64_t c = 0; c < shape.head_dim; ++c)
            x += double(query[c]) * double(ha::to_float(held.keys[i * at(shape.head_dim) + at(c)]));
          x *= scale;
          if (p.options.soft_cap > 0) x = double(p.options.soft_cap) * std::tanh(x / double(p.options.soft_cap));
          std::int64_t const before = p.first_positions.empty() ? 0 : p.first_positions[at(b)] + t - held.positions[i];
          bool const seen = before >= 0 && (p.options.window == 0 || before < p.options.window);
          weights.push_back(seen ? std::exp(x) : 0);
          z += weights.back();
        }
        if (!(z > 0) || !std::isfinite(z)) continue;
        for (std::size_t i = 0; i < weights.size(); ++i) {
          double& score = result[at(segment * stride) + i];
          double const probability = weights[i] / z;
          score = reduction == ha::KeyScoreReduction::max ? std::max(score, probability) : score + probability;
        }
      }
    }
  }
  return result;
}

/// Compares scores; those after a head's rows must be as they were: `untouched`.
template <class T>
void check_key_scores(HeldProblem<T> const& p, std::vector<float> const& got, std::vector<double> const& expected,
                      std::int64_t stride, float untouched, double allowed = 1e-5) {
  double worst = 0;
  bool kept = true;
  for (std::int64_t s = 0; s < p.shape.segments(); ++s) {
    for (std::int64_t i = 0; i < stride; ++i) {
      auto const place = at(s * stride + i);
      if (i >= p.rows(at(s))) {
        kept = kept && got[place] == untouched;
        continue;
      }
      double const error = std::abs(double(got[place]) - expected[place]) / (1e-3 + expected[place]);
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
  }
  CHECK(kept);
  CHECK(worst <= allowed);
}

}  // namespace headaware_test
