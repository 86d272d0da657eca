#pragma once

// Random queries, keys and values, and the statistics' formulas over them in plain double-precision loops.

#include <headaware/layout/strided.hpp>
#include <headaware/stats/observe.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

struct Problem {
  std::int32_t num_query_heads = 2;
  std::int32_t num_kv_heads = 1;
  std::int64_t tokens = 0;
  std::int64_t head_dim = 16;
  std::vector<float> queries, keys, values;
  std::vector<float> sinks;  ///< logits of learned sinks, or empty

  Problem(std::int32_t q, std::int32_t kv, std::int64_t s, std::int64_t d, unsigned seed, float spread = 1)
      : num_query_heads(q), num_kv_heads(kv), tokens(s), head_dim(d) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    auto const fill = [&](std::vector<float>& to, std::int64_t heads) {
      to.resize(static_cast<std::size_t>(heads * s * d));
      for (float& x : to) x = spread * normal(random);
    };
    fill(queries, q);
    fill(keys, kv);
    fill(values, kv);
  }
  [[nodiscard]] auto layer(bool with_values) const {
    auto const kv_layout = ha::strided_bhsd(1, num_kv_heads, tokens, head_dim);
    ha::LayerQkv<float, ha::StridedLayout, ha::StridedLayout> result{
        queries.data(),
        keys.data(),
        with_values ? values.data() : nullptr,
        ha::strided_bhsd(1, num_query_heads, tokens, head_dim),
        kv_layout,
        kv_layout,
        num_query_heads,
        num_kv_heads,
        tokens,
        head_dim,
        0};
    if (!sinks.empty()) result.sinks = sinks.data();
    return result;
  }
  /// Whether a head has a learned sink.
  [[nodiscard]] bool has_sink(std::int32_t head) const {
    return !sinks.empty() && std::isfinite(sinks[static_cast<std::size_t>(head)]);
  }
  /// Probabilities of one row, in double; what they lack to 1 is the learned sink's.
  [[nodiscard]] std::vector<double> row(std::int32_t head, std::int64_t q, ha::AttentionScore const& score) const {
    std::int64_t const kv = head / (num_query_heads / num_kv_heads);
    std::vector<double> p(static_cast<std::size_t>(tokens));
    double max = -std::numeric_limits<double>::infinity();
    std::int64_t const oldest = score.sliding_window > 0 ? std::max<std::int64_t>(0, q - score.sliding_window + 1) : 0;
    for (std::int64_t k = oldest; k <= q; ++k) {
      double s = 0;
      for (std::int64_t d = 0; d < head_dim; ++d) {
        s += double(queries[static_cast<std::size_t>((head * tokens + q) * head_dim + d)]) *
             double(keys[static_cast<std::size_t>((kv * tokens + k) * head_dim + d)]);
      }
      s *= score.scale != 0 ? double(score.scale) : 1 / std::sqrt(double(head_dim));
      if (score.soft_cap > 0) s = double(score.soft_cap) * std::tanh(s / double(score.soft_cap));
      p[static_cast<std::size_t>(k)] = s;
      max = std::max(max, s);
    }
    double z = 0;
    if (has_sink(head)) {
      double const sink = double(sinks[static_cast<std::size_t>(head)]);
      max = std::max(max, sink);
      z = std::exp(sink - max);
    }
    for (std::int64_t k = 0; k < tokens; ++k) {
      auto& x = p[static_cast<std::size_t>(k)];
      x = k < oldest || k > q ? 0 : std::exp(x - max);
      z += x;
    }
    for (double& x : p) x /= z;
    return p;
  }
};

/// |W x|² of a head's share of W_O, [hidden, num_query_heads * head_dim].
inline double projected_square(std::vector<float> const& projection, Problem const& problem, std::int32_t head,
                               std::vector<double> const& x) {
  auto const width = static_cast<std::size_t>(problem.num_query_heads * problem.head_dim);
  auto const first = static_cast<std::size_t>(head * problem.head_dim);
  double sum = 0;
  for (std::size_t row = 0; row < projection.size() / width; ++row) {
    double y = 0;
    for (std::size_t d = 0; d < x.size(); ++d) y += double(projection[row * width + first + d]) * x[d];
    sum += y * y;
  }
  return sum;
}

/// The formulas as they are written down, summed over rows.
/// @param projection  W_O, [hidden, num_query_heads * head_dim], or empty
inline ha::HeadChunk naive(Problem const& problem, std::int32_t head, ha::AttentionScore const& score,
                           ha::ObserverParameters const& parameters, std::vector<float> const& projection = {}) {
  constexpr double eps = 1e-10;
  ha::HeadChunk result{ha::ChunkSums(static_cast<std::size_t>(parameters.num_distances)), parameters.empty_sums()};
  auto const recent = static_cast<std::int64_t>(std::floor(double(problem.tokens) * (1 - parameters.recent_ratio)));
  for (std::int64_t q = parameters.first_query; q < problem.tokens; q += parameters.query_stride) {
    auto const p = problem.row(head, q, score);
    auto& c = result.chunk;
    ++c.rows;
    double max = 0;
    double kl = 0;
    std::int64_t const visible = score.sliding_window > 0 ? std::min<std::int64_t>(score.sliding_window, q + 1) : q + 1;
    double const outcomes = double(visible) + (problem.has_sink(head) ? 1 : 0);
    double sink = problem.has_sink(head) ? 1 : 0;
    for (double const x : p) sink -= problem.has_sink(head) ? x : 0;
    auto const add_outcome = [&](double x) {
      c.entropy -= x * std::log(x + eps);
      kl += x * std::log((x + eps) / (1.0 / outcomes + eps));
    };
    if (sink > 0) add_outcome(sink);
    for (std::int64_t k = 0; k <= q; ++k) {
      double const x = p[static_cast<std::size_t>(k)];
      add_outcome(x);
      max = std::max(max, x);
      if (k < parameters.sink_size) c.sink += x;
      if (k >= recent) c.recent += x;
      if (q - k <= parameters.local_window) c.local += x;
      if (q - k < parameters.num_distances) c.distances[static_cast<std::size_t>(q - k)] += x;
    }
    c.max_attention += max;
    if (q > 0) {
      ++c.uniformity_rows;
      c.uniformity += kl;
    }
    if (!parameters.retention) continue;
    auto& r = result.retention;
    ++r.rows;
    std::int64_t const kv = head / (problem.num_query_heads / problem.num_kv_heads);
    auto const value = [&](std::int64_t k, std::int64_t d) {
      return double(problem.values[static_cast<std::size_t>((kv * problem.tokens + k) * problem.head_dim + d)]);
    };
    std::vector<double> o(static_cast<std::size_t>(problem.head_dim));
    for (std::int64_t k = 0; k <= q; ++k) {
      for (std::int64_t d = 0; d < problem.head_dim; ++d)
        o[static_cast<std::size_t>(d)] += p[static_cast<std::size_t>(k)] * value(k, d);
    }
    for (double const x : o) r.output_squared += x * x;
    r.output_metric_squared += projected_square(projection, problem, head, o);
    auto const& grid = *parameters.retention;
    for (std::size_t s = 0; s < grid.sinks.size(); ++s) {
      for (std::size_t w = 0; w < grid.windows.size(); ++w) {
        // Explicit renormalisation over what is kept.
        double mass = 0;
        double kept = sink;
        std::vector<double> output(o.size());
        for (std::int64_t k = 0; k <= q; ++k) {
          double const x = p[static_cast<std::size_t>(k)];
          if (k < grid.sinks[s] || k > q - grid.windows[w]) {
            kept += x;
            for (std::int64_t d = 0; d < problem.head_dim; ++d) output[static_cast<std::size_t>(d)] += x * value(k, d);
          } else {
            mass += x;
          }
        }
        double error = 0;
        for (std::size_t d = 0; d < o.size(); ++d) {
          output[d] = output[d] / kept - o[d];
          error += output[d] * output[d];
        }
        r.mass[grid.cell(s, w)] += mass;
        r.mass_squared[grid.cell(s, w)] += mass * mass;
        r.error_squared[grid.cell(s, w)] += error;
        r.metric_error_squared[grid.cell(s, w)] += projected_square(projection, problem, head, output);
      }
    }
  }
  return result;
}

/// Parameters that observe the errors of formats.
inline ha::ObserverParameters with_formats(std::vector<std::string> formats, std::int64_t stride) {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {0, 4}, .windows = {8}};
  parameters.formats = std::move(formats);
  parameters.rounding_stride = stride;
  return parameters;
}

}  // namespace headaware_test
