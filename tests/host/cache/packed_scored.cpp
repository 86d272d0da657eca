// Scored slots of encoded rows: every format, beside the plain model's rows encoded one by one.

#include "support/catch.hpp"
#include "support/format_rows.hpp"
#include "support/scored_model.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/packed_scored.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int32_t batch = 2;
constexpr std::int64_t dim = ScoredModel::head_dim;

/// A head of each format.
struct PackedScored {
  std::vector<ha::AnyFormat<>> all = all_formats();
  std::int32_t heads = static_cast<std::int32_t>(all.size());
  ScoredModel model{table_of(heads), batch};
  ha::FormatTable formats{1, heads};
  ha::RollingSlots slots;
  ha::RollingScores scores;
  std::vector<ha::RowUnit> rows;
  ha::PackedDestination<ha::RollingSlotsView> cache;
  ha::RollingState state{batch};

  static ha::PolicyTable table_of(std::int32_t heads) {
    ha::PolicyTable table(1, heads, ha::SinkWindowScored{.sink = 2, .window = 5, .scored = 6});
    table.set(0, 1, ha::SinkWindow{.sink = 2, .window = 9});
    table.set(0, 2, ha::SinkWindowScored{.sink = 0, .window = 2, .scored = 20});
    return table;
  }
  explicit PackedScored(std::int32_t slack)
      : slots(model.table, batch, {.max_tokens = 0, .slack = slack}), scores(slots) {
    for (std::int32_t h = 0; h < heads; ++h) {
      formats.set(0, h, {all[static_cast<std::size_t>(h)], all[static_cast<std::size_t>((h + 3) % heads)]});
    }
    auto const planned = ha::packed_rolling(slots, slots.view(), formats, dim);
    rows.resize(static_cast<std::size_t>(planned.total_units()), ha::RowUnit{{~0U, ~0U, ~0U, ~0U}});
    cache = planned.with_buffer(rows.data());
  }
  [[nodiscard]] std::vector<float> row(std::size_t sequence, std::int64_t token, std::int32_t head, int plane) const {
    float const* const from = model.row(sequence, token, head, plane);
    return {from, from + dim};
  }
  void append(std::vector<std::int32_t> const& counts) {
    std::vector<std::int32_t> const before(state.lengths().begin(), state.lengths().end());
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::int32_t i = 0; i < counts[b]; ++i) model.add(b);
    }
    auto const step = model.step(before, counts);
    std::vector<ha::LayerKv<float const>> const tokens{{step.keys.data(), step.values.data()}};
    ha::append(slots.view(), state, tokens, step.layout(batch, heads), counts, cache, scores.view(),
               ha::TokenScores::contiguous(step.scores.data(), batch, heads, step.most));
    check_words();
    check_attention(before, counts, step.most);
  }
  void check_words() {
    for (std::int32_t b = 0; b < batch; ++b) {
      auto const sequence = static_cast<std::size_t>(b);
      for (std::int32_t h = 0; h < heads; ++h) {
        ha::RollingHead const& head = slots.head(0, h);
        std::vector<std::int32_t> positions(static_cast<std::size_t>(head.slots()));
        ha::slot_positions(slots.view(), scores.view(), 0, h, b, state.length(b), positions);
        auto const& packed = cache.layer(0)[static_cast<std::size_t>(b * heads + h)];
        for (std::size_t slot = 0; slot < positions.size(); ++slot) {
          if (positions[slot] < 0) continue;
          auto words = code_row(packed.formats.key, row(sequence, positions[slot], h, 0)).words;
          auto const value = code_row(packed.formats.value, row(sequence, positions[slot], h, 1)).words;
          words.insert(words.end(), value.begin(), value.end());
          auto const* const got =
              rows[static_cast<std::size_t>(head.row(b, static_cast<std::int64_t>(slot)) * packed.units + packed.shift)]
                  .words;
          INFO("sequence " << b << ", KV head " << h << ", slot " << slot);
          REQUIRE(std::equal(words.begin(), words.end(), got));
        }
        positions.erase(std::remove(positions.begin(), positions.end(), -1), positions.end());
        std::sort(positions.begin(), positions.end());
        REQUIRE(positions == model.shown(sequence, h, state.length(b)));
      }
    }
  }
  /// Attention over the codes against that over the decoded rows.
  void check_attention(std::vector<std::int32_t> const& before, std::vector<std::int32_t> const& counts,
                       std::int64_t most) const {
    if (most - 1 > slots.limits().slack) return;
    ScoredModel decoded(model.table, batch);
    decoded.sequences = model.sequences;
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::size_t t = 0; t < decoded.sequences[b].size(); ++t) {
        for (std::int32_t h = 0; h < heads; ++h) {
          ha::HeadFormats const& of = formats.at(0, h);
          for (int plane = 0; plane < 2; ++plane) {
            auto const back =
                code_row(plane == 0 ? of.key : of.value, row(b, static_cast<std::int64_t>(t), h, plane)).decoded;
            std::copy(back.begin(), back.end(), decoded.sequences[b][t].rows.begin() + (plane * heads + h) * dim);
          }
        }
      }
    }
    auto const layout = ha::strided_bshd(batch, most, heads, dim);
    auto const queries = random_elements<float>(layout.required_span_size(), model.seed);
    std::vector<float> output(queries.size());
    auto const records = ha::RollingScores(scores);  // attention writes nothing
    auto copy = records;
    auto const view = ha::ScoredView::of_chunk(slots.view(), copy.view(), 0, state.lengths().data(), most);
    ha::attend({batch, heads, heads, most, dim, 0}, ha::AttentionQueries{queries.data(), layout},
               ha::PackedCache<ha::DefaultFormats, ha::ScoredView>{cache.layers[0], cache.layer(0).data(), view},
               ha::AttentionOutput{output.data(), layout}, {.first_positions = before.data()});
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::int32_t t = 0; t < counts[b]; ++t) {
        for (std::int32_t h = 0; h < heads; ++h) {
          auto const at = layout.offset(static_cast<std::int64_t>(b), h, t, 0);
          auto const expected = decoded.attend(b, h, before[b] + t + 1, queries.data() + at);
          INFO("sequence " << b << ", query " << t << ", head " << h);
          // Where codes are integers, queries and weights are numbers of 16 bits.
          for (std::int64_t c = 0; c < dim; ++c) {
            REQUIRE(std::abs(double{output[static_cast<std::size_t>(at + c)]} - expected[static_cast<std::size_t>(c)]) <
                    5e-3);
          }
        }
      }
    }
  }
};

}  // namespace

TEST_CASE("rows that move to scored slots keep their codes, in every format", "[cache]") {
  for (std::int32_t const slack : {0, 4}) {
    INFO("slack " << slack);
    PackedScored p(slack);
    for (auto const& counts :
         {std::array{40, 3}, std::array{1, 1}, std::array{1, 30}, std::array{slack + 1, 1}, std::array{0, slack + 1},
          std::array{1, 1}, std::array{1, 1}, std::array{12, 0}, std::array{slack + 1, slack + 1}}) {
      p.append({counts[0], counts[1]});
    }
    if (slack > 0) {
      p.state.rollback(p.slots.view(), 0, 3);
      p.model.sequences[0].resize(p.model.sequences[0].size() - 3);
      p.check_words();
      p.append({2, 1});
    }
    std::vector<ha::SequenceCopy> const copies{{0, 1}};
    ha::copy_sequences(p.slots.view(), p.state, copies, p.cache, p.scores.view());
    p.model.sequences[1] = p.model.sequences[0];
    p.check_words();
    p.append({1, 1});
  }
}
