// Linear scores of rows on CUDA against double-precision loops: layouts, elements, rotations turned back, bad input.

#include "support/device_cache.cuh"
#include "support/score_problem.hpp"

#include <headaware/score/linear_score.cuh>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

template <class T, class Rotation = ha::KeepPositions>
std::vector<float> device_scores(ScoreProblem<T> const& p, Rotation const& rotation = {}) {
  DeviceVector<T> const queries(p.queries);
  DeviceVector<T> const keys(p.keys);
  DeviceVector<T> const values(p.values);
  DeviceVector<float> const weights(p.weights);
  auto const count = static_cast<std::size_t>(p.batch.num_sequences * p.features.num_kv_heads * p.batch.tokens);
  DeviceVector<float> const scores(std::vector<float>(count, std::numeric_limits<float>::quiet_NaN()));
  Stream const stream;
  REQUIRE_CUDA(ha::device::score_rows(
      p.features, p.batch,
      ha::TokenRows{queries.data(), p.query_layout, keys.data(), values.data(),
                    ha::KvLayouts{p.key_layout, p.value_layout}},
      weights.data(), ha::RowScores::dense(scores.data(), p.features.num_kv_heads, p.batch.tokens), stream, rotation));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  return scores.host();
}

template <class T>
void check(ScoreProblem<T> const& p, std::vector<float> scores) {
  p.check(ha::RowScores::dense(scores.data(), p.features.num_kv_heads, p.batch.tokens));
}

}  // namespace

TEMPLATE_TEST_CASE("device linear scores of rows in any layout", "[score]", float, ha::float16, ha::bfloat16) {
  HEADAWARE_REQUIRE_DEVICE();
  for (ha::ScoreFeatures const& f : {ha::ScoreFeatures{1, 1, 2, 1}, {9, 3, 64, 64}, {10, 5, 20, 12}}) {
    for (ha::ScoreBatch const& b : {ha::ScoreBatch{1, 1}, {3, 1}, {2, 13}}) {
      INFO(f.num_query_heads << " heads, " << b.num_sequences << " sequences of " << b.tokens);
      ScoreProblem<TestType> const p(f, b, 3);
      check(p, device_scores(p));
    }
  }
}

TEST_CASE("device rows that are rotated are turned back", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    ScoreProblem<ha::float16> p({4, 2, 80, 40}, {2, 7}, 5);
    p.rotary = Rotary::of_base(pairing, 72, 1e4);
    auto const rotation = ha::KeyRotation::from_base(pairing, 72, 1e4);
    check(p, device_scores(p, rotation));
    auto const tables = p.rotary->tables(7);
    DeviceVector<float> const cosines(tables.cosines);
    DeviceVector<float> const sines(tables.sines);
    check(p, device_scores(p, ha::KeyRotation::from_table(pairing, 72, cosines.data(), sines.data(), 7)));
    for (std::int32_t i = 0; i < 14; ++i) p.positions.push_back(100000 + 7 * i % 40);
    DeviceVector<std::int32_t> const positions(p.positions);
    check(p, device_scores(p, rotation.with_positions(positions.data(), 7)));
  }
}

TEST_CASE("device scores do not depend on the tokens beside them", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  ScoreProblem<float> const p({6, 3, 32, 32}, {1, 6}, 9, ha::strided_shd(6, 6, 32), ha::strided_shd(6, 3, 32),
                              ha::strided_shd(6, 3, 32));
  std::vector<float> const all = device_scores(p);
  for (std::size_t t = 0; t < 6; ++t) {
    ScoreProblem<float> one({6, 3, 32, 32}, {1, 1}, 9);
    auto const cut = [t](std::vector<float> const& rows, std::size_t width) {
      auto const begin = rows.begin() + static_cast<std::ptrdiff_t>(t * width);
      return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(width));
    };
    one.queries = cut(p.queries, 192);
    one.keys = cut(p.keys, 96);
    one.values = cut(p.values, 96);
    one.weights = p.weights;
    auto const got = device_scores(one);
    for (std::size_t h = 0; h < 3; ++h) CHECK(got[h] == all[h * 6 + t]);
  }
}

TEST_CASE("device scores refuse what the CPU's refuse", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  ScoreProblem<float> const p({2, 1, 8, 8}, {2, 4}, 2);
  DeviceVector<float> const scores(std::vector<float>(8));
  ha::TokenRows const rows{p.queries.data(), p.query_layout, p.keys.data(), p.values.data(),
                           ha::KvLayouts{p.key_layout, p.value_layout}};
  auto const to = ha::RowScores::dense(scores.data(), 1, 4);
  auto const refused = [](cudaError_t error, std::string const& what) {
    CHECK(error == cudaErrorInvalidValue);
    CHECK(std::string(ha::last_error_message()).find(what) != std::string::npos);
  };
  refused(ha::device::score_rows(p.features, p.batch, rows, nullptr, to, nullptr), "weights");
  refused(ha::device::score_rows({2, 2, 8, 8}, p.batch, rows, p.weights.data(), to, nullptr), "keys: heads");
  refused(ha::device::score_rows(p.features, p.batch, rows, p.weights.data(), {}, nullptr), "scores");
  REQUIRE_CUDA(ha::device::score_rows(p.features, {2, 0}, rows, p.weights.data(), {}, nullptr));
}
