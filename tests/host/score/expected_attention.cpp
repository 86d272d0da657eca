// Moments of queries, however they are cut; expected attention against sampled queries and against plain loops.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/score_problem.hpp"

#include <headaware/score/expected_attention.hpp>
#include <headaware/score/query_moments.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

using namespace headaware_test;

namespace {

void check_same(ha::QueryMoments const& a, ha::QueryMoments const& b) {
  REQUIRE(a.count() == b.count());
  for (std::int32_t h = 0; h < a.num_query_heads(); ++h) {
    for (std::int64_t i = 0; i < a.head_dim(); ++i) {
      CHECK(std::abs(a.mean(h)[static_cast<std::size_t>(i)] - b.mean(h)[static_cast<std::size_t>(i)]) <= 1e-12);
      for (std::int64_t j = 0; j < a.head_dim(); ++j) {
        CHECK(std::abs(a.covariance(h, i, j) - b.covariance(h, i, j)) <= 1e-12);
      }
    }
  }
}

/// Of the queries of all sequences, in two passes.
ha::QueryMoments const& check_definition(ScoreProblem<float> const& p, ha::QueryMoments const& moments) {
  auto const dim = static_cast<std::size_t>(p.features.head_dim);
  double const count = static_cast<double>(p.batch.num_sequences * p.batch.tokens);
  CHECK(static_cast<double>(moments.count()) == count);
  for (std::int32_t h = 0; h < p.features.num_query_heads; ++h) {
    std::vector<std::vector<double>> rows;
    std::vector<double> mean(dim);
    for (std::int64_t s = 0; s < p.batch.num_sequences; ++s) {
      for (std::int64_t t = 0; t < p.batch.tokens; ++t) {
        rows.push_back(p.row(p.queries, p.query_layout, s, h, t, true));
        for (std::size_t c = 0; c < dim; ++c) mean[c] += rows.back()[c] / count;
      }
    }
    for (std::size_t a = 0; a < dim; ++a) {
      CHECK(std::abs(moments.mean(h)[a] - mean[a]) <= 1e-6);
      for (std::size_t b = 0; b < dim; ++b) {
        double sum = 0;
        for (auto const& row : rows) sum += (row[a] - mean[a]) * (row[b] - mean[b]) / count;
        CHECK(std::abs(moments.covariance(h, static_cast<std::int64_t>(a), static_cast<std::int64_t>(b)) - sum) <=
              1e-6);
      }
    }
  }
  return moments;
}

}  // namespace

TEST_CASE("moments of queries are those of their definition, however these are cut", "[score]") {
  ScoreProblem<float> p({3, 1, 6, 4}, {2, 50}, 4);
  for (float& x : p.queries) x += 3;  // a mean far from zero
  p.rotary = Rotary::of_base(ha::RotaryPairing::interleaved, 4, 100);
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::interleaved, 4, 100);
  auto const moments_of = [&] { return ha::QueryMoments(3, 6); };
  auto whole = moments_of();
  for (std::int64_t s = 0; s < 2; ++s) whole.add(p.queries.data(), p.query_layout, s, 0, 50, rotation);
  check_definition(p, whole);

  auto first = moments_of();
  auto second = moments_of();
  first.add(p.queries.data(), p.query_layout, 0, 0, 1, rotation);
  first.add(p.queries.data(), p.query_layout, 0, 1, 1, rotation);
  first.add(p.queries.data(), p.query_layout, 0, 1, 33, rotation);
  second.add(p.queries.data(), p.query_layout, 1, 0, 50, rotation);
  second.add(p.queries.data(), p.query_layout, 0, 33, 50, rotation);
  auto merged = moments_of();
  merged.merge(moments_of());
  merged.merge(first);
  merged.merge(second);
  check_same(merged, whole);
}

TEST_CASE("expected attention is what sampled queries give on average", "[score]") {
  // One head, no rotation: the mean of exp(q·k) over many normal queries, normalised, times the value's norm.
  ScoreProblem<float> p({1, 1, 4, 3}, {1, 12}, 6);
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::int64_t const count = 200000;
  std::vector<float> queries;
  for (std::int64_t i = 0; i < count; ++i) {
    float const a = normal(random);
    float const b = normal(random);
    queries.insert(queries.end(), {0.5F + a, 0.7F * b - 0.4F * a, 0.3F * normal(random), -1.0F});
  }
  ha::QueryMoments moments(1, 4);
  moments.add(queries.data(), ha::strided_shd(count, 1, 4), 0, 0, count);
  std::vector<float> scores(12);
  ha::expected_attention(p.features, p.batch, moments, {}, p.keys.data(), p.values.data(),
                         ha::KvLayouts{p.key_layout, p.value_layout}, ha::RowScores::dense(scores.data(), 1, 12));
  std::vector<double> expected(12);
  double all = 0;
  for (std::size_t t = 0; t < 12; ++t) {
    auto const key = p.row(p.keys, p.key_layout, 0, 0, static_cast<std::int64_t>(t), false);
    for (std::int64_t i = 0; i < count; ++i) {
      double logit = 0;
      for (std::size_t c = 0; c < 4; ++c)
        logit += key[c] * static_cast<double>(queries[static_cast<std::size_t>(i) * 4 + c]);
      expected[t] += std::exp(logit / 2) / static_cast<double>(count);
    }
    all += expected[t];
  }
  for (std::size_t t = 0; t < 12; ++t) {
    double norm = 0;
    for (double const x : p.row(p.values, p.value_layout, 0, 0, static_cast<std::int64_t>(t), false)) norm += x * x;
    CHECK(std::abs(std::exp(static_cast<double>(scores[t])) - expected[t] / all * std::sqrt(norm)) <=
          0.02 * expected[t] / all * std::sqrt(norm));
  }
}

TEST_CASE("expected queries are rotated as their positions are on average, and groups averaged", "[score]") {
  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    ScoreProblem<float> p({4, 2, 6, 5}, {2, 9}, 7);
    auto const rotary = Rotary::of_base(pairing, 4, 50);
    auto const rotation = ha::KeyRotation::from_base(pairing, 4, 50);
    ha::QueryMoments moments(4, 6);
    for (std::int64_t s = 0; s < 2; ++s) moments.add(p.queries.data(), p.query_layout, s, 0, 9);
    ha::ExpectedQueries const queries{.next_position = 9, .tokens = 7, .scale = 0.3F};
    std::vector<float> scores(36);
    auto const dense = ha::RowScores::dense(scores.data(), 2, 9);
    ha::expected_attention(p.features, p.batch, moments, queries, p.keys.data(), p.values.data(),
                           ha::KvLayouts{p.key_layout, p.value_layout}, dense, rotation);

    // The averaged rotation R, column by column.
    std::vector<std::vector<double>> columns;
    for (std::size_t c = 0; c < 6; ++c) {
      std::vector<double> mean(6);
      for (int t = 0; t < 7; ++t) {
        std::vector<double> unit(6);
        unit[c] = 1;
        rotary.turn(unit, 9 + t);
        for (std::size_t i = 0; i < 6; ++i) mean[i] += unit[i] / 7;
      }
      columns.push_back(mean);
    }
    for (std::int64_t s = 0; s < 2; ++s) {
      for (std::int64_t h = 0; h < 2; ++h) {
        std::vector<double> shares(9);
        for (std::int32_t g = 0; g < 2; ++g) {
          auto const query = static_cast<std::int32_t>(2 * h) + g;
          std::vector<double> weights;
          for (std::int64_t t = 0; t < 9; ++t) {
            auto const key = p.row(p.keys, p.key_layout, s, h, t, false);
            // Rᵀk, which meets the moments as they are.
            std::vector<double> turned(6);
            for (std::size_t c = 0; c < 6; ++c) {
              for (std::size_t i = 0; i < 6; ++i) turned[c] += columns[c][i] * key[i];
            }
            double logit = 0;
            for (std::size_t a = 0; a < 6; ++a) {
              logit += 0.3 * turned[a] * moments.mean(query)[a];
              for (std::size_t b = 0; b < 6; ++b) {
                logit += 0.045 * turned[a] * turned[b] *
                         moments.covariance(query, static_cast<std::int64_t>(a), static_cast<std::int64_t>(b));
              }
            }
            weights.push_back(std::exp(logit));
          }
          double all = 0;
          for (double const w : weights) all += w;
          for (std::size_t t = 0; t < 9; ++t) shares[t] += weights[t] / all / 2;
        }
        for (std::int64_t t = 0; t < 9; ++t) {
          double norm = 0;
          for (double const x : p.row(p.values, p.value_layout, s, h, t, false)) norm += x * x;
          CHECK(std::abs(static_cast<double>(dense.head(s, h)[t]) -
                         (std::log(shares[static_cast<std::size_t>(t)]) + 0.5 * std::log(norm))) <= 1e-5);
        }
      }
    }
  }
}

TEST_CASE("expected attention refuses what makes no sense", "[score]") {
  ScoreProblem<float> const p({2, 1, 4, 4}, {1, 3}, 1);
  ha::QueryMoments moments(2, 4);
  std::vector<float> scores(3);
  auto const refused = [&](ha::ErrorDetail const& parts, ha::ScoreFeatures const& f, ha::QueryMoments const& m,
                           ha::ExpectedQueries const& queries, auto const& rotation) {
    check_error<ha::ArgumentError>(
        [&] {
          ha::expected_attention(f, p.batch, m, queries, p.keys.data(), p.values.data(),
                                 ha::KvLayouts{p.key_layout, p.value_layout}, ha::RowScores::dense(scores.data(), 1, 3),
                                 rotation);
        },
        parts);
  };
  constexpr auto where = "expected_attention";
  ha::KeepPositions const keep;
  refused({"queries of the moments", "> 0", "0", where}, p.features, moments, {}, keep);
  moments.add(p.queries.data(), p.query_layout, 0, 0, 3);
  refused({"query heads of the moments", "4", "2", where}, {4, 1, 4, 4}, moments, {}, keep);
  refused({"head_dim of the moments", "4", "6", where}, p.features, ha::QueryMoments(2, 6), {}, keep);
  refused({"expected tokens", "in [1", "0", where}, p.features, moments, {.tokens = 0}, keep);
  refused({"next position", ">= 0", "-1", where}, p.features, moments, {.next_position = -1}, keep);
  auto const tables = Rotary::of_base(ha::RotaryPairing::neox, 4, 1e4).tables(10);
  refused({"positions of expected tokens", "table of 10", "10", where}, p.features, moments,
          {.next_position = 3, .tokens = 8},
          ha::KeyRotation::from_table(ha::RotaryPairing::neox, 4, tables.cosines.data(), tables.sines.data(), 10));
  check_error<ha::ArgumentError>([&] { moments.merge(ha::QueryMoments(1, 4)); },
                                 {"query heads", "2", "1", "QueryMoments::merge"});
  check_error<ha::ArgumentError>([&] { moments.add(p.queries.data(), p.query_layout, 0, 2, 4); },
                                 {"queries: tokens", "at least 4", "3", "QueryMoments::add"});
  check_error<ha::ArgumentError>([&] { moments.add(p.queries.data(), p.query_layout, 0, 2, 1); },
                                 {"tokens", "begin <= end", "[2, 1)", "QueryMoments::add"});
}
