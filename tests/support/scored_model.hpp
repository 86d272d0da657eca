#pragma once

// Heads with scored slots as plain lists: of all tokens that have left the window, sorted by score, the best.

#include "support/kept_rows.hpp"

#include <headaware/cache/rolling_slots.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// Random scores, some of them equal, some no numbers.
inline std::vector<float> random_scores(std::size_t count, unsigned seed) {
  auto scores = random_elements<float>(static_cast<std::int64_t>(count), seed);
  for (float& score : scores) {
    float const x = std::floor(score * 16);
    score = x == 7 ? std::numeric_limits<float>::quiet_NaN() : x == 9 ? -0.0F : x;
  }
  return scores;
}

/// Sequences whose tokens have random rows and scores in every head of a layer; what each head shows of them.
struct ScoredModel {
  static constexpr std::int64_t head_dim = 16;

  struct Token {
    std::vector<float> scores;  ///< [num_kv_heads]
    std::vector<float> rows;    ///< [2 (key, value), num_kv_heads, head_dim]
  };
  ha::PolicyTable table;
  std::vector<std::vector<Token>> sequences;
  unsigned seed = 1;

  ScoredModel(ha::PolicyTable policies, std::int32_t num_sequences)
      : table(std::move(policies)), sequences(static_cast<std::size_t>(num_sequences)) {}

  [[nodiscard]] std::int32_t heads() const { return table.num_kv_heads(0); }
  [[nodiscard]] std::int64_t length(std::size_t sequence) const {
    return static_cast<std::int64_t>(sequences[sequence].size());
  }
  /// A new token of a sequence. Some scores are equal, some are no numbers or infinite.
  void add(std::size_t sequence) {
    Token token;
    token.rows = random_elements<float>(2 * heads() * head_dim, seed);
    auto const random = random_elements<float>(2 * heads(), seed + 1);
    seed += 2;
    for (std::int32_t head = 0; head < heads(); ++head) {
      float const kind = std::abs(random[static_cast<std::size_t>(2 * head)]);
      float score = std::floor(random[static_cast<std::size_t>(2 * head + 1)] * 8) / 8;
      if (kind < 0.03F) score = std::numeric_limits<float>::quiet_NaN();
      if (kind >= 0.03F && kind < 0.05F) score = -std::numeric_limits<float>::infinity();
      if (kind >= 0.05F && kind < 0.07F) score = -0.0F;
      token.scores.push_back(score);
    }
    sequences[sequence].push_back(std::move(token));
  }
  /// The tokens that a head shows to the query at position `length - 1`, by position.
  [[nodiscard]] std::vector<std::int32_t> shown(std::size_t sequence, std::int32_t head, std::int64_t at) const {
    auto const policy = table.at(0, head);
    std::vector<std::int32_t> result;
    if (!policy.is<ha::SinkWindowScored>()) {
      policy.visit([&](auto const& p) {
        for (std::int64_t t = 0; t < at; ++t) {
          if (p.keeps(t, at)) result.push_back(static_cast<std::int32_t>(t));
        }
      });
      return result;
    }
    auto const p = policy.get<ha::SinkWindowScored>();
    std::vector<std::int32_t> others;
    for (std::int64_t t = 0; t < at; ++t) {
      (t < p.sink || t >= at - p.window ? result : others).push_back(static_cast<std::int32_t>(t));
    }
    auto const score = [&](std::int32_t t) {
      return sequences[sequence][static_cast<std::size_t>(t)].scores[static_cast<std::size_t>(head)];
    };
    // No number first, then by number; of equal ones the older first.
    std::stable_sort(others.begin(), others.end(), [&](std::int32_t a, std::int32_t b) {
      if (std::isnan(score(a)) || std::isnan(score(b))) return std::isnan(score(a)) && !std::isnan(score(b));
      return score(a) < score(b);
    });
    std::size_t const goes = others.size() - std::min(others.size(), static_cast<std::size_t>(p.scored));
    result.insert(result.end(), others.begin() + static_cast<std::ptrdiff_t>(goes), others.end());
    std::sort(result.begin(), result.end());
    return result;
  }
  [[nodiscard]] float const* row(std::size_t sequence, std::int64_t token, std::int32_t head, int plane) const {
    return sequences[sequence][static_cast<std::size_t>(token)].rows.data() + (plane * heads() + head) * head_dim;
  }
  /// Attention of the token at position `at - 1` of a head over what that shows, in double precision.
  [[nodiscard]] std::vector<double> attend(std::size_t sequence, std::int32_t head, std::int64_t at,
                                           float const* query) const {
    std::vector<double> sums(head_dim, 0);
    double whole = 0;
    for (std::int32_t const t : shown(sequence, head, at)) {
      double logit = 0;
      float const* const key = row(sequence, t, head, 0);
      for (std::int64_t c = 0; c < head_dim; ++c) logit += double{query[c]} * double{key[c]};
      double const weight = std::exp(logit / std::sqrt(double{head_dim}));
      float const* const value = row(sequence, t, head, 1);
      for (std::int64_t c = 0; c < head_dim; ++c) sums[static_cast<std::size_t>(c)] += weight * double{value[c]};
      whole += weight;
    }
    for (double& sum : sums) sum = whole > 0 ? sum / whole : 0;
    return sums;
  }

  /// New tokens as tensors to append: [sequences, most, heads, head_dim], scores [sequences, heads, most].
  struct Step {
    std::int64_t most = 0;
    std::vector<float> keys;
    std::vector<float> values;
    std::vector<float> scores;
    [[nodiscard]] ha::StridedLayout layout(std::int64_t sequences, std::int64_t heads) const {
      return ha::strided_bshd(sequences, most, heads, head_dim);
    }
  };
  /// The tokens [lengths[b], lengths[b] + counts[b]) of every sequence.
  [[nodiscard]] Step step(std::vector<std::int32_t> const& lengths, std::vector<std::int32_t> const& counts) const {
    Step result;
    auto const batch = static_cast<std::int64_t>(counts.size());
    result.most = std::max(1, *std::max_element(counts.begin(), counts.end()));
    auto const layout = result.layout(batch, heads());
    result.keys.resize(static_cast<std::size_t>(layout.required_span_size()), 99.0F);
    result.values = result.keys;
    result.scores.resize(static_cast<std::size_t>(batch * heads() * result.most), 99.0F);
    for (std::size_t b = 0; b < counts.size(); ++b) {
      for (std::int32_t t = 0; t < counts[b]; ++t) {
        for (std::int32_t h = 0; h < heads(); ++h) {
          auto const sequence = static_cast<std::int64_t>(b);
          auto const token = static_cast<std::size_t>(lengths[b] + t);
          auto const to = static_cast<std::ptrdiff_t>(layout.offset(sequence, h, t, 0));
          std::copy_n(row(b, lengths[b] + t, h, 0), head_dim, result.keys.begin() + to);
          std::copy_n(row(b, lengths[b] + t, h, 1), head_dim, result.values.begin() + to);
          result.scores[static_cast<std::size_t>((sequence * heads() + h) * result.most + t)] =
              sequences[b][token].scores[static_cast<std::size_t>(h)];
        }
      }
    }
    return result;
  }
};

/// Heads with scored slots of many sizes beside all others.
inline ha::PolicyTable scored_table(std::int32_t num_layers = 1) {
  ha::PolicyTable table(num_layers, 7, ha::Full{});
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    table.set(layer, 1, ha::SinkWindowScored{.sink = 2, .window = 5, .scored = 6});
    table.set(layer, 2, ha::SinkWindow{.sink = 3, .window = 7});
    table.set(layer, 3, ha::SinkWindowScored{.sink = 0, .window = 1, .scored = 1});
    table.set(layer, 4, ha::SinkWindowScored{.sink = 4, .window = 8, .scored = 0});
    table.set(layer, 5, ha::SinkWindowScored{.sink = 1, .window = 0, .scored = 9});
    table.set(layer, 6, ha::SinkWindowScored{.sink = 3, .window = 30, .scored = 40});
  }
  return table;
}

}  // namespace headaware_test
