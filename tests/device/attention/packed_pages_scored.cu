// Pages of encoded rows with scored slots on the device: appends and forks leave the CPU's bits, and attention over
// them gives what the CPU's gives.

#include "support/device_attention.cuh"
#include "support/device_scored_pages.cuh"
#include "support/packed_scored_pages.hpp"

#include <headaware/cache/packed_pages_scored.cuh>

#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

template <class T>
struct DevicePackedScored : OnDevice<PackedScoredPages<T>> {
  using Base = PackedScoredPages<T>;
  DeviceVector<ha::PackedSegment<>> d_segments;
  ha::PackedPages<> d_cache;

  DevicePackedScored(std::int32_t slack, std::int64_t channels)
      : OnDevice<Base>(slack, channels),
        d_segments(this->planned.segments),
        d_cache(this->planned.with_pool(this->d_pool.data())) {}

  void append(std::vector<std::int32_t> const& counts) {
    auto const news = Base::append(counts);
    DeviceTables const tables(this->pages);
    DeviceStep const d_step(this->step);
    DeviceVector<T> const d_keys(news.keys), d_values(news.values);
    DeviceVector<float> const d_of(news.scores);
    std::vector<ha::LayerKv<T const>> const tokens{{d_keys.data(), d_values.data()}};
    REQUIRE_CUDA(
        ha::device::append(tables.view, d_step.view, tokens, news.layout, d_cache, d_segments.data(), this->d_records(),
                           ha::TokenScores::contiguous(d_of.data(), this->batch, this->heads, news.most), 0, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    CHECK(d_step.status.host()[0] == 0);
    this->check();
  }
  void check_attention(std::int64_t tokens, std::int32_t group) {
    auto const expected = this->attend(false, tokens, group);
    auto const layout = ha::strided_bshd(this->batch, tokens, this->heads * group, this->dim);
    DeviceTables const tables(this->pages);
    auto const lengths = this->state.lengths();
    DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
    DeviceVector<std::int32_t> const d_first(this->first_positions(tokens));
    DeviceVector<T> const d_queries(random_elements<T>(layout.required_span_size(), 5));
    DeviceVector<float> const d_output(std::vector<float>(expected.size(), 77));
    ha::ScoredPagesView const view(
        ha::HeadPagesView::of_chunk(tables.view, 0, d_lengths.data(), tokens, d_cache.page_units), this->d_records());
    run_attend(this->attention_shape(tokens, group), ha::AttentionQueries{d_queries.data(), layout},
               ha::PackedCache<ha::DefaultFormats, ha::ScoredPagesView>{d_cache.rows, d_segments.data(), view},
               ha::AttentionOutput{d_output.data(), layout}, {this->pages.slots().rows_total(0)},
               {.first_positions = d_first.data()});
    INFO("group " << group << ", " << tokens << " tokens");
    check_near(d_output.host(), expected, 1e-2F);
  }
};

}  // namespace

TEST_CASE("pages of encoded rows with scored slots on the device are the CPU's, and attended to", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const slack : {0, 5}) {
    INFO("slack " << slack);
    DevicePackedScored<ha::float16> p(slack, 64);
    for_each_packed_step(p, [&](std::int64_t tokens) {
      CHECK(p.difference() == "");
      for (std::int32_t const group : {1, 4}) p.check_attention(tokens, group);
    });
  }
}
