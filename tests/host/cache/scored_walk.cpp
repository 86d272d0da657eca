// Long random walks over appending with scores, taking back, forking and freeing: every state, and every query of every
// chunk, compared with all tokens that have left the window sorted by score.

#include "support/catch.hpp"
#include "support/scored_model.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/scored_append.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

using namespace headaware_test;

namespace {

struct ScoredWalk {
  static constexpr std::int32_t batch = 3;
  static constexpr std::int64_t dim = ScoredModel::head_dim;
  static constexpr std::int64_t group = 2;
  static constexpr std::int64_t max_tokens = 150;

  ScoredModel model{scored_table(2), batch};
  ha::RollingSlots slots;
  ha::RollingScores scores;
  std::vector<float> keys;
  std::vector<float> values;
  ha::RollingState state{batch};
  std::mt19937 random;

  ScoredWalk(std::int32_t slack, unsigned seed)
      : slots(model.table, batch, {.max_tokens = max_tokens, .slack = slack}),
        scores(slots),
        keys(static_cast<std::size_t>(slots.rows_total() * dim), std::nanf("")),
        values(keys),
        random(seed) {}

  [[nodiscard]] auto cache() { return ha::rolling(slots, slots.view(), keys.data(), values.data(), dim); }
  std::int32_t below(std::int64_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound));
  }

  void append(std::vector<std::int32_t> const& counts) {
    std::vector<std::int32_t> const before(state.lengths().begin(), state.lengths().end());
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::int32_t i = 0; i < counts[b]; ++i) model.add(b);
    }
    auto const step = model.step(before, counts);
    std::vector<ha::LayerKv<float const>> const tokens(2, {step.keys.data(), step.values.data()});
    auto of = ha::TokenScores::contiguous(step.scores.data(), batch, model.heads(), step.most);
    of.layer_stride = 0;  // both layers have the same tokens
    ha::append(slots.view(), state, tokens, step.layout(batch, model.heads()), counts, cache(), scores.view(), of);
    std::int64_t const most = *std::max_element(counts.begin(), counts.end());
    if (most - 1 <= slots.limits().slack && most > 0) check_attention(before, counts, most);
  }

  /// What each new token's query sees, all of them asked at once.
  void check_attention(std::vector<std::int32_t> const& before, std::vector<std::int32_t> const& counts,
                       std::int64_t most) {
    std::int64_t const heads = model.heads();
    ha::AttentionShape const shape{
        batch, static_cast<std::int32_t>(heads * group), static_cast<std::int32_t>(heads), most, dim, 0};
    auto const layout = ha::strided_bshd(batch, most, heads * group, dim);
    auto const queries = random_elements<float>(layout.required_span_size(), static_cast<unsigned>(random()));
    std::vector<float> output(queries.size());
    std::int64_t const offset = slots.rows_total(0) * dim;
    bool const masked = most > 1 || slots.limits().slack > 0 || below(2) == 0;
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      bool const uneven = masked && below(2) == 0;
      auto const view = ha::ScoredView::of_chunk(slots.view(), scores.view(), layer, state.lengths().data(), most,
                                                 uneven ? counts.data() : nullptr);
      // Without positions every query is its sequence's newest token.
      ha::attend(shape, ha::AttentionQueries{queries.data(), layout},
                 ha::KeptCache{keys.data() + layer * offset, values.data() + layer * offset, view},
                 ha::AttentionOutput{output.data(), layout}, {.first_positions = masked ? before.data() : nullptr});
      for (std::size_t b = 0; b < batch; ++b) {
        for (std::int32_t t = 0; t < counts[b]; ++t) {
          for (std::int32_t h = 0; h < heads * group; ++h) {
            auto const at = layout.offset(static_cast<std::int64_t>(b), h, t, 0);
            auto const expected =
                model.attend(b, static_cast<std::int32_t>(h / group), before[b] + t + 1, queries.data() + at);
            double worst = 0;
            for (std::int64_t c = 0; c < dim; ++c) {
              worst = std::max(worst, std::abs(double{output[static_cast<std::size_t>(at + c)]} -
                                               expected[static_cast<std::size_t>(c)]));
            }
            INFO("layer " << layer << ", sequence " << b << ", query " << t << " of " << counts[b] << ", head " << h);
            REQUIRE(worst < 1e-5);
          }
        }
      }
    }
  }

  void check_slots() {
    auto const offsets = slots.offsets();
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t b = 0; b < batch; ++b) {
        for (std::int32_t h = 0; h < model.heads(); ++h) {
          INFO("layer " << layer << ", sequence " << b << ", KV head " << h);
          ha::RollingHead const& head = slots.head(layer, h);
          auto const sequence = static_cast<std::size_t>(b);
          std::vector<std::int32_t> positions(static_cast<std::size_t>(head.slots()));
          ha::slot_positions(slots.view(), scores.view(), layer, h, b, state.length(b), positions);
          auto const first = offsets[static_cast<std::size_t>((layer * batch + b) * model.heads() + h)];
          for (std::size_t slot = 0; slot < positions.size(); ++slot) {
            if (positions[slot] < 0) continue;
            float const* const key = keys.data() + (first + static_cast<std::int64_t>(slot)) * dim;
            float const* const value = values.data() + (first + static_cast<std::int64_t>(slot)) * dim;
            REQUIRE(std::equal(key, key + dim, model.row(sequence, positions[slot], h, 0)));
            REQUIRE(std::equal(value, value + dim, model.row(sequence, positions[slot], h, 1)));
          }
          positions.erase(std::remove(positions.begin(), positions.end(), -1), positions.end());
          std::sort(positions.begin(), positions.end());
          REQUIRE(positions == model.shown(sequence, h, state.length(b)));
        }
      }
    }
  }

  void step() {
    std::int32_t const b = below(batch);
    auto const sequence = static_cast<std::size_t>(b);
    switch (below(10)) {
      case 0: {
        std::int64_t const most = state.max_rollback(slots.view(), b);
        std::int64_t const tokens = below(2) == 0 ? most : below(most + 1);
        state.rollback(slots.view(), b, tokens);
        model.sequences[sequence].resize(static_cast<std::size_t>(state.length(b)));
        break;
      }
      case 1: {
        if (below(4) != 0) break;
        state.reset(b);
        model.sequences[sequence].clear();
        break;
      }
      case 2: {
        std::int32_t const to = (b + 1 + below(batch - 1)) % batch;
        std::vector<ha::SequenceCopy> const copies{{b, to}};
        ha::copy_sequences(slots.view(), state, copies, cache(), scores.view());
        model.sequences[static_cast<std::size_t>(to)] = model.sequences[sequence];
        break;
      }
      default: {
        std::vector<std::int32_t> counts(batch);
        bool const long_one = below(12) == 0;
        for (std::size_t i = 0; i < counts.size(); ++i) {
          counts[i] = long_one ? below(70) : below(std::min(slots.limits().slack + 2, 5));
          if (below(6) == 0) counts[i] = std::min(slots.limits().slack + 1, 20);
          if (model.length(i) + counts[i] <= max_tokens) continue;
          state.reset(static_cast<std::int32_t>(i));
          model.sequences[i].clear();
        }
        append(counts);
      }
    }
    check_slots();
  }
};

}  // namespace

TEST_CASE("walks of caches with scored slots show the best of the tokens that have left the window", "[cache]") {
  for (std::int32_t const slack : {0, 1, 4, 19}) {
    ScoredWalk walk(slack, static_cast<unsigned>(70 + slack));
    for (int step = 0; step < 140; ++step) {
      INFO("slack " << slack << ", step " << step);
      walk.step();
    }
  }
}

TEST_CASE("a prompt's append to scored slots keeps what its tokens one by one keep, bit for bit", "[cache]") {
  for (std::int32_t const slack : {0, 3}) {
    ScoredWalk whole(slack, 5);
    ScoredWalk single(slack, 5);
    whole.append({130, 41, 7});
    for (std::int32_t t = 0; t < 130; ++t) {
      std::vector<std::int32_t> const counts{1, t < 41 ? 1 : 0, t < 7 ? 1 : 0};
      std::vector<std::int32_t> const before(single.state.lengths().begin(), single.state.lengths().end());
      auto const step = whole.model.step(before, counts);
      std::vector<ha::LayerKv<float const>> const tokens(2, {step.keys.data(), step.values.data()});
      auto of = ha::TokenScores::contiguous(step.scores.data(), 3, whole.model.heads(), step.most);
      of.layer_stride = 0;
      ha::append(single.slots.view(), single.state, tokens, step.layout(3, whole.model.heads()), counts, single.cache(),
                 single.scores.view(), of);
    }
    single.model.sequences = whole.model.sequences;
    whole.check_slots();
    single.check_slots();
    CHECK(whole.state.max_rollback(whole.slots.view(), 0) == single.state.max_rollback(single.slots.view(), 0));
  }
}
