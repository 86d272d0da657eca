// Scores of rows with scored slots, which several queries see and others do not, against plain loops.

#include "support/scored_key_scores.hpp"

#include "support/catch.hpp"

#include <headaware/attention/key_scores.hpp>

#include <cstdint>
#include <vector>

using namespace headaware_test;

TEST_CASE("key scores over scored slots, of rolling caches and of pages", "[attention]") {
  ScoredPages<float> p(4, 9, 20, 12);
  use_slack(p);
  constexpr std::int64_t tokens = 7;
  constexpr std::int32_t group = 2;
  std::int64_t const stride = p.pages.slots().rows_total(0) / 3;
  auto const layout = ha::strided_bshd(3, tokens, p.heads * group, p.key_dim);
  auto const queries = random_elements<float>(layout.required_span_size(), 7);
  auto const first = p.first_positions(tokens);
  for (auto const reduction : {ha::KeyScoreReduction::max, ha::KeyScoreReduction::sum}) {
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      auto const expected = naive_scored_key_scores(p, layer, tokens, group, queries, reduction, stride);
      auto const check = [&](auto const* keys, auto const& view) {
        std::vector<float> scores(expected.size());
        ha::score_keys(p.shape(tokens, group), ha::AttentionQueries{queries.data(), layout},
                       ha::KeptCache{keys, static_cast<float const*>(nullptr), view}, {.first_positions = first.data()},
                       reduction, ha::KeyScores{scores.data(), stride});
        CHECK(worst_error(scores, expected) < 1e-5);
      };
      float const* const kept = p.keys.data() + layer * p.pages.slots().rows_total(0) * p.key_dim;
      check(kept,
            ha::ScoredView::of_chunk(p.pages.slots().view(), p.rolled.view(), layer, p.state.lengths().data(), tokens));
      check(static_cast<float const*>(p.pool.data()), p.view(layer, tokens));
    }
  }
}
