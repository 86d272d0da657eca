// Scores of rows with scored slots on CUDA, against plain loops.

#include "support/device_scored_pages.cuh"
#include "support/scored_key_scores.hpp"

#include <headaware/attention/key_scores.cuh>

#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

TEST_CASE("device key scores over scored slots, of rolling caches and of pages", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using T = ha::float16;
  DeviceScoredPages<T> p(4, 9, 32, 8);
  use_slack(p);
  constexpr std::int64_t tokens = 7;
  constexpr std::int32_t group = 2;
  std::int64_t const stride = p.pages.slots().rows_total(0) / 3;
  auto const layout = ha::strided_bshd(3, tokens, p.heads * group, p.key_dim);
  auto const queries = random_elements<T>(layout.required_span_size(), 7);
  auto const lengths = p.state.lengths();
  DeviceTables const tables(p.pages);
  DeviceVector<T> const d_queries(queries), d_keys(p.keys);
  DeviceVector<std::int32_t> const d_first(p.first_positions(tokens));
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
  auto const slot_bytes = p.pages.slots().bytes();
  DeviceVector<std::byte> const d_slots(std::vector<std::byte>(slot_bytes.begin(), slot_bytes.end()));
  for (auto const reduction : {ha::KeyScoreReduction::max, ha::KeyScoreReduction::sum}) {
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      auto const expected = naive_scored_key_scores(p, layer, tokens, group, queries, reduction, stride);
      auto const check = [&](T* keys, auto const& view) {
        DeviceVector<float> const d_scores(std::vector<float>(expected.size()));
        ha::AttentionQueries const asked{d_queries.data(), layout};
        ha::KeptCache const cache{keys, static_cast<T*>(nullptr), view};
        ha::AttentionOptions const options{.first_positions = d_first.data()};
        ha::KeyScores const to{d_scores.data(), stride};
        std::size_t bytes = 0;
        REQUIRE_CUDA(ha::device::score_keys(nullptr, bytes, p.shape(tokens, group), asked, cache, options, reduction,
                                            to, nullptr));
        DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
        REQUIRE_CUDA(ha::device::score_keys(temp.data(), bytes, p.shape(tokens, group), asked, cache, options,
                                            reduction, to, nullptr));
        REQUIRE_CUDA(cudaDeviceSynchronize());
        CHECK(worst_error(d_scores.host(), expected) < 1e-4);
      };
      // Pages and slots hold the same, and so do the records.
      check(d_keys.data() + layer * p.pages.slots().rows_total(0) * p.key_dim,
            ha::ScoredView::of_chunk(p.pages.slots().view_at(d_slots.data()), p.d_records(), layer, d_lengths.data(),
                                     tokens));
      check(p.d_pool.data(), ha::ScoredPagesView(ha::HeadPagesView::of_chunk(tables.view, layer, d_lengths.data(),
                                                                             tokens, p.page_stride),
                                                 p.d_records()));
    }
  }
}
