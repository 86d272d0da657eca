// Attention over pages of single heads on the device: what the CPU gives, from uploaded tables.

#include "support/device_attention.cuh"
#include "support/paged_chunk.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

TEMPLATE_TEST_CASE("device attention: pages of single heads", "[attention]", float, ha::float16) {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const page_size : {1, 7, 16}) {
    int checks = 0;
    for_each_paged_chunk(
        page_size, [&](PagedChunk& chunk, std::int64_t tokens, std::vector<std::int32_t> const& first) {
          INFO("pages of " << page_size << ", check " << ++checks << ", " << tokens << " queries");
          DeviceUpload const upload;
          std::vector<TestType> pool;
          for (float& x : chunk.pool) {
            pool.push_back(ha::from_float<TestType>(x));
            x = ha::to_float(pool.back());
          }
          DeviceVector<TestType> const d_pool(pool);
          DeviceVector<float> const d_queries(PagedChunk::queries(tokens));
          auto const bytes = chunk.pages.head_bytes();
          DeviceVector<std::byte> const d_heads(std::vector<std::byte>(bytes.begin(), bytes.end()));
          auto const table = chunk.pages.table();
          auto const lengths = chunk.pages.state().lengths();
          auto const view =
              chunk.pages.view_at(d_heads.data(), upload(std::vector<std::int32_t>(table.begin(), table.end())));
          auto const* const d_lengths = upload(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
          for (std::int32_t layer = 0; layer < PagedChunk::layers; ++layer) {
            auto const expected = chunk.over_pages(layer, tokens, first);
            DeviceVector<float> const d_output(std::vector<float>(expected.size(), 77));
            run_attend(PagedChunk::shape(tokens), ha::AttentionQueries{d_queries.data(), PagedChunk::layout(tokens)},
                       ha::KeptCache{d_pool.data(), d_pool.data() + chunk.value_offset(),
                                     ha::HeadPagesView::of_chunk(view, layer, d_lengths, tokens, chunk.page_stride)},
                       ha::AttentionOutput{d_output.data(), PagedChunk::layout(tokens)},
                       {chunk.pages.slots().rows_total(layer)},
                       {.first_positions = first.empty() ? nullptr : upload(first)});
            auto const output = d_output.host();
            float worst = 0;
            for (std::size_t i = 0; i < output.size(); ++i) worst = std::max(worst, std::abs(output[i] - expected[i]));
            CHECK(worst < 2e-6F);
          }
        });
  }
}
