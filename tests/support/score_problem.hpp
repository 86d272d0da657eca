#pragma once

// Random rows to score, in any layout, and linear scores of them by plain double-precision loops.

#include "support/catch.hpp"
#include "support/rotary.hpp"

#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/score/score_features.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// Rows of one layer. Keys and values may lie in other layouts than queries.
template <class T>
struct ScoreProblem {
  ha::ScoreFeatures features;
  ha::ScoreBatch batch;
  ha::StridedLayout query_layout;
  ha::StridedLayout key_layout;
  ha::StridedLayout value_layout;
  std::vector<T> queries, keys, values;
  std::vector<float> weights;             ///< [num_kv_heads, features]
  std::optional<Rotary> rotary{};         ///< that queries and keys have
  std::vector<std::int32_t> positions{};  ///< [sequences, tokens] that they have it for; empty: 0, 1, …

  ScoreProblem(ha::ScoreFeatures const& f, ha::ScoreBatch const& b, unsigned seed, ha::StridedLayout const& q,
               ha::StridedLayout const& k, ha::StridedLayout const& v)
      : features(f), batch(b), query_layout(q), key_layout(k), value_layout(v) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    auto const fill = [&](std::vector<T>& to, ha::StridedLayout const& layout) {
      to.resize(static_cast<std::size_t>(layout.required_span_size()));
      for (T& x : to) x = ha::from_float<T>(normal(random));
    };
    fill(queries, q);
    fill(keys, k);
    fill(values, v);
    weights.resize(static_cast<std::size_t>(f.num_kv_heads * f.count()));
    for (float& w : weights) w = normal(random);
  }
  /// Queries token by token, keys head by head, values transposed.
  ScoreProblem(ha::ScoreFeatures const& f, ha::ScoreBatch const& b, unsigned seed)
      : ScoreProblem(f, b, seed, ha::strided_bshd(b.num_sequences, b.tokens, f.num_query_heads, f.head_dim),
                     ha::strided_bhsd(b.num_sequences, f.num_kv_heads, b.tokens, f.head_dim),
                     ha::strided_bhds(b.num_sequences, f.num_kv_heads, f.value_dim, b.tokens)) {}

  [[nodiscard]] std::int64_t position(std::int64_t sequence, std::int64_t token) const {
    return positions.empty() ? token : positions[static_cast<std::size_t>(sequence * batch.tokens + token)];
  }

  /// A row before rotary embedding.
  [[nodiscard]] std::vector<double> row(std::vector<T> const& data, ha::StridedLayout const& layout, std::int64_t s,
                                        std::int64_t h, std::int64_t t, bool turned) const {
    std::vector<double> result;
    for (std::int64_t c = 0; c < layout.num_channels(); ++c) {
      result.push_back(static_cast<double>(ha::to_float(data[static_cast<std::size_t>(layout.offset(s, h, t, c))])));
    }
    if (turned && rotary) rotary->turn(result, -static_cast<double>(position(s, t)));
    return result;
  }

  [[nodiscard]] std::vector<double> features_of(std::int64_t s, std::int64_t t) const {
    std::vector<double> all;
    auto const add = [&](std::vector<double> const& row) { all.insert(all.end(), row.begin(), row.end()); };
    std::vector<double> norms;
    auto const norm = [&](std::vector<double> const& row) {
      double sum = 0;
      for (double const x : row) sum += x * x;
      norms.push_back(std::log(std::sqrt(sum + 1e-12)));
    };
    for (std::int64_t h = 0; h < features.num_query_heads; ++h) add(row(queries, query_layout, s, h, t, true));
    for (std::int64_t h = 0; h < features.num_kv_heads; ++h) {
      add(row(keys, key_layout, s, h, t, true));
      norm(row(keys, key_layout, s, h, t, false));
    }
    for (std::int64_t h = 0; h < features.num_kv_heads; ++h) {
      add(row(values, value_layout, s, h, t, false));
      norm(row(values, value_layout, s, h, t, false));
    }
    add(norms);
    all.push_back(1);
    return all;
  }

  /// Checks scores of all rows, each to the rounding of its sum.
  void check(ha::RowScores const& scores) const {
    bool all = true;
    for (std::int64_t s = 0; s < batch.num_sequences; ++s) {
      for (std::int64_t t = 0; t < batch.tokens; ++t) {
        std::vector<double> const x = features_of(s, t);
        REQUIRE(static_cast<std::int64_t>(x.size()) == features.count());
        for (std::int64_t h = 0; h < features.num_kv_heads; ++h) {
          double sum = 0;
          double size = 0;
          for (std::size_t i = 0; i < x.size(); ++i) {
            double const term = x[i] * static_cast<double>(weights[static_cast<std::size_t>(h) * x.size() + i]);
            sum += term;
            size += std::abs(term);
          }
          double const got = static_cast<double>(scores.head(s, h)[t]);
          bool const near = std::abs(got - sum) <= 4e-7 * size + 1e-6;
          if (near) continue;
          all = false;
          UNSCOPED_INFO("sequence " << s << ", head " << h << ", token " << t << ": " << got << ", not " << sum);
        }
      }
    }
    CHECK(all);
  }
};

}  // namespace headaware_test
