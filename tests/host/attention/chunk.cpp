// Prefill chunks over rolling caches: one append and one call give what going token by token gives.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/rolled_chunk.hpp"
#include "support/uneven_chunk.hpp"

#include <cmath>
#include <limits>

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

TEST_CASE("rows that a query does not see may hold anything", "[attention]") {
  float const infinity = std::numeric_limits<float>::infinity();
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
    for (std::int64_t const dim : {16, 20}) {  // rows read in place, and rows copied
      for (std::int32_t const bad_row : {3, 70, 79}) {
        std::int64_t const queries = 40;
        std::int64_t const rows = 80;
        auto const random = [&](std::int64_t count, unsigned seed) {
          return random_elements<float>(count * dim, seed);
        };
        auto const keys = random(rows, 1);
        auto const values = random(rows, 2);
        auto const q = random(queries, 3);
        std::vector<std::int32_t> const offsets{0, 80};
        std::int32_t const first = 50;
        auto const layout = ha::strided_bhsd(1, 1, queries, dim);
        auto const run = [&](std::vector<float> const& k, std::vector<float> const& v) {
          std::vector<float> output(q.size());
          ha::attend({1, 1, 1, queries, dim}, ha::AttentionQueries{q.data(), layout},
                     ha::KeptCache{k.data(), v.data(), ha::RaggedView{offsets.data(), 1}},
                     ha::AttentionOutput{output.data(), layout}, {.first_positions = &first});
          return output;
        };
        auto const good = run(keys, values);
        for (bool const in_keys : {true, false}) {
          auto bad_keys = keys;
          auto bad_values = values;
          (in_keys ? bad_keys : bad_values)[static_cast<std::size_t>(bad_row * dim + 5)] = bad;
          auto const output = run(bad_keys, bad_values);
          for (std::int64_t i = 0; i < queries; ++i) {
            INFO(bad << " in row " << bad_row << ", query at " << first + i);
            auto const at = static_cast<std::size_t>(i * dim + 5);
            if (first + i < bad_row) {
              CHECK(output[at] == good[at]);
            } else {
              CHECK(!std::isfinite(output[at]));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("sequences of a chunk may have different numbers of new tokens", "[attention]") {
  for (bool const counted : {true, false}) {
    UnevenChunk const chunk;
    std::vector<float> output(chunk.queries.size(), 77);
    auto const view = ha::RollingView::of_chunk(chunk.plan.view(), 0, chunk.state.lengths().data(), UnevenChunk::tokens,
                                                counted ? chunk.counts.data() : nullptr);
    ha::attend(chunk.shape(), ha::AttentionQueries{chunk.queries.data(), chunk.layout()},
               ha::KeptCache{chunk.keys.data(), chunk.values.data(), view},
               ha::AttentionOutput{output.data(), chunk.layout()}, {.first_positions = chunk.before.data()});
    CHECK(chunk.is_attention(output));
    // Exactly what is needed is shown.
    if (counted) CHECK(view.segment(0, 0).rows() == 2 + 4);
  }
}
