// Prefill chunks over rolling caches: one append and one call give what going token by token gives.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/rolled_chunk.hpp"
#include "support/uneven_chunk.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

using namespace headaware_test;

TEST_CASE("a chunk sees what its tokens would have seen one by one", "[attention]") {
  for (auto const& [first, second, tokens] :
       {std::array{0, 0, 1}, std::array{0, 3, 40}, std::array{1, 100, 17}, std::array{200, 69, 40}}) {
    INFO(first << ", " << second << " and " << tokens << " tokens");
    RolledChunk const chunk(first, second, tokens);
    std::vector<float> output(chunk.queries.size());
    auto const view = ha::RollingView::of_chunk(chunk.slots.view(), 0, chunk.state.lengths().data(), tokens);
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
  check_error<ha::ArgumentError>([&] { (void)ha::RollingView::of_chunk(chunk.slots.view(), 0, lengths, 41); },
                                 {"query_tokens", "1 to 40, the slack and 1", "41", "RollingView"});
  std::vector<float> output(chunk.queries.size());
  auto const view = ha::RollingView::of_chunk(chunk.slots.view(), 0, lengths, 2);
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend(chunk.shape(2), ha::AttentionQueries{chunk.queries.data(), chunk.layout()},
                   ha::KeptCache{chunk.keys.data(), chunk.values.data(), view},
                   ha::AttentionOutput{output.data(), chunk.layout()});
      },
      {"first_positions", "several queries' windows", "nullptr", "attend, RollingView"});
}

TEST_CASE("sequences of a chunk may have different numbers of new tokens", "[attention]") {
  // Of the second sequence two tokens are new, of the first eleven; slots that nothing was written to hold no number.
  auto const nan = std::numeric_limits<float>::quiet_NaN();
  ha::PolicyTable const table(1, 2, ha::SinkWindow{.sink = 2, .window = 6});
  ha::RollingSlots const slots(table, 2, {.max_tokens = 0, .slack = 10});
  constexpr std::int64_t dim = 16;
  std::vector<float> keys(static_cast<std::size_t>(slots.rows_total() * dim), nan);
  std::vector<float> values(keys.size(), nan);
  auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), dim);
  ha::RollingState state(2);
  auto const append = [&](std::array<std::int32_t, 2> const& counts, unsigned seed) {
    std::int64_t const most = std::max(counts[0], counts[1]);
    auto const new_keys = random_elements<float>(2 * most * 2 * dim, seed);
    auto const new_values = random_elements<float>(2 * most * 2 * dim, seed + 1);
    std::vector<ha::LayerKv<float const>> const step{{new_keys.data(), new_values.data()}};
    ha::append(slots.view(), state, step, ha::strided_bshd(2, most, 2, dim), counts, cache);
  };
  append({3, 5}, 1);
  std::vector<std::int32_t> const before(state.lengths().begin(), state.lengths().end());
  append({11, 2}, 3);
  auto const layout = ha::strided_bshd(2, 11, 4, dim);
  auto const queries = random_elements<float>(layout.required_span_size(), 9);
  std::vector<float> output(queries.size());
  auto const view = ha::RollingView::of_chunk(slots.view(), 0, state.lengths().data(), 11);
  auto const run = [&](float* to) {
    ha::attend({2, 4, 2, 11, dim, 0}, ha::AttentionQueries{queries.data(), layout},
               ha::KeptCache{keys.data(), values.data(), view}, ha::AttentionOutput{to, layout},
               {.first_positions = before.data()});
  };
  run(output.data());
  for (float const x : output) REQUIRE(std::isfinite(x));

  // What later tokens hold, even if it is no number, is nothing to earlier ones.
  auto const newest = slots.head(0, 0).row(0, slots.head(0, 0).slot_of(13));
  values[static_cast<std::size_t>(newest * dim)] = nan;
  std::vector<float> spoilt(output.size());
  run(spoilt.data());
  for (std::int64_t t = 0; t < 11; ++t) {
    auto const at = static_cast<std::size_t>(layout.offset(0, 0, t, 0));
    if (t < 10) CHECK(spoilt[at] == output[at]);
    if (t == 10) CHECK(std::isnan(spoilt[at]));
  }
}

TEST_CASE("a layer that holds nothing needs no buffers, and gives zeros", "[attention]") {
  ha::RollingSlots const slots(ha::PolicyTable(1, 2, ha::Prune{}), 1, {});
  std::vector<std::int32_t> const lengths{5};
  auto const layout = ha::strided_bshd(1, 1, 4, 8);
  auto const queries = random_elements<float>(layout.required_span_size(), 1);
  std::vector<float> output(queries.size(), 7.0F);
  std::vector<float> lse(4, 7.0F);
  float const* const none = nullptr;
  ha::attend({1, 4, 2, 1, 8, 0}, ha::AttentionQueries{queries.data(), layout},
             ha::KeptCache{none, none, ha::RollingView{slots.view(), 0, lengths.data()}},
             ha::AttentionOutput{output.data(), layout, lse.data()});
  for (float const x : output) CHECK(x == 0);
  for (float const x : lse) CHECK(x == -std::numeric_limits<float>::infinity());
}

TEST_CASE("a rolling view is only for its slots' heads, sequences and layers", "[attention]") {
  RolledChunk const chunk(5, 5, 1);
  auto const lengths = chunk.state.lengths().data();
  std::vector<float> output(2 * chunk.queries.size());
  auto const attend = [&](ha::AttentionShape const& shape, std::int32_t layer) {
    auto const layout = ha::strided_bshd(shape.num_sequences, 1, shape.num_query_heads, shape.head_dim);
    std::vector<float> const queries(static_cast<std::size_t>(layout.required_span_size()));
    ha::attend(
        shape, ha::AttentionQueries{queries.data(), layout},
        ha::KeptCache{chunk.keys.data(), chunk.values.data(), ha::RollingView{chunk.slots.view(), layer, lengths}},
        ha::AttentionOutput{output.data(), layout});
  };
  check_error<ha::ArgumentError>([&] { attend({2, 14, 7, 1, 32, 0}, 0); }, {"KV heads", "6", "7", "RollingView"});
  check_error<ha::ArgumentError>([&] { attend({3, 12, 6, 1, 32, 0}, 0); }, {"sequences", "at most 2", "3", ""});
  check_error<ha::ArgumentError>([&] { attend({2, 12, 6, 1, 32, 0}, 1); }, {"layer", "", "1", ""});
  check_error<ha::ArgumentError>([&] { (void)ha::RollingView::of_chunk(chunk.slots.view(), 99, lengths, 1); },
                                 {"layer", "", "99", "RollingView"});
}

TEST_CASE("merging passes over a part that saw nothing, whatever it holds", "[attention]") {
  ha::AttentionShape const shape{1, 1, 1, 1, 2, 0};
  auto const layout = ha::strided_bshd(1, 1, 1, 2);
  std::vector<float> into{1, 2};
  std::vector<float> other(2, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> lse{0.5F};
  std::vector<float> nothing{-std::numeric_limits<float>::infinity()};
  ha::merge_attention(shape, ha::AttentionOutput{into.data(), layout, lse.data()},
                      ha::AttentionOutput{other.data(), layout, nothing.data()});
  CHECK(into == std::vector<float>{1, 2});
  CHECK(lse[0] == 0.5F);
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

TEST_CASE("a chunk may show exactly what each sequence's new tokens see", "[attention]") {
  for (bool const counted : {true, false}) {
    UnevenChunk const chunk;
    std::vector<float> output(chunk.queries.size(), 77);
    auto const view = ha::RollingView::of_chunk(chunk.slots.view(), 0, chunk.state.lengths().data(),
                                                UnevenChunk::tokens, counted ? chunk.counts.data() : nullptr);
    ha::attend(chunk.shape(), ha::AttentionQueries{chunk.queries.data(), chunk.layout()},
               ha::KeptCache{chunk.keys.data(), chunk.values.data(), view},
               ha::AttentionOutput{output.data(), chunk.layout()}, {.first_positions = chunk.before.data()});
    CHECK(chunk.difference(output) == "");
    // Exactly what is needed is shown.
    if (counted) CHECK(view.head(0, 0).rows() == 2 + 4);
  }
}
