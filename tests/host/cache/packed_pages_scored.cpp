// Pages of encoded rows with scored slots: the codes that a rolling cache holds, and attention over them.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/packed_scored_pages.hpp"

#include <cstdint>
#include <vector>

using namespace headaware_test;

TEST_CASE("pages of encoded rows with scored slots hold and show what rolling caches do", "[cache]") {
  for (std::int32_t const slack : {0, 4}) {
    INFO("slack " << slack);
    PackedScoredPages<ha::float16> p(slack, 64);
    for_each_packed_step(p, [&](std::int64_t tokens) {
      REQUIRE(p.difference() == "");
      REQUIRE(p.attend(true, tokens, 2) == p.attend(false, tokens, 2));
    });
  }
}

TEST_CASE("what pages of encoded rows with scored slots refuse", "[cache]") {
  PackedScoredPages<float> p(1, 32);
  auto const news = p.append({30, 1});
  auto const untouched = p.pool;
  ha::PageStep const step = p.pages.append(std::vector<std::int32_t>{1, 1});
  std::vector<ha::LayerKv<float const>> const tokens{{news.keys.data(), news.values.data()}};
  using Error = ha::ArgumentError;
  check_error<Error>([&] { ha::append(p.pages, step, tokens, news.layout, p.cache); },
                     {"pages", "cache/paged_scored.hpp", "heads with scored tokens", "append"});
  check_error<Error>([&] { ha::append(p.pages, step, tokens, news.layout, p.cache, p.scores.view(), {}); },
                     {"new tokens' scores", "a pointer", "nullptr", "append"});
  check_error<Error>([&] { ha::append(p.pages, step, tokens, news.layout, p.cache, {}, {}); },
                     {"scores", "a pointer", "nullptr", "append"});
  check_error<Error>([&] { (void)ha::packed_head_pages(p.pages, p.pages.view(), p.cache); },
                     {"pages", "heads of sinks and windows", "heads with scored tokens", "packed_head_pages"});
  CHECK(std::memcmp(p.pool.data(), untouched.data(), untouched.size() * sizeof(ha::RowUnit)) == 0);
}
