// Linear scores of rows against double-precision loops: layouts, elements, rotations turned back, bad input.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/score_problem.hpp"

#include <headaware/model_shape.hpp>
#include <headaware/score/linear_score.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using namespace headaware_test;

namespace {

template <class T>
auto rows_of(ScoreProblem<T> const& p) {
  return ha::TokenRows{p.queries.data(), p.query_layout, p.keys.data(), p.values.data(),
                       ha::KvLayouts{p.key_layout, p.value_layout}};
}

template <class T, class Rotation = ha::KeepPositions>
std::vector<float> scores_of(ScoreProblem<T> const& p, Rotation const& rotation = {}) {
  std::vector<float> scores(static_cast<std::size_t>(p.batch.num_sequences * p.features.num_kv_heads * p.batch.tokens),
                            std::numeric_limits<float>::quiet_NaN());
  ha::score_rows(p.features, p.batch, rows_of(p), p.weights.data(),
                 ha::RowScores::dense(scores.data(), p.features.num_kv_heads, p.batch.tokens), rotation);
  return scores;
}

template <class T>
void check(ScoreProblem<T> const& p, std::vector<float> scores) {
  p.check(ha::RowScores::dense(scores.data(), p.features.num_kv_heads, p.batch.tokens));
}

}  // namespace

TEST_CASE("features of a token lie where their layout says", "[score]") {
  ha::ScoreFeatures const f{9, 3, 64, 32};
  CHECK(f.keys() == 576);
  CHECK(f.values() == 768);
  CHECK(f.key_norms() == 864);
  CHECK(f.value_norms() == 867);
  CHECK(f.constant() == 870);
  CHECK(f.count() == 871);
  CHECK(ha::ScoreFeatures::of(
            ha::LayerShape{.num_query_heads = 9, .num_kv_heads = 3, .head_dim = 64, .value_dim = 32}) == f);

  ScoreProblem<float> const p({4, 2, 8, 5}, {2, 3}, 1);
  auto const count = static_cast<std::size_t>(p.features.count());
  std::vector<float> features(6 * count);
  ha::score_features(p.features, p.batch, rows_of(p), features.data());
  for (std::size_t i = 0; i < 6; ++i) {
    auto const expected = p.features_of(static_cast<std::int64_t>(i / 3), static_cast<std::int64_t>(i % 3));
    for (std::size_t c = 0; c < count; ++c) {
      CHECK(std::abs(static_cast<double>(features[i * count + c]) - expected[c]) <= 1e-6);
    }
  }
}

TEMPLATE_TEST_CASE("linear scores of rows in any layout", "[score]", float, ha::float16, ha::bfloat16) {
  // Features that fill no vector, one that fills four, and many tokens of few sequences.
  for (ha::ScoreFeatures const& f : {ha::ScoreFeatures{1, 1, 2, 1}, {9, 3, 64, 64}, {4, 2, 20, 12}, {8, 1, 10, 30}}) {
    for (ha::ScoreBatch const& b : {ha::ScoreBatch{1, 1}, {3, 1}, {2, 37}}) {
      INFO(f.num_query_heads << " heads, " << b.num_sequences << " sequences of " << b.tokens);
      ScoreProblem<TestType> const p(f, b, 3);
      check(p, scores_of(p));
    }
  }
}

TEST_CASE("rows that are rotated are turned back", "[score]") {
  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    for (std::int32_t const rotary_dim : {16, 10}) {
      ScoreProblem<float> p({4, 2, 16, 8}, {2, 21}, 5);
      p.rotary = Rotary::of_base(pairing, rotary_dim, 1e4);
      auto const rotation = ha::KeyRotation::from_base(pairing, rotary_dim, 1e4);
      check(p, scores_of(p, rotation));

      for (std::int32_t i = 0; i < 42; ++i) p.positions.push_back(100000 + 7 * i % 400);
      check(p, scores_of(p, rotation.with_positions(p.positions.data(), 21)));

      p.positions.clear();
      auto const tables = p.rotary->tables(21);
      check(p, scores_of(p, ha::KeyRotation::from_table(pairing, rotary_dim, tables.cosines.data(), tables.sines.data(),
                                                        21)));
    }
  }
}

TEST_CASE("a token's score does not depend on those beside it", "[score]") {
  ScoreProblem<float> const p({6, 3, 40, 40}, {1, 200}, 9, ha::strided_shd(200, 6, 40), ha::strided_shd(200, 3, 40),
                              ha::strided_shd(200, 3, 40));
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, 40, 1e4);
  std::vector<float> const all = scores_of(p, rotation);
  for (std::int64_t t = 0; t < 200; ++t) {
    auto const position = static_cast<std::int32_t>(t);
    std::vector<float> one(3);
    ha::score_rows(p.features, {1, 1},
                   ha::TokenRows{p.queries.data() + t * 240, ha::strided_bhd(1, 6, 40), p.keys.data() + t * 120,
                                 p.values.data() + t * 120, ha::strided_bhd(1, 3, 40)},
                   p.weights.data(), ha::RowScores::dense(one.data(), 3, 1), rotation.with_positions(&position, 1));
    for (std::size_t h = 0; h < 3; ++h) CHECK(one[h] == all[h * 200 + static_cast<std::size_t>(t)]);
  }
}

TEST_CASE("scores go where the caller's strides say, and nowhere else", "[score]") {
  ScoreProblem<float> const p({2, 2, 8, 8}, {3, 5}, 2);
  std::vector<float> buffer(200, -7);
  // Heads outside, sequences inside.
  ha::RowScores const scores{buffer.data(), 6, 20};
  ha::score_rows(p.features, p.batch, rows_of(p), p.weights.data(), scores);
  p.check(scores);
  std::size_t written = 0;
  for (float const x : buffer) written += x != -7 ? 1 : 0;
  CHECK(written == 30);
}

TEST_CASE("rows that cannot be scored are an error that says why", "[score]") {
  ScoreProblem<float> p({2, 1, 8, 8}, {2, 4}, 2);
  std::vector<float> scores(8);
  auto const dense = ha::RowScores::dense(scores.data(), 1, 4);
  auto const refused = [&](ha::ErrorDetail const& parts, auto const& change, auto const& rotation) {
    auto f = p.features;
    auto b = p.batch;
    auto rows = rows_of(p);
    float const* weights = p.weights.data();
    auto to = dense;
    change(f, b, rows, weights, to);
    check_error<ha::ArgumentError>([&] { ha::score_rows(f, b, rows, weights, to, rotation); }, parts);
  };
  ha::KeepPositions const keep;
  refused(
      {"queries", "a pointer", "nullptr", "score_rows"},
      [](auto&, auto&, auto& rows, auto&, auto&) { rows.queries = nullptr; }, keep);
  refused(
      {"keys", "a pointer", "nullptr", "score_rows"},
      [](auto&, auto&, auto& rows, auto&, auto&) { rows.keys = nullptr; }, keep);
  refused(
      {"values", "a pointer", "nullptr", "score_rows"},
      [](auto&, auto&, auto& rows, auto&, auto&) { rows.values = nullptr; }, keep);
  refused(
      {"weights", "a pointer", "nullptr", "score_rows"},
      [](auto&, auto&, auto&, auto& weights, auto&) { weights = nullptr; }, keep);
  refused(
      {"scores", "a pointer", "nullptr", "score_rows"}, [](auto&, auto&, auto&, auto&, auto& to) { to.data = nullptr; },
      keep);
  refused(
      {"sequence_stride", "at least 4", "3", "score_rows"},
      [](auto&, auto&, auto&, auto&, auto& to) { to.sequence_stride = 3; }, keep);
  refused(
      {"keys: heads", "2", "1", "score_rows"}, [](auto& f, auto&, auto&, auto&, auto&) { f.num_kv_heads = 2; }, keep);
  refused(
      {"queries: heads", "3", "2", "score_rows"}, [](auto& f, auto&, auto&, auto&, auto&) { f.num_query_heads = 3; },
      keep);
  refused(
      {"values: channels", "6", "8", "score_rows"}, [](auto& f, auto&, auto&, auto&, auto&) { f.value_dim = 6; }, keep);
  refused(
      {"KV heads", "> 0", "0", "score_rows"}, [](auto& f, auto&, auto&, auto&, auto&) { f.num_kv_heads = 0; }, keep);
  refused(
      {"tokens", "at least 5", "4", "score_rows"}, [](auto&, auto& b, auto&, auto&, auto&) { b.tokens = 5; }, keep);
  refused(
      {"tokens", ">= 0", "-1", "score_rows"}, [](auto&, auto& b, auto&, auto&, auto&) { b.tokens = -1; }, keep);
  auto const nothing = [](auto&, auto&, auto&, auto&, auto&) {};
  refused({"rotary_dim", "at most head_dim, 8", "16", "score_rows"}, nothing,
          ha::KeyRotation::from_base(ha::RotaryPairing::neox, 16, 1e4));
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, 8, 1e4);
  std::vector<std::int32_t> const positions{0, 1, 2, 3, 4, 5, -6, 7};
  refused({"position of a key", "in [0", "-6", "score_rows, sequence 1, token 2"}, nothing,
          rotation.with_positions(positions.data(), 4));
  auto const tables = Rotary::of_base(ha::RotaryPairing::neox, 8, 1e4).tables(3);
  refused({"tokens", "at most the table's 3", "4", "score_rows"}, nothing,
          ha::KeyRotation::from_table(ha::RotaryPairing::neox, 8, tables.cosines.data(), tables.sines.data(), 3));

  // Nothing to score needs nothing.
  ha::score_rows(p.features, {0, 4}, rows_of(p), p.weights.data(), {});
  ha::score_rows(p.features, {2, 0}, rows_of(p), p.weights.data(), {});
}
