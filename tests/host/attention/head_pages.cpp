// Attention over pages of single heads: what attention over a rolling cache of the same policies gives.

#include "support/errors.hpp"
#include "support/paged_chunk.hpp"

#include <cstdint>
#include <set>
#include <vector>

using namespace headaware_test;

TEST_CASE("pages of single heads attend as rolling caches do", "[attention]") {
  for (std::int32_t const page_size : {1, 4, 7, 16}) {
    int checks = 0;
    for_each_paged_chunk(page_size,
                         [&](PagedChunk& chunk, std::int64_t tokens, std::vector<std::int32_t> const& first) {
                           INFO("pages of " << page_size << ", check " << ++checks << ", " << tokens << " queries");
                           for (std::int32_t layer = 0; layer < PagedChunk::layers; ++layer) {
                             auto const expected = chunk.over_slots(layer, tokens, first);
                             auto const output = chunk.over_pages(layer, tokens, first);
                             float worst = 0;
                             for (std::size_t i = 0; i < output.size(); ++i) {
                               worst = std::max(worst, std::abs(output[i] - expected[i]));
                             }
                             CHECK(worst < 2e-6F);
                           }
                         });
  }
}

TEST_CASE("pages of single heads show exactly the tokens kept", "[attention]") {
  PagedChunk chunk(4);
  chunk.append({130, 7, 0});
  chunk.append({3, 3, 3});
  auto const table = PagedChunk::table();
  for (std::int32_t layer = 0; layer < PagedChunk::layers; ++layer) {
    ha::HeadPagesView const view(chunk.pages.view(), layer, chunk.pages.state().lengths().data(), chunk.page_stride);
    REQUIRE(view.row_run(32) == 8);
    for (std::int32_t b = 0; b < PagedChunk::sequences; ++b) {
      for (std::int32_t h = 0; h < PagedChunk::kv_heads; ++h) {
        auto const segment = view.segment(b, h);
        std::int64_t const length = chunk.pages.length(b);
        std::vector<std::int64_t> kept;
        table.visit(layer, h, [&](auto const& policy) {
          for (std::int64_t t = 0; t < length; ++t) {
            if (policy.keeps(t, length)) kept.push_back(t);
          }
        });
        REQUIRE(segment.rows() == static_cast<std::int64_t>(kept.size()));
        for (std::int64_t row = 0; row < segment.rows(); ++row) {
          std::int64_t const token = kept[static_cast<std::size_t>(row)];
          REQUIRE(segment.position(row) == token);
          REQUIRE(segment.sees(token, length - 1));
          REQUIRE(segment.offset(row, 32) ==
                  chunk.pages.page(layer, b, h, token / 4) * chunk.page_stride + token % 4 * 32);
        }
      }
    }
  }
}

TEST_CASE("what views of pages of single heads refuse", "[attention]") {
  PagedChunk const chunk(4);
  auto const lengths = chunk.pages.state().lengths().data();
  using Error = ha::ArgumentError;
  check_error<Error>([&] { (void)ha::HeadPagesView(chunk.pages.view(), 2, lengths); },
                     {"layer", "[0, 2)", "2", "HeadPagesView"});
  check_error<Error>([&] { (void)ha::HeadPagesView(chunk.pages.view(), 0, lengths, -1); },
                     {"page stride", ">= 0", "-1", "HeadPagesView"});
  check_error<Error>([&] { (void)ha::HeadPagesView::of_chunk(chunk.pages.view(), 0, lengths, 11); },
                     {"query_tokens", "1 to 10, the plan's slack and 1", "11", "HeadPagesView"});
  check_error<Error>([&] { (void)chunk.over_pages(0, 10, {}); },
                     {"first_positions", "several queries' windows", "nullptr", "attend, HeadPagesView"});
  ha::HeadPagesView const view(chunk.pages.view(), 0, lengths);
  auto shape = PagedChunk::shape(1);
  shape.sequences = 4;
  check_error<Error>([&] { view.check(shape, {}); }, {"sequences", "at most 3", "4", "attend, HeadPagesView"});
  shape = PagedChunk::shape(1);
  shape.kv_heads = 3;
  check_error<Error>([&] { view.check(shape, {}); }, {"KV heads", "6", "3", "attend, HeadPagesView"});
}
