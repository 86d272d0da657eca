#include "host/layout/definition.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/error.hpp>
#include <headaware/layout/engines.hpp>

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace ha = headaware;
using layout_test::Array;

TEST_CASE("strided layouts are the arrays of their names", "[layout]") {
  std::int64_t const batch = GENERATE(1, 3);
  std::int64_t const heads = GENERATE(1, 2);
  std::int64_t const tokens = GENERATE(1, 5);
  std::int64_t const dim = GENERATE(1, 4, 6);
  CAPTURE(batch, heads, tokens, dim);
  std::vector<std::int64_t> const lengths(static_cast<std::size_t>(batch), tokens);
  std::int64_t const size = batch * heads * tokens * dim;
  Array const bhsd{batch, heads, tokens, dim};
  Array const bshd{batch, tokens, heads, dim};
  Array const bhds{batch, heads, dim, tokens};
  layout_test::check_layout(ha::strided_bhsd(batch, heads, tokens, dim), lengths, heads, dim, size,
                            [&](auto s, auto h, auto t, auto c) { return bhsd.at(s, h, t, c); });
  layout_test::check_layout(ha::strided_bshd(batch, tokens, heads, dim), lengths, heads, dim, size,
                            [&](auto s, auto h, auto t, auto c) { return bshd.at(s, t, h, c); });
  if (tokens == 1) {
    layout_test::check_layout(ha::strided_bhd(batch, heads, dim), lengths, heads, dim, size,
                              [&](auto s, auto h, auto t, auto c) { return bhsd.at(s, h, t, c); });
  }
  layout_test::check_layout(ha::strided_bhds(batch, heads, dim, tokens), lengths, heads, dim, size,
                            [&](auto s, auto h, auto t, auto c) { return bhds.at(s, h, c, t); });
  layout_test::check_layout(ha::strided_bhd(batch, heads, dim), std::vector<std::int64_t>(lengths.size(), 1), heads,
                            dim, batch * heads * dim, [&](auto s, auto h, auto, auto c) {
                              return Array{batch, heads, 1, dim}.at(s, h, 0, c);
                            });
  CHECK(ha::strided_bhds(2, 2, 4, 3).tokens_adjacent());
  CHECK_FALSE(ha::strided_bhsd(2, 2, 4, 3).tokens_adjacent());
}

TEST_CASE("a strided layout's run is the longest that its strides allow", "[layout]") {
  std::uint32_t const seed = GENERATE(1U, 2U, 3U, 4U);
  std::mt19937 random(seed);
  CAPTURE(seed);
  for (int i = 0; i < 200; ++i) {
    using layout_test::pick;
    ha::LayoutShape const shape{pick(random, 1, 2), pick(random, 1, 2), pick(random, 1, 3), 4 * pick(random, 1, 4)};
    std::int64_t const unit = std::int64_t{1} << pick(random, 0, 4);
    ha::LayoutStrides const strides{unit * pick(random, 0, 9), unit * pick(random, 0, 9), unit * pick(random, 0, 9), 1};
    ha::StridedLayout const layout(shape, strides);
    std::vector<std::int64_t> const lengths(static_cast<std::size_t>(shape.num_sequences), shape.tokens);
    CAPTURE(strides.sequence, strides.head, strides.token, shape.channels);
    REQUIRE(layout.channel_run() == layout_test::longest_run(layout, lengths, shape.num_kv_heads, shape.channels));
  }
}

TEST_CASE("strided offsets go beyond 32 bits", "[layout]") {
  auto const layout = ha::strided_bhsd(64, 8, 131072, 128);  // 2^33 elements
  CHECK(layout.required_span_size() == std::int64_t{8589934592});
  CHECK(layout.offset(63, 7, 131071, 127) == std::int64_t{8589934591});
  CHECK(layout.offset(16, 0, 0, 0) == std::int64_t{2147483648});
  CHECK(layout.offset(32, 1, 2, 3) == std::int64_t{4294967296 + 16777216 + 256 + 3});
}

TEST_CASE("tensors of more elements than 64 bits count are errors", "[layout]") {
  constexpr std::int64_t far = std::int64_t{1} << 32;
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  std::int32_t const table[] = {0, 1};
  auto const pages = ha::PageTable::dense(table, 1);
  auto const refused = [](auto const& call, char const* got, char const* where) {
    headaware_test::check_error<ha::ArgumentError>(call,
                                                   {"elements of a tensor", "at most 9223372036854775807", got, where});
  };
  refused([&] { (void)ha::strided_bhsd(1, far, 2, far); }, "4294967296 * 2 * 4294967296", "strided_bhsd");
  refused([&] { (void)ha::strided_bhsd(far, 1, 1, far); }, "4294967296 by a stride of", "StridedLayout");
  refused([&] { (void)ha::strided_bshd(1, far, far, 1); }, "4294967296 * 4294967296 * 1", "strided_bshd");
  refused([&] { (void)ha::strided_bhds(1, 1, far, far); }, "1 * 4294967296 * 4294967296", "strided_bhds");
  refused([&] { (void)ha::StridedLayout({1, 1, 2, 1}, {0, 0, most, 1}); }, "2 by a stride of", "StridedLayout");
  CHECK(ha::StridedLayout({1, 1, 2, 1}, {0, 0, most - 1, 1}).required_span_size() == most);
  CHECK(ha::strided_bhsd(0, far, far, 0).required_span_size() == 0);
  refused([&] { (void)ha::ragged_thd(table, 1, 1, far, far); }, "4294967296 * 4294967296", "ragged_thd");
  refused([&] { (void)ha::ragged_thd(table, 1, far, 1, far); }, "4294967296 by a stride", "RaggedLayout");
  ha::PagedShape shape{.num_sequences = 1, .num_kv_heads = 2, .channels = far, .num_pages = 2, .page_size = 1 << 30};
  refused([&] { (void)ha::flash_attention_paged(pages, shape); }, "1073741824 * 2 * 4294967296", "paged layout");
  shape.page_size = 1 << 28;
  shape.num_pages = 4;
  refused([&] { (void)ha::flashinfer_split(pages, shape, ha::PageOrder::hnd); }, "4 by a stride of", "PagedLayout");
  shape.num_kv_heads = 4;
  refused([&] { (void)ha::flashinfer_joined(pages, shape, ha::PageOrder::hnd); }, "* 2", "flashinfer_joined");
  shape.num_kv_heads = 2;
  refused([&] { (void)ha::vllm_flash(pages, shape); }, "4 by a stride of", "PagedLayout");
  refused([&] { (void)ha::vllm_paged_attention(pages, shape, 8); }, "4 by a stride of", "PagedSplitXLayout");
  shape.num_pages = most / 2;
  refused([&] { (void)ha::tensorrt_llm(table, 1, shape, 2); }, "* 2 * 2", "tensorrt_llm");
  refused([&] { (void)ha::llama_cpp({.kv_size = far, .n_head_kv = 2, .n_embd_head_k = far, .n_embd_head_v = 1}); },
          "4294967296 * 8589934592", "llama_cpp");
  refused([&] { (void)ha::llama_cpp_cells(pages, 1, {.kv_size = far, .n_head_kv = far, .n_embd_head_k = far}); },
          "4294967296 * 4294967296", "llama_cpp_cells");
}

TEST_CASE("an empty strided tensor has no extent and a run of at least 1", "[layout]") {
  CHECK(ha::strided_bhsd(0, 2, 3, 4).required_span_size() == 0);
  CHECK(ha::strided_bhsd(1, 2, 3, 0).required_span_size() == 0);
  CHECK(ha::strided_bhsd(1, 2, 3, 0).channel_run() >= 1);
  CHECK(ha::StridedLayout().channel_run() == 1);
}

TEST_CASE("negative extents and strides of a strided layout are errors", "[layout]") {
  ha::LayoutShape const shape{1, 1, 1, 1};
  CHECK_THROWS_AS(ha::StridedLayout({-1, 1, 1, 1}, {}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::StridedLayout({1, -1, 1, 1}, {}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::StridedLayout({1, 1, -1, 1}, {}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::StridedLayout({1, 1, 1, -1}, {}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::StridedLayout(shape, {-1, 0, 0, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::StridedLayout(shape, {0, -1, 0, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::StridedLayout(shape, {0, 0, -1, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::StridedLayout(shape, {0, 0, 0, -1}), ha::ArgumentError);
}
