// Long random walks over appending, taking back, forking, freeing and starting from a compressed cache, every state
// compared with lists of tokens filtered by the policies.

#include "support/rolling_walk.hpp"

#include <headaware/cache/compact.hpp>

#include <cstdint>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

template <class T>
void walk(unsigned seed, int steps, std::int32_t slack) {
  constexpr std::int32_t batch = 4;
  constexpr std::int64_t key_dim = 5;
  constexpr std::int64_t value_dim = 3;
  constexpr std::int64_t max_tokens = 90;
  ha::PolicyTable const table = mixed_table();
  ha::RollingSlots const slots(table, batch, {.max_tokens = max_tokens, .slack = slack});
  std::vector<T> keys(static_cast<std::size_t>(slots.rows_total() * key_dim));
  std::vector<T> values(static_cast<std::size_t>(slots.rows_total() * value_dim));
  auto const view = slots.view();
  auto const cache = ha::rolling(slots, view, keys.data(), values.data(), key_dim, value_dim);
  ha::RollingState state(batch);
  SlotModel model(table, slots);
  std::mt19937 random(seed);
  auto const below = [&](std::int64_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound));
  };
  for (int step = 0; step < steps; ++step) {
    INFO("seed " << seed << ", slack " << slack << ", step " << step);
    std::int32_t const b = below(batch);
    switch (below(12)) {
      case 0: {  // take back all that can be, or less
        std::int64_t const most = state.max_rollback(view, b);
        REQUIRE(most == model.max_rollback(b));
        std::int64_t const tokens = below(2) == 0 ? most : below(most + 1);
        state.rollback(view, b, tokens);
        model.sequences[static_cast<std::size_t>(b)].resize(static_cast<std::size_t>(state.length(b)));
        break;
      }
      case 1: {
        if (below(3) != 0) break;
        state.reset(b);
        model.clear(b);
        break;
      }
      case 2: {  // beams: one sequence replaces another
        std::int32_t const to = (b + 1 + below(batch - 1)) % batch;
        std::vector<ha::SequenceCopy> const copies{{b, to}};
        ha::copy_sequences(view, state, copies, cache);
        model.copy(b, to);
        break;
      }
      case 3: {  // a prompt, compressed in one step
        if (below(4) != 0) break;
        std::int32_t const tokens = below(60);
        model.start(b, tokens);
        std::vector<std::int32_t> lengths(batch, 0);
        lengths[static_cast<std::size_t>(b)] = tokens;
        auto const layout = new_token_layout(random(), batch, 4, tokens + 1, key_dim);
        NewTokens<T> const prompt(model, lengths, layout, new_token_layout(random(), batch, 4, tokens + 1, value_dim));
        ha::compress(ha::Compaction(table, lengths), prompt.layers(), prompt.layout(), cache);
        state.start(view, b, tokens);
        break;
      }
      default: {
        std::vector<std::int32_t> counts(batch);
        for (std::size_t i = 0; i < counts.size(); ++i) {
          std::int32_t const count = below(10) == 0 ? below(40) : below(3);
          counts[i] = model.length(static_cast<std::int64_t>(i)) + count <= max_tokens ? count : 0;
        }
        if (model.length(b) > max_tokens - 3) {
          state.reset(b);
          model.clear(b);
          break;
        }
        model.append(counts);
        std::int64_t const most = *std::max_element(counts.begin(), counts.end());
        NewTokens<T> const news(model, counts, new_token_layout(random(), batch, 4, most, key_dim),
                                new_token_layout(random(), batch, 4, most, value_dim));
        ha::append(view, state, news.layers(), news.layout(), counts, cache);
      }
    }
    for (std::int32_t i = 0; i < batch; ++i) REQUIRE(state.length(i) == model.length(i));
    std::int32_t const checked = below(batch);
    REQUIRE(model.difference(checked, keys.data(), key_dim, values.data(), value_dim) == "");
    if (step % 16 == 0) REQUIRE(state.max_rollback(view, checked) == model.max_rollback(checked));
  }
}

}  // namespace

TEST_CASE("a rolling cache through 10,000 random steps, four-byte elements", "[cache]") { walk<float>(601, 10000, 4); }
TEST_CASE("a rolling cache through 10,000 random steps, two-byte elements, no slack", "[cache]") {
  walk<std::uint16_t>(602, 10000, 0);
}
TEST_CASE("a rolling cache through 10,000 random steps, one-byte elements, much slack", "[cache]") {
  walk<std::uint8_t>(603, 10000, 19);
}
