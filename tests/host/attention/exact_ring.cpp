// Attention over encoded rolling rows with an exact ring beside them, against plain double-precision loops over rows
// that are exact where the ring shows their token and decoded elsewhere.

#include "support/catch.hpp"
#include "support/differences.hpp"
#include "support/errors.hpp"
#include "support/packed_cache.hpp"

#include <headaware/attention/exact_ring.hpp>
#include <headaware/cache/packed_info.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int64_t dim = 64;
constexpr std::int32_t num_heads = 5;

struct Problem {
  ha::PolicyTable table{1, num_heads, ha::SinkWindow{.sink = 3, .window = 20}};
  ha::PolicyTable ring_table{1, num_heads, ha::SinkWindow{.sink = 2, .window = 6}};
  ha::FormatTable formats{1, num_heads, {ha::Packed<3>{}, ha::Packed<4>{}}};
  std::int32_t slack;
  ha::RollingSlots slots;
  ha::RollingSlots ring_slots;
  std::vector<ha::RowUnit> units;
  std::vector<ha::float16> ring_keys, ring_values;
  ha::PackedDestination<ha::RollingSlotsView, ha::DefaultFormats> packed;
  ha::Destination<ha::float16, ha::RollingSlotsView> ring;
  ha::RollingState state{2};
  std::vector<std::vector<std::vector<float>>> keys{2}, values{2};  ///< [sequences][tokens][heads, dim]

  explicit Problem(std::int32_t slack_tokens)
      : slack(slack_tokens),
        slots(policies(), 2, {.max_tokens = 90, .slack = slack_tokens}),
        ring_slots(ring_table, 2, {.max_tokens = 90, .slack = slack_tokens}),
        ring_keys(at(ring_slots.rows_total(0) * dim)),
        ring_values(ring_keys.size()),
        packed(ha::packed_rolling(slots, slots.view(), some_formats(), dim)),
        ring(ha::rolling(ring_slots, ring_slots.view(), ring_keys.data(), ring_values.data(), dim)) {
    units.resize(at(packed.total_units()));
    packed = packed.with_buffer(units.data());
  }
  ha::PolicyTable const& policies() {
    table.set(0, 1, ha::Full{});
    table.set(0, 2, ha::Prune{});
    table.set(0, 3, ha::WindowOnly{4});  // less than the ring
    return table;
  }
  ha::FormatTable const& some_formats() {
    formats.set(0, 4, {ha::Int8{}, ha::Packed<5>{}});
    formats.set(0, 1, {ha::Fp16{}, ha::Int8{}});
    return formats;
  }

  void append(std::array<std::int32_t, 2> const& counts, unsigned seed) {
    auto const layout = ha::strided_bshd(2, std::max(counts[0], counts[1]), num_heads, dim);
    auto const k = random_elements<ha::float16>(layout.required_span_size(), seed);
    auto const v = random_elements<ha::float16>(layout.required_span_size(), seed + 1);
    std::vector<ha::LayerKv<ha::float16 const>> const layers{{k.data(), v.data()}};
    for (std::size_t b = 0; b < 2; ++b) {
      for (std::int64_t t = 0; t < counts[b]; ++t) {
        std::vector<float> key, value;
        for (std::int32_t h = 0; h < num_heads; ++h) {
          for (std::int64_t c = 0; c < dim; ++c) {
            std::int64_t const from = layout.offset(static_cast<std::int64_t>(b), h, t, c);
            key.push_back(ha::to_float(k[at(from)]));
            value.push_back(ha::to_float(v[at(from)]));
          }
        }
        keys[b].push_back(key);
        values[b].push_back(value);
      }
    }
    ha::append(slots.view(), state, layers, layout, counts, packed, ring_slots.view(), ring);
  }

  /// Compares attention of the newest tokens.
  void check(std::int64_t tokens, bool with_sinks) {
    HeldProblem<float> held({2, 2 * num_heads, num_heads, tokens, dim}, {}, 31);
    held.queries = random_elements<float>(2 * 2 * num_heads * tokens * dim, 41);
    if (with_sinks) held.sinks.assign(at(held.shape.num_query_heads), 0.5F);
    for (std::size_t b = 0; b < 2; ++b) {
      auto const length = static_cast<std::int64_t>(keys[b].size());
      if (tokens > 1) held.first_positions.push_back(static_cast<std::int32_t>(length - tokens));
      for (std::int32_t h = 0; h < num_heads; ++h) held.segments.push_back(rows(b, h, length, tokens));
    }
    Attended const expected = naive_windows(held, tokens);
    ha::AttentionOptions options;
    if (tokens > 1) options.first_positions = held.first_positions.data();
    if (with_sinks) options.sinks = held.sinks.data();
    auto const view = [&](ha::RollingSlots const& of) {
      return tokens > 1 ? ha::RollingView::of_chunk(of.view(), 0, state.lengths().data(), tokens)
                        : ha::RollingView{of.view(), 0, state.lengths().data()};
    };
    std::vector<float> output(expected.output.size(), 77);
    std::vector<float> lse(expected.lse.size(), 77);
    ha::RingedCache<ha::DefaultFormats, ha::float16> const cache{
        {packed.layers[0], packed.layer(0).data(), view(slots)},
        {ring.layers[0].keys, ring.layers[0].values, view(ring_slots)}};
    ha::attend(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()}, cache,
               ha::AttentionOutput{output.data(), held.output_layout(), lse.data()}, options);
    check_attended(output, lse, expected, 200);
  }

 private:
  [[nodiscard]] bool keeps(std::int32_t h, std::int64_t token, std::int64_t length) const {
    return table.visit(0, h, [&](auto const& policy) { return policy.keeps(token, length); });
  }
  /// All tokens that any of the newest queries sees.
  HeldRows<float> rows(std::size_t b, std::int32_t h, std::int64_t length, std::int64_t tokens) {
    HeldRows<float> result;
    for (std::int64_t t = 0; t < length; ++t) {
      if (!keeps(h, t, length) && !keeps(h, t, length - tokens + 1)) continue;
      // The ring has what the first of the queries sees of it, and all after it.
      bool const exact = t < 2 || t >= length - tokens + 1 - 6;
      ha::HeadFormats const& of = formats.at(0, h);
      auto const row = [&](std::vector<float> const& all, ha::AnyFormat<> const& format) {
        std::vector<float> const own(all.begin() + h * dim, all.begin() + (h + 1) * dim);
        return exact ? own : code_row(format, own).decoded;
      };
      auto const k = row(keys[b][at(t)], of.key);
      auto const v = row(values[b][at(t)], of.value);
      result.keys.insert(result.keys.end(), k.begin(), k.end());
      result.values.insert(result.values.end(), v.begin(), v.end());
      result.positions.push_back(static_cast<std::int32_t>(t));
    }
    return result;
  }
  /// `naive_attention`, each query's own window by its policy: a query at a time.
  Attended naive_windows(HeldProblem<float> const& held, std::int64_t tokens) const {
    Attended all;
    all.output.resize(held.queries.size());
    all.lse.resize(held.queries.size() / at(dim));
    for (std::int64_t j = 0; j < tokens; ++j) {
      HeldProblem<float> one = held;
      for (std::size_t s = 0; s < one.segments.size(); ++s) {
        auto const h = static_cast<std::int32_t>(s) % num_heads;
        std::int64_t const length = static_cast<std::int64_t>(keys[s / num_heads].size()) - tokens + 1 + j;
        HeldRows<float> seen;
        HeldRows<float> const& from = held.segments[s];
        for (std::size_t r = 0; r < from.positions.size(); ++r) {
          if (from.positions[r] >= length || !keeps(h, from.positions[r], length)) continue;
          auto const at_row = static_cast<std::ptrdiff_t>(r) * dim;
          seen.keys.insert(seen.keys.end(), from.keys.begin() + at_row, from.keys.begin() + at_row + dim);
          seen.values.insert(seen.values.end(), from.values.begin() + at_row, from.values.begin() + at_row + dim);
          seen.positions.push_back(from.positions[r]);
        }
        one.segments[s] = seen;
      }
      Attended const result = naive_attention(one);
      for (std::int64_t row = 0; row < 2 * 2 * num_heads; ++row) {
        std::int64_t const i = row * tokens + j;
        all.lse[at(i)] = result.lse[at(i)];
        std::int64_t const first = held.output_layout().offset(row / (2 * num_heads), row % (2 * num_heads), j, 0);
        std::copy_n(result.output.begin() + first, dim, all.output.begin() + first);
      }
    }
    return all;
  }
};

}  // namespace

TEST_CASE("the newest tokens and sinks of a packed cache are exact where it has a ring", "[attention]") {
  Problem p(4);
  p.append({3, 1}, 1);
  p.check(1, false);
  p.append({5, 2}, 3);
  p.check(1, true);
  for (unsigned step = 0; step < 12; ++step) p.append({3, 5}, 10 + 2 * step);
  p.check(1, false);
  p.check(1, true);
}

TEST_CASE("a chunk over a packed cache with a ring sees what its tokens would one by one", "[attention]") {
  Problem p(4);
  for (unsigned step = 0; step < 14; ++step) p.append({5, 5}, 10 + 2 * step);
  p.check(5, false);
  p.check(3, true);
}

TEST_CASE("a ring of other sequences is refused", "[attention]") {
  Problem p(0);
  p.append({1, 1}, 1);
  ha::RollingSlots const other(p.ring_table, 3, {.max_tokens = 90, .slack = 0});
  ha::RollingView const view{p.slots.view(), 0, p.state.lengths().data()};
  ha::RollingView const of_other{other.view(), 0, p.state.lengths().data()};
  std::vector<float> const queries(at(2 * num_heads * dim), 1);
  std::vector<float> output(queries.size());
  auto const layout = ha::strided_bhsd(2, num_heads, 1, dim);
  ha::RingedCache<ha::DefaultFormats, ha::float16> const cache{{p.packed.layers[0], p.packed.layer(0).data(), view},
                                                               {p.ring_keys.data(), p.ring_values.data(), of_other}};
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend({2, num_heads, num_heads, 1, dim}, ha::AttentionQueries{queries.data(), layout}, cache,
                   ha::AttentionOutput{output.data(), layout});
      },
      {"", "", "", "attend"});
}

TEST_CASE("an append that a packed cache cannot take does not write its ring", "[attention]") {
  Problem p(0);
  p.append({9, 7}, 1);
  auto const keys = p.ring_keys;
  auto const layout = ha::strided_bshd(2, 1, num_heads, dim);
  auto const news = random_elements<ha::float16>(layout.required_span_size(), 5);
  std::vector<ha::LayerKv<ha::float16 const>> const layers{{news.data(), news.data()}};
  std::vector<std::int32_t> const counts{1, 1};
  check_error<ha::ArgumentError>(
      [&] {
        ha::append(p.slots.view(), p.state, layers, layout, counts, p.packed.with_buffer(nullptr), p.ring_slots.view(),
                   p.ring);
      },
      {"cache's rows", "", "nullptr", "append"});
  CHECK(first_difference(p.ring_keys, keys) == "");
  // The cache has room for 90 tokens, the ring for any number.
  std::vector<std::int32_t> const many{82, 0};
  check_error<ha::ArgumentError>(
      [&] { ha::append(p.slots.view(), p.state, layers, layout, many, p.packed, p.ring_slots.view(), p.ring); },
      {"new tokens", "81", "82", "sequence 0"});
  CHECK(first_difference(p.ring_keys, keys) == "");
  CHECK(p.state.length(0) == 9);
}

TEST_CASE("no more tokens of a cache with a ring come back than the ring has", "[attention]") {
  ha::PolicyTable const wide(1, num_heads, ha::SinkWindow{.sink = 3, .window = 60});
  ha::PolicyTable const narrow(1, num_heads, ha::SinkWindow{.sink = 2, .window = 6});
  ha::RollingSlots const slots(wide, 1, {.max_tokens = 90, .slack = 4});
  ha::RollingSlots const ring_slots(narrow, 1, {.max_tokens = 90, .slack = 4});
  auto const both = ha::with_ring(slots.view(), ring_slots.view());
  ha::RollingState state(1);
  std::vector<std::int32_t> const counts{30};
  state.advance(both, counts);
  CHECK(state.max_rollback(slots.view(), 0) == 30);
  CHECK(state.max_rollback(both, 0) == 4);
  CHECK_THROWS_AS(state.rollback(both, 0, 5), ha::ArgumentError);
  state.rollback(both, 0, 3);
  CHECK(state.max_rollback(both, 0) == 1);
  // A prompt leaves the slack of the ring empty.
  state.start(both, 0, 40);
  CHECK(state.max_rollback(both, 0) == 0);
}

TEST_CASE("tokens and bytes of a packed cache count its ring", "[attention]") {
  Problem p(4);
  std::vector<std::int32_t> const lengths{40, 7};
  ha::Compaction const compaction(p.table, lengths);
  ha::CacheInfo const without = ha::cache_info(compaction, p.packed);
  ha::CacheInfo const info = ha::cache_info(compaction, p.packed, p.ring_slots, sizeof(ha::float16));
  auto const ring_bytes = static_cast<std::int64_t>((p.ring_keys.size() + p.ring_values.size()) * sizeof(ha::float16));
  REQUIRE(ring_bytes == 2 * num_heads * (2 + 6 + 4) * 2 * dim * 2);
  CHECK(without.bytes == static_cast<std::int64_t>(p.units.size() * sizeof(ha::RowUnit)));
  CHECK(info.bytes == without.bytes + ring_bytes);
  CHECK(info.layers[0].bytes == without.layers[0].bytes + ring_bytes);
  CHECK(info.rows == without.rows);
  CHECK(info.ratio == static_cast<double>(info.bytes) / static_cast<double>((40 + 7) * num_heads * 2 * dim * 2));
  CHECK(ha::bytes_held(p.packed, p.ring_slots, sizeof(ha::float16)) == info.bytes);
  CHECK(ha::bytes_held(p.packed, p.ring_slots, sizeof(float)) == without.bytes + 2 * ring_bytes);
  ha::PolicyTable const fewer(1, num_heads - 1, ha::SinkWindow{.sink = 2, .window = 6});
  ha::RollingSlots const other(fewer, 2, {.max_tokens = 90, .slack = 4});
  check_error<ha::ArgumentError>([&] { (void)ha::cache_info(compaction, p.packed, other, 2); },
                                 {"KV heads of the ring", "5", "4", "layer 0"});
}
