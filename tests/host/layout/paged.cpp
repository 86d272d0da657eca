#include "host/layout/definition.hpp"
#include "support/catch.hpp"

#include <headaware/error.hpp>
#include <headaware/layout/paged.hpp>

#include <cstdint>
#include <random>
#include <vector>

namespace ha = headaware;
using layout_test::Array;
using layout_test::Pages;
using layout_test::pick;

TEST_CASE("pages are found through dense tables and through CSR", "[layout]") {
  std::int64_t const page_size = GENERATE(1, 3, 16);
  std::int64_t const heads = GENERATE(1, 3);
  std::int64_t const dim = GENERATE(4, 6);
  std::mt19937 random(7);
  std::vector<std::int64_t> lengths{2 * page_size, 1, page_size + 1, 0};
  std::int64_t const num_pages = 8;
  Pages const pages(lengths, page_size, num_pages, random);
  CAPTURE(page_size, heads, dim);
  ha::PagedShape const shape{static_cast<std::int64_t>(lengths.size()), heads, dim, num_pages, page_size};
  Array const nhd{num_pages, page_size, heads, dim};
  Array const hnd{num_pages, heads, page_size, dim};
  for (bool const csr : {false, true}) {
    CAPTURE(csr);
    ha::PageTable const table = csr ? ha::PageTable::csr(pages.indices.data(), pages.indptr.data())
                                    : ha::PageTable::dense(pages.dense.data(), pages.max_pages, pages.row_stride);
    auto const nhd_layout = ha::paged_layout(table, shape, ha::PageOrder::nhd);
    layout_test::check_layout(nhd_layout, lengths, heads, dim, nhd.size(), [&](auto s, auto h, auto t, auto c) {
      return nhd.at(pages.page(s, t / page_size), t % page_size, h, c);
    });
    auto const hnd_layout = ha::paged_layout(table, shape, ha::PageOrder::hnd);
    layout_test::check_layout(hnd_layout, lengths, heads, dim, hnd.size(), [&](auto s, auto h, auto t, auto c) {
      return hnd.at(pages.page(s, t / page_size), h, t % page_size, c);
    });
    CHECK(nhd_layout.token_capacity() == (csr ? num_pages : pages.max_pages) * page_size);
    CHECK_FALSE(nhd_layout.tokens_adjacent());
  }
}

TEST_CASE("a dense table's rows are as far apart as they are long, unless said otherwise", "[layout]") {
  std::int32_t const table[] = {0, 1, 2, 3, 4, 5};
  CHECK(ha::PageTable::dense(table, 3).page(1, 2) == 5);
  CHECK(ha::PageTable::dense(table, 2).page(2, 1) == 5);
  CHECK(ha::PageTable::dense(table, 2, 4).page(1, 1) == 5);
}

TEST_CASE("a paged layout's run is the longest that its strides and plane allow", "[layout]") {
  std::uint32_t const seed = GENERATE(1U, 2U, 3U, 4U);
  std::mt19937 random(seed);
  CAPTURE(seed);
  for (int i = 0; i < 200; ++i) {
    std::int64_t const page_size = pick(random, 1, 3);
    std::int64_t const num_pages = pick(random, 1, 4);
    std::vector<std::int64_t> lengths{0};
    Pages const pages(lengths, page_size, num_pages, random);
    ha::PageTable const table = ha::PageTable::dense(pages.dense.data(), pages.max_pages, pages.row_stride);
    ha::PagedShape const shape{1, pick(random, 1, 2), 4 * pick(random, 1, 4), num_pages, page_size};
    std::int64_t const unit = std::int64_t{1} << pick(random, 0, 4);
    ha::PagedStrides const strides{unit * pick(random, 0, 9), unit * pick(random, 0, 9), unit * pick(random, 0, 9),
                                   pick(random, 1, 10) > 9 ? 2 : 1};
    std::int64_t const plane = unit * pick(random, 0, 3);
    ha::PagedLayout const layout(table, shape, strides, plane);
    CAPTURE(page_size, num_pages, shape.num_kv_heads, shape.channels, strides.page, strides.head, strides.token, plane);
    REQUIRE(layout.channel_run() == layout_test::longest_run(layout, lengths, shape.num_kv_heads, shape.channels));
    REQUIRE(layout.required_span_size() ==
            plane + (num_pages - 1) * strides.page + (shape.num_kv_heads - 1) * strides.head +
                (page_size - 1) * strides.token + (shape.channels - 1) * strides.channel + 1);
  }
}

TEST_CASE("a split-x layout's run is the longest that its strides and plane allow", "[layout]") {
  std::uint32_t const seed = GENERATE(1U, 2U, 3U, 4U);
  std::mt19937 random(seed);
  CAPTURE(seed);
  for (int i = 0; i < 200; ++i) {
    std::int64_t const page_size = pick(random, 1, 3);
    std::int64_t const num_pages = pick(random, 1, 4);
    std::vector<std::int64_t> lengths{0};
    Pages const pages(lengths, page_size, num_pages, random);
    ha::PageTable const table = ha::PageTable::csr(pages.indices.data(), pages.indptr.data());
    std::int64_t const x = pick(random, 0, 1) == 0 ? 3 : std::int64_t{1} << pick(random, 0, 3);
    ha::PagedShape const shape{1, pick(random, 1, 2), x * pick(random, 1, 4), num_pages, page_size};
    std::int64_t const unit = pick(random, 0, 1) == 0 ? x : 2;
    ha::SplitXStrides const strides{unit * pick(random, 0, 9), unit * pick(random, 0, 9), unit * pick(random, 0, 3),
                                    unit * pick(random, 0, 9)};
    std::int64_t const plane = unit * pick(random, 0, 3);
    ha::PagedSplitXLayout const layout(table, shape, x, strides, plane);
    CAPTURE(page_size, num_pages, x, shape.num_kv_heads, shape.channels, strides.page, strides.head, strides.group,
            strides.token, plane);
    REQUIRE(layout.channel_run() == layout_test::longest_run(layout, lengths, shape.num_kv_heads, shape.channels));
  }
}

TEST_CASE("runs of the usual caches span the head, or the x", "[layout]") {
  std::int32_t const table[] = {0, 1, 2, 3};
  ha::PageTable const pages = ha::PageTable::dense(table, 2);
  ha::PagedShape const shape{2, 8, 128, 4, 16};
  CHECK(ha::paged_layout(pages, shape, ha::PageOrder::nhd).channel_run() == 128);
  CHECK(ha::paged_layout(pages, shape, ha::PageOrder::hnd).channel_run() == 128);
  ha::PagedSplitXLayout const split(pages, shape, 8, {.page = 16384, .head = 2048, .group = 128, .token = 8});
  CHECK(split.channel_run() == 8);
  CHECK_FALSE(split.rows_contiguous());
  CHECK_FALSE(split.tokens_adjacent());
  ha::PagedLayout const transposed(pages, shape, {.page = 16384, .head = 2048, .token = 1, .channel = 16});
  CHECK(transposed.channel_run() == 1);
  CHECK(transposed.tokens_adjacent());
  // One odd element before the pool leaves no aligned run at all.
  CHECK(ha::PagedLayout(pages, shape, {.page = 16384, .head = 128, .token = 1024, .channel = 1}, 1).channel_run() == 1);
}

TEST_CASE("groups of one page token, or of all channels, are contiguous rows", "[layout]") {
  std::int32_t const table[] = {0, 1};
  ha::PageTable const pages = ha::PageTable::dense(table, 2);
  ha::PagedSplitXLayout const one_token(pages, {1, 2, 32, 2, 1}, 8, {.page = 64, .head = 32, .group = 8, .token = 8});
  CHECK(one_token.rows_contiguous());
  CHECK(one_token.channel_run() == 32);
  ha::PagedSplitXLayout const one_group(pages, {1, 2, 8, 2, 4}, 8, {.page = 64, .head = 32, .group = 32, .token = 8});
  CHECK(one_group.rows_contiguous());
  CHECK(one_group.channel_run() == 8);
  ha::PagedSplitXLayout const single(pages, {1, 2, 8, 2, 4}, 1, {.page = 64, .head = 32, .group = 4, .token = 1});
  CHECK(single.channel_run() == 1);
  CHECK(single.tokens_adjacent());
}

TEST_CASE("paged offsets go beyond 32 bits", "[layout]") {
  // Pages of 16 tokens, 8 heads, 128 channels: 2^14 elements each.
  std::int32_t const table[] = {131072, 600000};
  ha::PagedShape const shape{1, 8, 128, 600001, 16};
  auto const layout = ha::paged_layout(ha::PageTable::dense(table, 2), shape, ha::PageOrder::nhd);
  CHECK(layout.offset(0, 0, 0, 0) == std::int64_t{2147483648});
  CHECK(layout.offset(0, 7, 31, 127) == std::int64_t{9830416383});
  CHECK(layout.required_span_size() == std::int64_t{9830416384});
  ha::PagedLayout const values(ha::PageTable::dense(table, 2), shape, layout.strides(), layout.required_span_size());
  CHECK(values.offset(0, 7, 31, 127) == std::int64_t{19660832767});
  ha::PagedSplitXLayout const split(ha::PageTable::dense(table, 2), shape, 8,
                                    {.page = 16384, .head = 2048, .group = 128, .token = 8});
  CHECK(split.offset(0, 7, 31, 127) == std::int64_t{9830416383});
  CHECK(split.required_span_size() == std::int64_t{9830416384});
}

TEST_CASE("tokens divide into pages of any size", "[layout]") {
  std::int64_t const largest = 2147483647;
  auto const check = [&](std::int64_t divisor) {
    CAPTURE(divisor);
    ha::FixedDivisor const fixed(divisor, "page_size", "test");
    std::int64_t const last_multiple = largest / divisor * divisor;
    std::int64_t wrong = 0;
    for (std::int64_t const n :
         {std::int64_t{0}, std::int64_t{1}, divisor - 1, divisor, divisor + 1, 2 * divisor - 1, std::int64_t{1000003},
          last_multiple - divisor, last_multiple - 1, last_multiple, largest - 1, largest}) {
      if (n < 0 || n > largest) continue;
      wrong += fixed.quotient(n) != n / divisor;
      wrong += fixed.remainder(n) != n % divisor;
    }
    REQUIRE(wrong == 0);
  };
  std::uint32_t const seed = 11;
  std::mt19937 random(seed);
  CAPTURE(seed);
  for (std::int64_t divisor = 1; divisor <= 2000; ++divisor) check(divisor);
  for (std::int64_t power = 1; power <= largest; power *= 2) {
    for (std::int64_t const near : {power - 1, power, power + 1}) {
      if (near > 0) check(near);
    }
  }
  for (int i = 0; i < 2000; ++i) check(pick(random, 1, largest));
  check(largest);
}

TEST_CASE("paged arguments are checked", "[layout]") {
  std::int32_t const entries[] = {0, 1};
  ha::PageTable const table = ha::PageTable::dense(entries, 2);
  ha::PagedShape const shape{1, 2, 8, 2, 4};
  ha::PagedStrides const strides{64, 8, 16, 1};
  auto const changed = [&](auto member, std::int64_t value) {
    ha::PagedShape copy = shape;
    copy.*member = value;
    return copy;
  };
  CHECK_NOTHROW(ha::PagedLayout(table, shape, strides));
  CHECK_THROWS_AS(ha::PagedLayout(table, changed(&ha::PagedShape::num_sequences, -1), strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, changed(&ha::PagedShape::num_kv_heads, -1), strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, changed(&ha::PagedShape::channels, -1), strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, changed(&ha::PagedShape::num_pages, -1), strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, changed(&ha::PagedShape::page_size, 0), strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, changed(&ha::PagedShape::page_size, std::int64_t{1} << 31), strides),
                  ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(ha::PageTable{}, shape, strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(ha::PageTable::dense(entries, 2, 1), shape, strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(ha::PageTable::dense(entries, -1), shape, strides), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, shape, {-1, 8, 16, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, shape, {64, -1, 16, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, shape, {64, 8, -1, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, shape, {64, 8, 16, -1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedLayout(table, shape, strides, -1), ha::ArgumentError);
  ha::SplitXStrides const split{64, 32, 16, 4};
  CHECK_NOTHROW(ha::PagedSplitXLayout(table, shape, 4, split));
  CHECK_THROWS_AS(ha::PagedSplitXLayout(table, shape, 3, split), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedSplitXLayout(table, shape, 0, split), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedSplitXLayout(table, shape, 4, {-1, 32, 16, 4}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedSplitXLayout(table, shape, 4, {64, -1, 16, 4}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedSplitXLayout(table, shape, 4, {64, 32, -1, 4}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedSplitXLayout(table, shape, 4, {64, 32, 16, -1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::PagedSplitXLayout(table, shape, 4, split, -1), ha::ArgumentError);
  try {
    ha::PagedLayout(table, changed(&ha::PagedShape::page_size, 0), strides);
    FAIL("no error");
  } catch (ha::ArgumentError const& error) {
    CHECK(error.detail().what == "page_size");
    CHECK(error.detail().got == "0");
    CHECK(error.detail().where == "PagedLayout");
  }
}

TEST_CASE("an empty pool has no extent and needs no table", "[layout]") {
  ha::PagedLayout const none(ha::PageTable{}, {0, 2, 8, 0, 16}, {});
  CHECK(none.required_span_size() == 0);
  CHECK(none.channel_run() >= 1);
  CHECK(ha::PagedLayout().channel_run() == 1);
  CHECK(ha::PagedSplitXLayout().channel_run() == 1);
  CHECK(ha::PagedSplitXLayout().required_span_size() == 0);
}
