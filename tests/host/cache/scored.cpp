// What caches with scored slots refuse, and what they say of their bytes.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_model.hpp"
#include "support/scored_model.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/packed_info.hpp>
#include <headaware/cache/packed_scored.hpp>
#include <headaware/compressor.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int64_t dim = 8;
using Error = ha::ArgumentError;

}  // namespace

TEST_CASE("scores order tokens, and of equal ones the newer counts more", "[cache]") {
  float const inf = std::numeric_limits<float>::infinity();
  std::vector<float> const ascending{std::nanf(""), -inf, -3.5F, -1e-40F, 0, 1e-40F, 2, inf};
  for (std::size_t i = 0; i + 1 < ascending.size(); ++i) {
    CHECK(ha::score_rank(ascending[i], 7) < ha::score_rank(ascending[i + 1], 0));
    CHECK(ha::score_rank(ascending[i], 7) < ha::score_rank(ascending[i], 8));
  }
  CHECK(ha::score_rank(-0.0F, 3) == ha::score_rank(0.0F, 3));
  CHECK(ha::score_rank(-std::nanf(""), 3) == ha::score_rank(std::nanf(""), 3));
}

TEST_CASE("scored tokens need scores, and caches that take them", "[cache]") {
  ha::PolicyTable const table(1, 2, ha::SinkWindowScored{.sink = 1, .window = 3, .scored = 2});
  ha::RollingSlots const slots(table, 1, {.max_tokens = 0, .slack = 1});
  CHECK(slots.rows_total() == 2 * (1 + (3 + 1) + (2 + 1)));
  ha::RollingScores scores(slots);
  std::vector<float> keys(static_cast<std::size_t>(slots.rows_total() * dim), -7);
  std::vector<float> values = keys;
  auto const untouched = keys;
  auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), dim);
  ha::RollingState state(1);
  std::vector<float> const news(2 * dim, 1);
  std::vector<ha::LayerKv<float const>> const tokens{{news.data(), news.data()}};
  auto const layout = ha::strided_bshd(1, 1, 2, dim);
  std::vector<std::int32_t> const counts{1};
  std::vector<float> const of_tokens(2);
  auto const refuses = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<Error>(call, parts);
    REQUIRE(keys == untouched);
    REQUIRE(state.length(0) == 0);
  };
  refuses([&] { ha::append(slots.view(), state, tokens, layout, counts, cache); },
          {"slots", "cache/scored_append.hpp", "heads with scored tokens", "append"});
  refuses([&] { ha::copy_sequences(slots.view(), state, {}, cache); },
          {"slots", "cache/scored_append.hpp", "heads with scored tokens", "copy_sequences"});
  auto const with = [&](ha::RollingScoresView const& records, float const* data) {
    return [&, records, data] {
      ha::append(slots.view(), state, tokens, layout, counts, cache, records,
                 ha::TokenScores::contiguous(data, 1, 2, 1));
    };
  };
  refuses(with({}, of_tokens.data()), {"scores", "a pointer", "nullptr", "append"});
  refuses(with(scores.view(), nullptr), {"new tokens' scores", "a pointer", "nullptr", "append"});
  ha::RollingSlots const others(table, 1, {.max_tokens = 0, .slack = 1});
  ha::RollingScores other_scores(others);
  refuses(with(other_scores.view(), of_tokens.data()), {"scores", "made for these slots", "other slots", "append"});
  refuses([&] { state.start(slots.view(), 0, 3); }, {"slots", "", "heads with scored tokens", "RollingState::start"});
  std::vector<std::int32_t> const lengths{3};
  refuses([&] { ha::compress(ha::Compaction(table, lengths), tokens, ha::strided_bshd(1, 3, 2, dim), cache); },
          {"destination", "made for the compaction's policies", "others", "layer 0, KV head 0"});

  // Attention: through the view that knows the records, by positions where these decide.
  std::vector<float> output(2 * dim);
  auto const attend = [&](auto const& view, ha::AttentionOptions const& options) {
    ha::attend({1, 2, 2, 1, dim, 0}, ha::AttentionQueries{news.data(), layout},
               ha::KeptCache{keys.data(), values.data(), view}, ha::AttentionOutput{output.data(), layout}, options);
  };
  std::int32_t const zero = 0;
  std::int32_t const one = 1;
  refuses(
      [&] {
        attend(ha::RollingView{slots.view(), 0, &one}, {});
      },
      {"slots", "ScoredView", "heads with scored tokens", "attend, RollingView"});
  ha::ScoredView const view{slots.view(), scores.view(), 0, &one};
  refuses([&] { attend(view, {}); }, {"first_positions", "a pointer", "nullptr", "attend, ScoredView"});
  refuses([&] { attend(view, {.first_positions = &zero, .window = 3}); },
          {"window", "0: scored tokens", "3", "attend, ScoredView"});
  refuses(
      [&] {
        attend(ha::ScoredView{slots.view(), {}, 0, &one}, {.first_positions = &zero});
      },
      {"scores", "a pointer", "nullptr", "attend, ScoredView"});
  check_error<Error>([&] { (void)ha::ScoredView::of_chunk(slots.view(), scores.view(), 0, &one, 3); },
                     {"query_tokens", "1 to 2, the slack and 1", "3", "ScoredView"});
  check_error<Error>([&] { (void)ha::ScoredView::of_chunk(slots.view(), scores.view(), 1, &one, 1); },
                     {"layer", "", "1", "ScoredView"});

  ha::UniformTable const wide(ha::SinkWindowScored{.sink = 4, .window = ha::all_tokens - 9, .scored = 6}, 1, 1);
  check_error<Error>([&] { ha::RollingSlots(wide, 1, {}); }, {"slots of a head", "below 2^31", "4 + ", "layer 0"});
}

TEST_CASE("bytes of scores and records are told", "[cache]") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 1, .window = 3});
  table.set(1, 1, ha::SinkWindowScored{.sink = 1, .window = 6, .scored = 5});
  ha::RollingSlots const slots(table, 3, {.max_tokens = 0, .slack = 3});
  ha::RollingScores const scores(slots);
  // Three sequences: 9 slots of a ring, 4 bytes each and up to 48; 8 records. And a place for each of four heads.
  CHECK(scores.bytes_held(0) == 0);
  CHECK(scores.bytes_held(1) == 3 * (48 + 8 * 16));
  CHECK(scores.bytes_held() == 4 * 16 + scores.bytes_held(1));
  CHECK(std::ssize(scores.bytes()) == scores.bytes_held());
  check_error<Error>([&] { (void)scores.bytes_held(2); }, {"layer", "", "2", "RollingScores"});
  CHECK(ha::RollingScores(ha::RollingSlots(ha::PolicyTable(1, 2, ha::Prune{}), 3, {})).bytes_held() == 0);
  CHECK(slots.rows_total(1) == 3 * (1 + 6 + 1 + 9 + 8));

  ha::FormatTable const formats(2, 2, {ha::Int8{}, ha::Int8{}});
  auto const packed = ha::packed_rolling(slots, slots.view(), formats, dim);
  std::vector<std::int32_t> const lengths{100, 0, 7};
  ha::Compaction const sizes(table, lengths);
  auto const rows = ha::cache_info(sizes, packed);
  auto const info = ha::cache_info(sizes, packed, scores);
  CHECK(info.bytes == rows.bytes + scores.bytes_held());
  CHECK(info.layers[0].bytes == rows.layers[0].bytes);
  CHECK(info.layers[1].bytes == rows.layers[1].bytes + scores.bytes_held(1));
  CHECK(info.ratio > rows.ratio);

  // Without slack the policy itself tells.
  CHECK(ha::SinkWindowScored{.sink = 1, .window = 6, .scored = 5}.record_bytes() == 32 + 5 * 16);
  CHECK(ha::SinkWindowScored{.sink = 1, .window = 6, .scored = 0}.record_bytes() == 0);
  ha::ModelConfig const model{2, 2, 2, dim};
  auto const held = [&](ha::AnyPolicy<> const& policy) {
    ha::PolicyTable with = table;
    with.set(1, 1, policy);
    return ha::Compressor(model, with).compression_summary(100, formats, dim).held_bytes;
  };
  CHECK(held(ha::SinkWindowScored{.sink = 1, .window = 6, .scored = 5}) ==
        held(ha::SinkWindow{.sink = 1, .window = 11}) + 32 + 5 * 16);
}

TEST_CASE("scored slots of layers that differ, a latent among them", "[mixed]") {
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable table = mixed_table(shape);
  table.set(0, 0, ha::SinkWindowScored{.sink = 1, .window = 4, .scored = 5});
  table.set(3, 0, ha::SinkWindowScored{.sink = 0, .window = 3, .scored = 4});
  table.set(5, 0, ha::SinkWindowScored{.sink = 2, .window = 1, .scored = 30});
  ha::RollingSlots const slots(table, 2, {.max_tokens = 60, .slack = 2});
  ha::RollingScores scores(slots);
  auto const elements =
      ha::buffer_elements(shape, shape.num_layers(), [&](std::int32_t layer) { return slots.rows_total(layer); });
  std::vector<float> keys(static_cast<std::size_t>(elements.head_dim));
  std::vector<float> values(static_cast<std::size_t>(elements.value_dim));
  auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), shape);
  ha::RollingState state(2);
  auto const score = [](std::int32_t layer, std::int64_t head, std::int64_t b, std::int64_t token) {
    return mixed_element(layer, false, b, head, token, 7);
  };
  for (std::int32_t first = 0; first < 50;) {
    std::int32_t const count = first == 0 ? 30 : 1 + first % 3;
    MixedTensors tokens(shape, 2, first, count);
    std::vector<float> of_tokens;
    for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
      for (std::int32_t b = 0; b < 2; ++b) {
        for (std::int32_t h = 0; h < 4; ++h) {
          for (std::int32_t t = 0; t < count; ++t) of_tokens.push_back(score(layer, h, b, first + t));
        }
      }
    }
    ha::append(slots.view(), state, tokens.layers(), ha::per_layer(tokens.layouts), std::array{count, count}, cache,
               scores.view(), ha::TokenScores::contiguous(of_tokens.data(), 2, 4, count));
    first += count;
    for (auto const& [layer, sink, window, scored] :
         {std::array{0, 1, 4, 5}, std::array{3, 0, 3, 4}, std::array{5, 2, 1, 30}}) {
      for (std::int32_t b = 0; b < 2; ++b) {
        INFO("layer " << layer << ", sequence " << b << ", " << first << " tokens");
        ha::RollingHead const& head = slots.head(layer, 0);
        std::vector<std::int32_t> positions(static_cast<std::size_t>(head.slots()));
        ha::slot_positions(slots.view(), scores.view(), layer, 0, b, first, positions);
        auto const dim_of = cache.channels.of(static_cast<std::size_t>(layer)).head_dim;
        for (std::size_t slot = 0; slot < positions.size(); ++slot) {
          if (positions[slot] < 0) continue;
          float const* const row = cache.layers[static_cast<std::size_t>(layer)].keys +
                                   head.row(b, static_cast<std::int64_t>(slot)) * dim_of;
          for (std::int64_t c = 0; c < dim_of; ++c) {
            REQUIRE(row[c] == mixed_element(layer, false, b, 0, positions[slot], c));
          }
        }
        std::vector<std::int32_t> expected;
        for (std::int32_t t = sink; t < first - window; ++t) expected.push_back(t);
        std::sort(expected.begin(), expected.end(),
                  [&](std::int32_t x, std::int32_t y) { return score(layer, 0, b, x) > score(layer, 0, b, y); });
        expected.resize(std::min(expected.size(), static_cast<std::size_t>(scored)));
        for (std::int32_t t = 0; t < first; ++t) {
          if (t < sink || t >= first - window) expected.push_back(t);
        }
        std::sort(expected.begin(), expected.end());
        positions.erase(std::remove(positions.begin(), positions.end(), -1), positions.end());
        std::sort(positions.begin(), positions.end());
        REQUIRE(positions == expected);
      }
    }
  }
}
