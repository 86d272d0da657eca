// Attention over scored slots on the device, by each kernel that takes views, against the CPU's over the same cache.

#include "support/device_attention.cuh"
#include "support/device_scored.cuh"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/key_scores.cuh>
#include <headaware/attention/scored_view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

/// Attends to the newest tokens of every sequence: on the CPU, and on the device.
/// @param masked  by positions, which one token of a cache without slack does not need
template <class T>
void check_attention(DeviceScored<T>& p, std::array<std::int32_t, 3> const& counts, std::int32_t group, bool masked,
                     bool uneven) {
  constexpr std::int32_t batch = DeviceScored<T>::batch;
  std::int32_t const tokens = *std::max_element(counts.begin(), counts.end());
  ha::AttentionShape const shape{batch, p.heads * group, p.heads, tokens, p.key_dim, p.value_dim};
  auto const query_layout = ha::strided_bshd(batch, tokens, p.heads * group, p.key_dim);
  auto const output_layout = ha::strided_bshd(batch, tokens, p.heads * group, p.value_dim);
  auto const queries = random_elements<T>(query_layout.required_span_size(), 5);
  std::vector<float> expected(at(output_layout.required_span_size()), 77);
  std::vector<std::int32_t> lengths, before;
  for (std::int32_t b = 0; b < batch; ++b) {
    lengths.push_back(static_cast<std::int32_t>(p.state.length(b)));
    before.push_back(lengths.back() - counts[at(b)]);
  }
  std::vector<std::int32_t> const all_counts(counts.begin(), counts.end());
  DeviceVector<std::int32_t> const d_lengths(lengths), d_before(before), d_counts(all_counts);
  DeviceVector<T> const d_queries(queries);
  DeviceVector<float> const d_output(expected);
  for (std::int32_t layer = 0; layer < DeviceScored<T>::num_layers; ++layer) {
    std::int64_t const first = layer * p.slots.rows_total(0);
    auto const view = ha::ScoredView::of_chunk(p.slots.view(), p.scores.view(), layer, lengths.data(), tokens,
                                               uneven ? all_counts.data() : nullptr);
    ha::attend(shape, ha::AttentionQueries{queries.data(), query_layout},
               ha::KeptCache{p.keys.data() + first * p.key_dim, p.values.data() + first * p.value_dim, view},
               ha::AttentionOutput{expected.data(), output_layout},
               {.first_positions = masked ? before.data() : nullptr});
    auto const d_view = ha::ScoredView::of_chunk(p.view(), p.d_records(), layer, d_lengths.data(), tokens,
                                                 uneven ? d_counts.data() : nullptr);
    run_attend(shape, ha::AttentionQueries{d_queries.data(), query_layout},
               ha::KeptCache<T, ha::ScoredView>{p.d_keys.data() + first * p.key_dim,
                                                p.d_values.data() + first * p.value_dim, d_view},
               ha::AttentionOutput{d_output.data(), output_layout}, {p.slots.rows_total(layer)},
               {.first_positions = masked ? d_before.data() : nullptr});
    auto const got = d_output.host();
    float worst = 0;
    bool numbers = true;
    for (std::int32_t b = 0; b < batch; ++b) {
      for (std::int32_t h = 0; h < p.heads * group; ++h) {
        for (std::int32_t t = 0; t < counts[at(b)]; ++t) {
          for (std::int64_t c = 0; c < p.value_dim; ++c) {
            auto const i = at(output_layout.offset(b, h, t, c));
            numbers = numbers && std::isfinite(expected[i]) && std::isfinite(got[i]);
            worst = std::max(worst, std::abs(got[i] - expected[i]));
          }
        }
      }
    }
    INFO("layer " << layer << ", group " << group << ", " << tokens << " tokens, masked " << masked << ", uneven "
                  << uneven);
    CHECK(numbers);
    CHECK(worst < (std::is_same_v<T, float> ? 2e-5F : 4e-3F));
  }
}

template <class T>
void decode(std::int64_t key_dim, std::int64_t value_dim) {
  for (std::int32_t const slack : {0, 3}) {
    DeviceScored<T> p(slack, key_dim, value_dim);
    p.append({110, 9, 40});
    for (int step = 0; step < 5; ++step) {
      p.append({1, 1, 1});
      for (std::int32_t const group : {1, 3}) {
        check_attention(p, {1, 1, 1}, group, true, false);
        if (slack == 0) check_attention(p, {1, 1, 1}, group, false, false);
      }
    }
  }
}

/// Chunks, drafts that are taken back, and forks.
template <class T>
void chunks(std::int64_t key_dim, std::int64_t value_dim) {
  DeviceScored<T> p(39, key_dim, value_dim);
  p.append({110, 0, 70});
  p.append({40, 40, 40});
  check_attention(p, {40, 40, 40}, 2, true, false);
  p.append({3, 40, 1});
  check_attention(p, {3, 40, 1}, 1, true, true);
  check_attention(p, {3, 40, 1}, 2, true, false);
  p.rollback({3, 17, 0});
  p.copy(1, 2);
  p.append({9, 9, 9});
  check_attention(p, {9, 9, 9}, 1, true, false);
  check_attention(p, {9, 9, 9}, 4, true, false);
  p.rollback({0, 0, 9});  // what left since is seen again
  check_attention(p, {9, 9, 5}, 4, true, true);
}

}  // namespace

TEST_CASE("attention over scored slots while decoding, rows of floats", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  decode<float>(20, 12);
}
TEST_CASE("attention over scored slots while decoding, rows of 16 bits", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  decode<ha::float16>(64, 64);
}
TEST_CASE("attention over scored slots in chunks, rows of floats", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  chunks<float>(20, 12);
}
TEST_CASE("attention over scored slots in chunks, rows of 16 bits", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  chunks<ha::float16>(64, 64);
}
