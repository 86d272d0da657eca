// Attention over encoded rows on the CPU, heads of every format side by side, against plain double-precision loops over
// the rows decoded one by one.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/packed_cache.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/dense_views.hpp>
#include <headaware/cache/packed_rolling.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

template <class View>
void check_packed(HeldProblem<float> const& p, ha::PackedCache<ha::DefaultFormats, View> const& cache) {
  Attended const expected = naive_attention(p);
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = p.first_positions.data();
  if (!p.sinks.empty()) options.sinks = p.sinks.data();
  std::vector<float> output(expected.output.size(), 77);
  std::vector<float> lse(expected.lse.size(), 77);
  ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()}, cache,
             ha::AttentionOutput{output.data(), p.output_layout(), lse.data()}, options);
  // Where codes are integers, queries and weights are numbers of 16 bits, and as exact as these.
  check_attended(output, lse, expected, 200);
}

}  // namespace

TEST_CASE("attention over encoded rows is that over the decoded ones", "[attention]") {
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{128, 128}, std::pair{80, 40}, std::pair{20, 192}}) {
    PackedProblem<ha::float16> const p(keys, values, {keys == 80 ? 700 : 200, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const ragged = ha::packed_ragged(compaction, p.formats, keys, values);
    auto const padded = ha::packed_padded(compaction, p.formats, keys, ha::Alignment::right, values);
    std::vector<ha::RowUnit> ragged_rows(at(ragged.total_units()));
    std::vector<ha::RowUnit> padded_rows(at(padded.total_units()));
    auto const of_ragged = ragged.with_buffer(ragged_rows.data());
    auto const of_padded = padded.with_buffer(padded_rows.data());
    ha::compress(compaction, p.layers, p.source(), of_ragged);
    ha::compress(compaction, p.layers, p.source(), of_padded);
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (auto const& [group, tokens] : {std::pair{1, 1}, std::pair{3, 1}, std::pair{12, 1}, std::pair{2, 9}}) {
        INFO(keys << " and " << values << " channels, layer " << layer << ", group " << group << ", " << tokens
                  << " tokens");
        HeldProblem<float> const held = p.varied(layer, group, tokens);
        std::vector<std::int64_t> const offsets = held.row_offsets();
        std::vector<std::int32_t> lengths;
        for (std::size_t s = 0; s < held.segments.size(); ++s)
          lengths.push_back(static_cast<std::int32_t>(held.rows(s)));
        check_packed(held,
                     ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int64_t>>{
                         of_ragged.layers[at(layer)], of_ragged.layer(layer).data(), {offsets.data(), p.num_kv_heads}});
        check_packed(held, ha::PackedCache<ha::DefaultFormats, ha::PaddedView>{
                               of_padded.layers[at(layer)],
                               of_padded.layer(layer).data(),
                               {lengths.data(), p.num_kv_heads, compaction.max_kept(layer), ha::Alignment::right}});
      }
    }
  }
}

TEST_CASE("the caller may rotate queries and outputs", "[attention]") {
  PackedProblem<ha::float16> const p(64, 128, {90, 7, 0});
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.formats, 64, 128);
  std::vector<ha::RowUnit> rows(at(planned.total_units()));
  auto const packed = planned.with_buffer(rows.data());
  ha::compress(compaction, p.layers, p.source(), packed);
  HeldProblem<float> held = p.varied(0, 3, 2);
  std::vector<std::int64_t> const offsets = held.row_offsets();
  using View = ha::RaggedView<std::int64_t>;
  ha::PackedCache<ha::DefaultFormats, View> cache{
      packed.layers[0], packed.layer(0).data(), {offsets.data(), p.num_kv_heads}};
  std::vector<float> expected(at(held.output_layout().required_span_size()));
  std::vector<float> output(expected.size());
  auto const attend = [&](std::vector<float>& to) {
    ha::attend(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()}, cache,
               ha::AttentionOutput{to.data(), held.output_layout()});
  };
  attend(expected);
  rotate_rows(held.queries, held.query_layout(), held.shape, p.formats, true);
  cache.rotated_by_caller = true;
  attend(output);
  CHECK(output != expected);
  rotate_rows(output, held.output_layout(), held.shape, p.formats, false);
  for (std::size_t i = 0; i < output.size(); ++i) REQUIRE(std::abs(output[i] - expected[i]) < 2e-5F);
  held.shape.head_dim = 32;
  check_error<ha::ArgumentError>([&] { attend(output); },
                                 {"channels that the caller has rotated", "a multiple of 64", "32", "attend"});
}

TEST_CASE("a packed cache without rows or segments is refused", "[attention]") {
  std::vector<float> const queries(64, 1);
  std::vector<float> output(64);
  auto const layout = ha::strided_bhd(1, 1, 64);
  std::vector<std::int32_t> const offsets{0, 1};
  using View = ha::RaggedView<std::int32_t>;
  std::vector<ha::PackedSegment<>> const segments(1);
  auto const attend = [&](ha::RowUnit const* rows, ha::PackedSegment<> const* of) {
    ha::attend({1, 1, 1, 1, 64}, ha::AttentionQueries{queries.data(), layout},
               ha::PackedCache<ha::DefaultFormats, View>{rows, of, {offsets.data(), 1}},
               ha::AttentionOutput{output.data(), layout});
  };
  check_error<ha::ArgumentError>([&] { attend(nullptr, segments.data()); }, {"rows", "a pointer", "nullptr", "attend"});
  std::vector<ha::RowUnit> const rows(20);
  check_error<ha::ArgumentError>([&] { attend(rows.data(), nullptr); }, {"segments", "a pointer", "nullptr", ""});
}

TEST_CASE("a rolling cache of encoded rows is appended to, forked, rolled back and attended to", "[attention]") {
  std::vector<ha::AnyFormat<>> const all = all_formats();
  auto const heads = static_cast<std::int32_t>(all.size());
  constexpr std::int64_t dim = 64;
  ha::PolicyTable table(2, heads, ha::SinkWindow{.sink = 2, .window = 11});
  table.set(0, 3, ha::Full{});
  table.set(1, 5, ha::Prune{});
  ha::FormatTable formats(2, heads);
  for (std::int32_t h = 0; h < heads; ++h) {
    formats.set(0, h, {all[at(h)], all[at((h + 3) % heads)]});
    formats.set(1, h, {all[at((h + 6) % heads)], all[at(h)]});
  }
  ha::RollingSlots const slots(table, 3, {.max_tokens = 60, .slack = 4});
  auto const planned = ha::packed_rolling(slots, slots.view(), formats, dim);
  std::vector<ha::RowUnit> buffer(at(planned.total_units()), ha::RowUnit{{0x7fff7fff, 0x7fff7fff, 0x7fff7fff, ~0U}});
  auto const cache = planned.with_buffer(buffer.data());
  ha::RollingState state(3);
  // Tokens of every sequence, [layers][sequences][tokens][heads, dim], and what they decode to.
  std::vector<std::vector<std::vector<std::vector<float>>>> keys(2), values(2);
  for (auto* const tensor : {&keys, &values}) {
    for (auto& layer : *tensor) layer.resize(3);
  }
  unsigned seed = 100;
  auto const append = [&](std::array<std::int32_t, 3> const& counts) {
    std::int64_t const most = std::max({counts[0], counts[1], counts[2]});
    auto const layout = ha::strided_bshd(3, most, heads, dim);
    std::vector<std::vector<ha::float16>> news;
    std::vector<ha::LayerKv<ha::float16 const>> layers;
    for (int i = 0; i < 4; ++i) news.push_back(random_elements<ha::float16>(layout.required_span_size(), ++seed));
    for (std::size_t layer = 0; layer < 2; ++layer) {
      layers.push_back({news[2 * layer].data(), news[2 * layer + 1].data()});
    }
    for (std::size_t b = 0; b < 3; ++b) {
      for (std::int64_t t = 0; t < counts[b]; ++t) {
        for (std::size_t layer = 0; layer < 2; ++layer) {
          std::vector<float> key, value;
          for (std::int32_t h = 0; h < heads; ++h) {
            auto const row = [&](std::vector<ha::float16> const& from, ha::AnyFormat<> const& format) {
              std::vector<float> result;
              for (std::int64_t c = 0; c < dim; ++c) {
                result.push_back(ha::to_float(from[at(layout.offset(static_cast<std::int64_t>(b), h, t, c))]));
              }
              return code_row(format, result).decoded;
            };
            ha::HeadFormats const& of = formats.at(static_cast<std::int32_t>(layer), h);
            auto const k = row(news[2 * layer], of.key);
            auto const v = row(news[2 * layer + 1], of.value);
            key.insert(key.end(), k.begin(), k.end());
            value.insert(value.end(), v.begin(), v.end());
          }
          keys[layer][b].push_back(key);
          values[layer][b].push_back(value);
        }
      }
    }
    ha::append(slots.view(), state, layers, layout, counts, cache);
  };
  auto const check = [&](std::int64_t tokens) {
    for (std::size_t layer = 0; layer < 2; ++layer) {
      HeldProblem<float> held({3, 2 * heads, heads, tokens, dim}, {}, 31);
      held.queries = random_elements<float>(3 * 2 * heads * tokens * dim, 41);
      for (std::size_t b = 0; b < 3; ++b) {
        auto const length = static_cast<std::int64_t>(keys[layer][b].size());
        if (tokens > 1) held.first_positions.push_back(static_cast<std::int32_t>(length - tokens));
        for (std::int32_t h = 0; h < heads; ++h) {
          HeldRows<float> rows;
          for (std::int64_t t = 0; t < length; ++t) {
            bool const kept = table.visit(static_cast<std::int32_t>(layer), h,
                                          [&](auto const& policy) { return policy.keeps(t, length); });
            if (!kept) continue;
            auto const from = h * dim;
            auto const& key = keys[layer][b][at(t)];
            auto const& value = values[layer][b][at(t)];
            rows.keys.insert(rows.keys.end(), key.begin() + from, key.begin() + from + dim);
            rows.values.insert(rows.values.end(), value.begin() + from, value.begin() + from + dim);
            rows.positions.push_back(static_cast<std::int32_t>(t));
          }
          held.segments.push_back(std::move(rows));
        }
      }
      ha::RollingView const view{slots.view(), static_cast<std::int32_t>(layer), state.lengths().data()};
      check_packed(held, ha::PackedCache<ha::DefaultFormats, ha::RollingView>{
                             cache.layers[layer], cache.layer(static_cast<std::int32_t>(layer)).data(), view});
    }
  };
  append({5, 1, 0});
  check(1);
  append({1, 9, 0});
  append({30, 1, 0});
  check(1);
  std::vector<ha::SequenceCopy> const fork{{0, 2}};
  ha::copy_sequences(slots.view(), state, fork, cache);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    keys[layer][2] = keys[layer][0];
    values[layer][2] = values[layer][0];
  }
  check(1);
  append({1, 3, 2});
  state.rollback(slots.view(), 2, 1);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    keys[layer][2].pop_back();
    values[layer][2].pop_back();
  }
  append({1, 1, 1});
  check(1);
  check_error<ha::ArgumentError>([&] { append({40, 0, 0}); }, {"", "", "", "append"});
}
