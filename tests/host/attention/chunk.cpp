// Prefill chunks over rolling caches: one append and one call give what going token by token gives.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/rolled_chunk.hpp"

#include <cmath>

using namespace headaware_test;

TEST_CASE("a chunk sees what its tokens would have seen one by one", "[attention]") {
  for (auto const& [first, second, tokens] :
       {std::array{0, 0, 1}, std::array{0, 3, 40}, std::array{1, 100, 17}, std::array{200, 69, 40}}) {
    INFO(first << ", " << second << " and " << tokens << " tokens");
    RolledChunk const chunk(first, second, tokens);
    std::vector<float> output(chunk.queries.size());
    auto const view = ha::RollingView::of_chunk(chunk.plan.view(), 0, chunk.state.lengths().data(), tokens);
    ha::attend(chunk.shape(tokens), ha::AttentionQueries{chunk.queries.data(), chunk.layout()},
               ha::KeptCache{chunk.keys.data(), chunk.values.data(), view},
               ha::AttentionOutput{output.data(), chunk.layout()}, {.first_positions = chunk.before.data()});
    float worst = 0;
    for (std::size_t i = 0; i < output.size(); ++i) worst = std::max(worst, std::abs(output[i] - chunk.stepwise[i]));
    CHECK(worst < 2e-6F);
  }
}

TEST_CASE("windows of a chunk need slack, and positions", "[attention]") {
  RolledChunk const chunk(5, 5, 2);
  auto const lengths = chunk.state.lengths().data();
  check_error<ha::ArgumentError>([&] { (void)ha::RollingView::of_chunk(chunk.plan.view(), 0, lengths, 41); },
                                 {"query_tokens", "1 to 40, the plan's slack and 1", "41", "RollingView"});
  std::vector<float> output(chunk.queries.size());
  auto const view = ha::RollingView::of_chunk(chunk.plan.view(), 0, lengths, 2);
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend(chunk.shape(2), ha::AttentionQueries{chunk.queries.data(), chunk.layout()},
                   ha::KeptCache{chunk.keys.data(), chunk.values.data(), view},
                   ha::AttentionOutput{output.data(), chunk.layout()});
      },
      {"first_positions", "several queries' windows", "nullptr", "attend"});
}
