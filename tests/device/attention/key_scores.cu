// Scores of rows by the attention that they get, on CUDA, against plain loops.

#include "support/device_cache.cuh"
#include "support/key_score_reference.hpp"

#include <headaware/attention/key_scores.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

using Reduction = ha::KeyScoreReduction;

/// Queries as the element type holds them.
template <class Q, class T>
std::vector<Q> rounded_queries(HeldProblem<T>& p) {
  std::vector<Q> result;
  for (float& x : p.queries) {
    result.push_back(ha::from_float<Q>(x));
    x = ha::to_float(result.back());
  }
  return result;
}

template <class Q, class T, class Make>
std::vector<float> device_scores(HeldProblem<T> const& p, std::vector<Q> const& queries, PlacedRows<T> const& placed,
                                 Make const& make, Reduction reduction, std::int64_t stride,
                                 std::vector<float> const& before) {
  DeviceUpload const upload;
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = upload(p.first_positions);
  if (!p.sinks.empty()) options.sinks = upload(p.sinks);
  DeviceVector<T> const d_keys(placed.keys);
  DeviceVector<Q> const d_queries(queries);
  DeviceVector<float> const d_scores(before);
  ha::AttentionQueries const d{d_queries.data(), p.query_layout()};
  ha::KeptCache const cache{d_keys.data(), static_cast<T*>(nullptr), make(upload)};
  ha::KeyScores const to{d_scores.data(), stride};
  Stream const stream;
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::score_keys(nullptr, bytes, p.shape, d, cache, options, reduction, to, stream));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  REQUIRE_CUDA(ha::device::score_keys(temp.data(), bytes, p.shape, d, cache, options, reduction, to, stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  return d_scores.host();
}

/// @tparam Q  of the queries @tparam Views  of all forms named
template <class Q, class... Views, class T>
void check_views(HeldProblem<T> p, bool rows_are_tokens, std::vector<std::string> const& names) {
  std::vector<Q> const queries = rounded_queries<Q>(p);
  std::int64_t stride = 2;
  for (std::size_t s = 0; s < p.segments.size(); ++s) stride = std::max(stride, p.rows(s) + 2);
  for (Reduction const reduction : {Reduction::max, Reduction::sum}) {
    std::vector<double> const expected = naive_key_scores(p, reduction, stride);
    for_each_view(p, rows_are_tokens, [&](std::string const& name, PlacedRows<T> const& placed, auto const& make) {
      if (std::find(names.begin(), names.end(), name) == names.end()) return;
      INFO(name);
      if constexpr ((makes<Views, decltype(make)> || ...)) {
        std::vector<float> const zeros(at(p.shape.segments() * stride));
        std::vector<float> const got = device_scores<Q>(p, queries, placed, make, reduction, stride, zeros);
        check_key_scores(p, got, expected, stride, 0, 1e-4);
        CHECK(device_scores<Q>(p, queries, placed, make, reduction, stride, zeros) == got);
      } else {
        FAIL("a form of another view");
      }
    });
  }
}

}  // namespace

TEST_CASE("device key scores: groups, rows of several tiles, sinks and soft caps", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const group : {1, 5}) {
    HeldProblem<ha::float16> p({2, 2 * group, 2, 1, 64}, {0, 700, 65, 3}, 5 * static_cast<unsigned>(group));
    check_views<ha::float16, Ragged, ha::PagedView, ha::PaddedView>(p, true, {"ragged", "paged, CSR, 5", "padded"});
    p.options = {.scale = 0.3F, .soft_cap = 2};
    p.sinks = std::vector<float>(at(2 * group), 1.5F);
    check_views<ha::float16, Ragged>(p, true, {"ragged"});
  }
}

TEST_CASE("device key scores of chunks: causal, in a window, by positions of rows, and not causal", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const tokens : {3, 90}) {
    HeldProblem<ha::float16> p({3, 4, 2, tokens, 48}, {tokens, tokens, 200, 430, 150, 0}, 11);
    p.first_positions = {0, 200 - static_cast<std::int32_t>(tokens), 120};
    check_views<ha::float16, Ragged, ha::PagedView>(p, true, {"ragged", "paged, dense, 16"});
    p.options.window = 30;
    check_views<ha::float16, Ragged>(p, true, {"ragged"});
    p.options.window = 0;
    for (auto& held : p.segments) {
      std::int32_t last = 3;
      for (std::int32_t& position : held.positions) position = last += 1 + last % 3;
    }
    check_views<ha::float16, Ragged>(p, false, {"ragged"});
    p.first_positions.clear();
    check_views<ha::float16, Ragged>(p, false, {"ragged"});
  }
}

TEST_CASE("device key scores of other elements: floats, and queries of another type", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  HeldProblem<float> floats({1, 6, 2, 5, 20}, {300, 40}, 4);
  check_views<float, Ragged>(floats, true, {"ragged"});
  HeldProblem<ha::bfloat16> mixed({1, 6, 2, 5, 20}, {300, 40}, 4);
  check_views<float, Ragged>(mixed, true, {"ragged"});
}

TEST_CASE("device key scores merge into what is there; a query without probabilities counts for nothing",
          "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  HeldProblem<ha::float16> p({1, 6, 2, 9, 24}, {200, 200}, 8);
  p.queries[5] = std::numeric_limits<float>::quiet_NaN();
  p.queries[24 + 5] = std::numeric_limits<float>::infinity();
  auto const queries = rounded_queries<ha::float16>(p);
  constexpr float there = 0.0625F;
  std::vector<float> const before(400, there);
  for_each_view(p, false, [&](std::string const&, auto const& placed, auto const& make) {
    if constexpr (makes<Ragged, decltype(make)>) {
      std::vector<float> const sums = device_scores<ha::float16>(p, queries, placed, make, Reduction::sum, 200, before);
      double total[2] = {0, 0};
      for (std::size_t i = 0; i < 400; ++i) total[i / 200] += double(sums[i] - there);
      CHECK(std::abs(total[0] - 25) < 1e-3);
      CHECK(std::abs(total[1] - 27) < 1e-3);
      std::vector<float> const most = device_scores<ha::float16>(p, queries, placed, make, Reduction::max, 200, before);
      auto const [low, high] = std::minmax_element(most.begin(), most.end());
      CHECK(*low == there);
      CHECK(*high > there);
    }
  });
}

TEST_CASE("device key scores: refusals", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  HeldProblem<ha::float16> p({1, 2, 1, 1, 8}, {10}, 1);
  auto const queries = rounded_queries<ha::float16>(p);
  DeviceVector<ha::float16> const rows(queries);
  DeviceVector<float> const scores(std::vector<float>(16));
  DeviceUpload const upload;
  ha::RaggedView const view{upload(std::vector<std::int32_t>{0, 1}), 1};
  std::size_t bytes = 0;
  auto const call = [&](void* temp, float* to, std::int64_t stride, ha::float16 const* keys) {
    return ha::device::score_keys(temp, bytes, p.shape, ha::AttentionQueries{rows.data(), p.query_layout()},
                                  ha::KeptCache{keys, keys, view}, {}, Reduction::max, ha::KeyScores{to, stride},
                                  nullptr);
  };
  ha::float16 const* const keys = rows.data();
  REQUIRE_CUDA(call(nullptr, scores.data(), 16, keys));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0}));
  REQUIRE_CUDA(call(temp.data(), scores.data(), 16, keys));
  CHECK(call(temp.data(), scores.data(), -1, keys) == cudaErrorInvalidValue);
  CHECK(call(temp.data(), nullptr, 16, keys) == cudaErrorInvalidValue);
  CHECK(call(temp.data(), scores.data(), 16, nullptr) == cudaErrorInvalidValue);
  bytes = 1;
  CHECK(call(temp.data(), scores.data(), 16, keys) == cudaErrorInvalidValue);
}
