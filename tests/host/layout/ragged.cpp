#include "host/layout/definition.hpp"
#include "support/catch.hpp"

#include <headaware/error.hpp>
#include <headaware/layout/ragged.hpp>

#include <cstdint>
#include <random>
#include <vector>

namespace ha = headaware;

namespace {

std::vector<std::int32_t> prefix_sums(std::vector<std::int64_t> const& lengths) {
  std::vector<std::int32_t> sums{0};
  for (std::int64_t const length : lengths) sums.push_back(sums.back() + static_cast<std::int32_t>(length));
  return sums;
}

}  // namespace

TEST_CASE("ragged rows are the rows of all sequences one after another", "[layout]") {
  std::vector<std::int64_t> const lengths =
      GENERATE(std::vector<std::int64_t>{5}, std::vector<std::int64_t>{1, 4, 2}, std::vector<std::int64_t>{3, 0, 7, 1});
  std::int64_t const heads = GENERATE(1, 3);
  std::int64_t const dim = GENERATE(1, 6, 16);
  CAPTURE(lengths, heads, dim);
  std::vector<std::int32_t> const cu_seqlens = prefix_sums(lengths);
  std::int64_t const total = cu_seqlens.back();
  // The documented tensor, filled row by row: which element holds (sequence, head, token, channel)?
  std::vector<std::vector<std::vector<std::int64_t>>> rows(lengths.size());
  std::int64_t next = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    for (std::int64_t t = 0; t < lengths[s]; ++t) {
      rows[s].emplace_back();
      for (std::int64_t h = 0; h < heads; ++h) {
        rows[s].back().push_back(next);
        next += dim;
      }
    }
  }
  auto const layout = ha::ragged_thd(cu_seqlens.data(), static_cast<std::int64_t>(lengths.size()), total, heads, dim);
  layout_test::check_layout(layout, lengths, heads, dim, total * heads * dim, [&](auto s, auto h, auto t, auto c) {
    return rows[static_cast<std::size_t>(s)][static_cast<std::size_t>(t)][static_cast<std::size_t>(h)] + c;
  });
  CHECK(layout.token_capacity() == total);
  CHECK_FALSE(layout.tokens_adjacent());
}

TEST_CASE("a ragged layout's run is the longest that its strides allow", "[layout]") {
  std::uint32_t const seed = GENERATE(1U, 2U, 3U, 4U);
  std::mt19937 random(seed);
  CAPTURE(seed);
  using layout_test::pick;
  for (int i = 0; i < 200; ++i) {
    std::vector<std::int64_t> const lengths{pick(random, 0, 2), pick(random, 1, 2)};
    std::vector<std::int32_t> const cu_seqlens = prefix_sums(lengths);
    std::int64_t const unit = std::int64_t{1} << pick(random, 0, 4);
    ha::RaggedShape const shape{2, cu_seqlens.back(), pick(random, 1, 2), 4 * pick(random, 1, 4)};
    ha::RaggedStrides const strides{unit * pick(random, 0, 9), unit * pick(random, 0, 9), pick(random, 1, 2)};
    ha::RaggedLayout const layout(cu_seqlens.data(), shape, strides);
    CAPTURE(strides.token, strides.head, strides.channel, shape.total, shape.num_kv_heads, shape.channels);
    REQUIRE(layout.channel_run() == layout_test::longest_run(layout, lengths, shape.num_kv_heads, shape.channels));
  }
}

TEST_CASE("a ragged tensor may have its heads outermost, or its tokens innermost", "[layout]") {
  std::vector<std::int32_t> const cu_seqlens{0, 3, 5};
  std::vector<std::int64_t> const lengths{3, 2};
  layout_test::Array const htd{2, 5, 8};
  ha::RaggedLayout const heads_first(cu_seqlens.data(), {2, 5, 2, 8}, {.token = 8, .head = 40, .channel = 1});
  layout_test::check_layout(heads_first, lengths, 2, 8, htd.size(), [&](auto s, auto h, auto t, auto c) {
    return htd.at(h, cu_seqlens[static_cast<std::size_t>(s)] + t, c);
  });
  layout_test::Array const hdt{2, 8, 5};
  ha::RaggedLayout const transposed(cu_seqlens.data(), {2, 5, 2, 8}, {.token = 1, .head = 40, .channel = 5});
  layout_test::check_layout(transposed, lengths, 2, 8, hdt.size(), [&](auto s, auto h, auto t, auto c) {
    return hdt.at(h, c, cu_seqlens[static_cast<std::size_t>(s)] + t);
  });
  CHECK(transposed.tokens_adjacent());
}

TEST_CASE("ragged offsets go beyond 32 bits", "[layout]") {
  std::vector<std::int32_t> const cu_seqlens{0, 2000000, 10000000};
  auto const layout = ha::ragged_thd(cu_seqlens.data(), 2, 10000000, 8, 128);
  CHECK(layout.offset(1, 0, 97152, 0) == std::int64_t{2147483648});
  CHECK(layout.offset(1, 7, 7999999, 127) == std::int64_t{10239999999});
  CHECK(layout.required_span_size() == std::int64_t{10240000000});
}

TEST_CASE("ragged arguments are checked; nothing at all is fine", "[layout]") {
  std::int32_t const cu_seqlens[] = {0, 1};
  CHECK_THROWS_AS(ha::ragged_thd(nullptr, 1, 1, 1, 1), ha::ArgumentError);
  CHECK_THROWS_AS(ha::ragged_thd(cu_seqlens, -1, 1, 1, 1), ha::ArgumentError);
  CHECK_THROWS_AS(ha::ragged_thd(cu_seqlens, 1, -1, 1, 1), ha::ArgumentError);
  CHECK_THROWS_AS(ha::ragged_thd(cu_seqlens, 1, 1, -1, 1), ha::ArgumentError);
  CHECK_THROWS_AS(ha::ragged_thd(cu_seqlens, 1, 1, 1, -1), ha::ArgumentError);
  CHECK_THROWS_AS(ha::RaggedLayout(cu_seqlens, {1, 1, 1, 1}, {-1, 0, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::RaggedLayout(cu_seqlens, {1, 1, 1, 1}, {0, -1, 1}), ha::ArgumentError);
  CHECK_THROWS_AS(ha::RaggedLayout(cu_seqlens, {1, 1, 1, 1}, {0, 0, -1}), ha::ArgumentError);
  CHECK(ha::ragged_thd(nullptr, 0, 0, 4, 8).required_span_size() == 0);
  CHECK(ha::RaggedLayout().channel_run() == 1);
}
