// Pages of single heads that hold encoded rows, on the CPU: what appends write, and attention over it.

#include "support/packed_pages.hpp"

#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/head_pages_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace {

void check_attention(PackedPagesModel<ha::float16> const& m, ha::PackedPages<> const& cache) {
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    HeldProblem<float> const held = m.held(at(layer));
    Attended const expected = naive_attention(held);
    std::vector<float> output(expected.output.size(), 77);
    std::vector<float> lse(expected.lse.size(), 77);
    ha::HeadPagesView const view(m.pages.view(), layer, m.pages.state().lengths().data(), cache.page_units);
    ha::attend(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()},
               ha::PackedCache<ha::DefaultFormats, ha::HeadPagesView>{cache.rows, cache.layer(layer).data(), view},
               ha::AttentionOutput{output.data(), held.output_layout(), lse.data()});
    // Where codes are integers, queries and weights are numbers of 16 bits, and as exact as these.
    check_attended(output, lse, expected, 200);
  }
}

}  // namespace

TEST_CASE("pages of encoded rows are appended to, forked, rolled back and attended to", "[attention]") {
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{80, 36}}) {
    INFO(keys << " and " << values << " channels");
    PackedPagesModel<ha::float16> m(keys, values);
    // Heads of narrow rows have more of them in a page.
    CHECK(*std::max_element(m.planned.page_sizes.begin(), m.planned.page_sizes.end()) >
          2 * *std::min_element(m.planned.page_sizes.begin(), m.planned.page_sizes.end()));
    std::vector<ha::RowUnit> pool(at(900 * m.planned.page_units));
    auto const cache = m.planned.with_pool(pool.data());
    auto const append = [&](PackedPagesModel<ha::float16>::Counts const& counts) {
      auto const news = m.append(counts);
      std::int64_t const most = *std::max_element(counts.begin(), counts.end());
      ha::append(m.pages, news.step, news.layers, m.layout(most), cache);
      CHECK(m.wrong_rows(pool) == 0);
      return news.step.copies.size();
    };
    append({40, 7, 0});
    check_attention(m, cache);
    append({1, 1, 1});
    m.release(2);
    m.fork(0, 2);
    CHECK(append({1, 0, 3}) > 0);  // copies on write
    check_attention(m, cache);
    m.rollback(2, 2);
    append({1, 30, 1});
    check_attention(m, cache);
  }
}

TEST_CASE("pages of encoded rows: sizes known before, and what is refused", "[attention]") {
  PackedPagesModel<ha::float16> m(64, 64);
  CHECK(m.planned.page_bytes() == 16 * m.planned.page_units);
  CHECK(m.planned.num_kv_heads(1) == m.heads);
  check_error<ha::ArgumentError>([&] { (void)ha::packed_pages(m.formats, 3, 11, 64); },
                                 {"page's units", ">= the 12 of a row", "11", "packed_pages, layer 0, KV head 0"});
  CHECK(m.planned.bytes_held(m.pages) == 0);
  auto const news = m.append({2, 1, 0});
  // A page of each head of two sequences, but for the pruned head's.
  CHECK(m.planned.bytes_held(m.pages) == 2 * (2 * m.heads - 1) * m.planned.page_bytes());
  std::vector<ha::RowUnit> pool(at(900 * m.planned.page_units));
  auto const append = [&](ha::PackedPages<> const& cache) {
    ha::append(m.pages, news.step, news.layers, m.layout(2), cache);
  };
  check_error<ha::ArgumentError>([&] { append(m.planned); },
                                 {"cache's keys", "a pointer", "nullptr", "append, layer 0"});
  auto const others = ha::packed_pages(m.formats, 3, 100, 64);
  check_error<ha::ArgumentError>([&] { append(others.with_pool(pool.data())); },
                                 {"tables' page sizes", "", "", "append, layer 0"});
  auto const fewer = ha::packed_pages(m.formats, 2, m.planned.page_units, 64);
  check_error<ha::ArgumentError>([&] { append(fewer.with_pool(pool.data())); },
                                 {"pages' sequences", "3", "2", "append"});
  // Engines' tables have one page size a call.
  check_error<ha::ArgumentError>([&] { (void)m.pages.indices(0); }, {"page sizes", "", "sizes of heads", "PagedHeads"});
  auto shape = m.shape();
  shape.head_page_sizes.pop_back();
  check_error<ha::ArgumentError>([&] { ha::PagedHeads(m.table, shape); },
                                 {"page sizes of heads", "", "", "PagedHeads"});
  shape.head_page_sizes.push_back(0);
  check_error<ha::ArgumentError>([&] { ha::PagedHeads(m.table, shape); }, {"page size", "> 0", "0", ""});
}
