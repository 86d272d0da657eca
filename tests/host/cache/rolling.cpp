// Slots of rolling caches, wrap-around at every boundary, and what calls refuse.

#include "support/errors.hpp"
#include "support/reference_cache.hpp"
#include "support/rolling_walk.hpp"

#include <headaware/cache/compact.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace mine {

/// Every `RollingPolicy` serves, whoever wrote it.
struct LastPairs {
  static constexpr std::string_view name = "last_pairs";
  std::int32_t pairs = 2;
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token >= length - 2 * pairs;
  }
  friend constexpr bool operator==(LastPairs const&, LastPairs const&) = default;
};
constexpr ha::WindowRule window_rule(LastPairs const& policy) { return {0, 2 * policy.pairs}; }

}  // namespace mine

TEST_CASE("a rolling cache's rows, offsets and bytes", "[cache]") {
  ha::PolicyTable const table = mixed_table();
  ha::RollingSlots const slots(table, 3, {.max_tokens = 50, .slack = 2});
  std::vector<std::int64_t> const rows{12, 7, 12, 50, 0, 4, 3, 19};  // by layer and head
  std::int64_t total = 0;
  std::size_t s = 0;
  for (std::size_t layer = 0; layer < 2; ++layer) {
    for (std::size_t sequence = 0; sequence < 3; ++sequence) {
      for (std::size_t head = 0; head < 4; ++head, ++s) {
        REQUIRE(slots.offsets()[s] == total);
        total += rows[layer * 4 + head];
      }
    }
  }
  REQUIRE(slots.offsets().size() == 25);
  REQUIRE(slots.rows_total() == total);
  REQUIRE(slots.rows_total(0) == 3 * 81);
  REQUIRE(slots.rows_total(1) == 3 * 26);
  REQUIRE(slots.bytes_held(128, 2) == total * 2 * 128 * 2);
  REQUIRE(slots.token_limit() == 50);
  REQUIRE(ha::RollingSlots(ha::UniformTable(ha::SinkWindow{}, 2, 2), 1, {}).token_limit() == ha::all_tokens);
  // A segment's row as the heads say it and as the offsets do.
  REQUIRE(slots.head(1, 3).row(2, 5) + slots.rows_total(0) == slots.offsets()[23] + 5);
  REQUIRE(ha::RollingSlots(table, 0, {.max_tokens = 1}).rows_total() == 0);
}

TEST_CASE("slots and tokens at every length around every boundary", "[cache]") {
  for (std::int32_t sink = 0; sink < 4; ++sink) {
    for (std::int32_t window = 0; window < 5; ++window) {
      for (std::int32_t slack = 0; slack < 4; ++slack) {
        ha::RollingSlots const slots(ha::UniformTable(ha::SinkWindow{sink, window}, 1, 1), 1, {.slack = slack});
        ha::RollingHead const& head = slots.head(0, 0);
        REQUIRE(head.slots() == sink + window + (window > 0 ? slack : 0));
        std::vector<std::int64_t> held(static_cast<std::size_t>(head.slots()), -1);
        for (std::int64_t length = 0; length <= 3 * (sink + window + slack) + 2; ++length) {
          INFO(sink << " " << window << " " << slack << " " << length);
          ha::SinkWindow const policy{sink, window};
          auto const kept = kept_tokens(policy, length);
          REQUIRE(head.kept(length).count() == static_cast<std::int64_t>(kept.size()));
          auto const runs = head.runs(head.kept(length));
          REQUIRE(runs.total() == head.kept(length).count());
          std::vector<std::int32_t> positions(held.size());
          ha::slot_positions(head, length, positions);
          std::int64_t shown = 0;
          for (std::size_t i = 0; i < held.size(); ++i) {
            bool const visible = held[i] >= 0 && policy.keeps(held[i], length);
            REQUIRE(positions[i] == (visible ? held[i] : -1));
            shown += visible ? 1 : 0;
          }
          REQUIRE(shown == head.kept(length).count());
          for (std::size_t i = 0; i < kept.size(); ++i) {
            REQUIRE(head.kept(length).token(static_cast<std::int64_t>(i)) == kept[i]);
            REQUIRE(held[static_cast<std::size_t>(runs.slot(static_cast<std::int64_t>(i)))] == kept[i]);
          }
          // The next token goes where the definition says.
          std::int64_t const ring = window > 0 ? window + slack : 0;
          std::int64_t const slot = length < sink ? length : ring > 0 ? sink + (length - sink) % ring : -1;
          REQUIRE(head.slot_of(length) == slot);
          if (slot >= 0) held[static_cast<std::size_t>(slot)] = length;
        }
      }
    }
  }
}

TEST_CASE("appends of every size from every length, and back as far as can be", "[cache]") {
  constexpr std::int64_t dim = 2;
  ha::PolicyTable table(1, 3, ha::SinkWindow{.sink = 2, .window = 4});
  table.set(0, 1, ha::WindowOnly{.window = 3});
  table.set(0, 2, ha::Full{});
  for (std::int32_t const slack : {0, 1, 3}) {
    ha::RollingSlots const slots(table, 1, {.max_tokens = 64, .slack = slack});
    for (std::int32_t before = 0; before < 14; ++before) {
      for (std::int32_t count = 0; count < 20; ++count) {
        INFO("slack " << slack << ", " << before << " + " << count);
        SlotModel model(table, slots);
        ha::RollingState state(1);
        std::vector<std::uint16_t> keys(static_cast<std::size_t>(slots.rows_total() * dim));
        std::vector<std::uint16_t> values(keys);
        auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), dim);
        auto const append = [&](std::int32_t tokens) {
          std::vector<std::int32_t> const counts{tokens};
          model.append(counts);
          auto const layout = ha::strided_bshd(1, tokens, 3, dim);
          NewTokens<std::uint16_t> const news(model, counts, layout, layout);
          ha::append(slots.view(), state, news.layers(), layout, counts, cache);
          REQUIRE(model.difference(0, keys.data(), dim, values.data(), dim) == "");
        };
        append(before);
        append(count);
        std::int64_t const most = state.max_rollback(slots.view(), 0);
        REQUIRE(most == model.max_rollback(0));
        state.rollback(slots.view(), 0, most);
        model.sequences[0].resize(static_cast<std::size_t>(state.length(0)));
        REQUIRE(model.difference(0, keys.data(), dim, values.data(), dim) == "");
        check_error<ha::ArgumentError>(
            [&] { state.rollback(slots.view(), 0, state.max_rollback(slots.view(), 0) + 1); },
            {"tokens to take back", "in [0, ", std::to_string(state.max_rollback(slots.view(), 0) + 1), "sequence 0"});
        append(5);
        REQUIRE(state.max_rollback(slots.view(), 0) == model.max_rollback(0));
      }
    }
  }
}

TEST_CASE("a policy of one's own rolls if it says how", "[cache]") {
  ha::UniformTable const table(mine::LastPairs{.pairs = 3}, 2, 2);
  ha::RollingSlots const slots(table, 1, {});
  REQUIRE(slots.head(1, 1).slots() == 6);
  std::vector<std::int32_t> const lengths{31};
  auto const layout = ha::strided_bhsd(1, 2, 31, 4);
  SourceCache<float, ha::StridedLayout> const source(layout, layout.required_span_size(), 2, 4, 4, 620);
  std::vector<float> keys(static_cast<std::size_t>(slots.rows_total() * 4));
  std::vector<float> values(keys);
  auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), 4);
  ha::compress(ha::Compaction(table, lengths), source.layers(), layout, cache);
  for (std::int64_t token = 25; token < 31; ++token) {
    REQUIRE(keys[static_cast<std::size_t>((6 + token % 6) * 4)] == source.key(0, 0, 1, token, 0));
  }
  // Other policies' slots are refused, with nothing written.
  auto const before = keys;
  check_error<ha::ArgumentError>(
      [&] {
        ha::compress(ha::Compaction(ha::UniformTable(mine::LastPairs{.pairs = 2}, 2, 2), lengths), source.layers(),
                     layout, cache);
      },
      {"destination", "made for the compaction's policies", "others", "layer 0, KV head 0"});
  REQUIRE(keys == before);
}

TEST_CASE("what rolling caches refuse", "[cache]") {
  ha::PolicyTable const table = mixed_table();
  using Error = ha::ArgumentError;
  check_error<Error>([&] { ha::RollingSlots(table, 1, {}); }, {"max_tokens", "> 0", "0", "layer 0, KV head 3"});
  check_error<Error>([&] { ha::RollingSlots(table, -1, {.max_tokens = 4}); }, {"sequences", ">= 0", "-1", "Rolling"});
  check_error<Error>([&] { ha::RollingSlots(table, 1, {.max_tokens = -4}); }, {"max_tokens", "[0, ", "-4", "Rolling"});
  check_error<Error>([&] { ha::RollingSlots(table, 1, {.max_tokens = 4, .slack = -1}); },
                     {"slack", ">= 0", "-1", "RollingSlots"});
  std::int32_t const tokens[] = {1, 2};
  ha::PolicyTable listed(1, 2);
  listed.set(0, 1, ha::KeepList{tokens, 2});
  check_error<Error>([&] { ha::RollingSlots(listed, 1, {.max_tokens = 4}); },
                     {"policy", "one of sinks and a window", "keep_list", "layer 0, KV head 1"});
  ha::UniformTable const wide(ha::SinkWindow{.sink = 4, .window = ha::all_tokens - 3}, 1, 1);
  check_error<Error>([&] { ha::RollingSlots(wide, 1, {}); }, {"slots of a head", "below 2^31", "4 + ", "layer 0"});

  constexpr std::int64_t dim = 3;
  ha::RollingSlots const slots(table, 2, {.max_tokens = 20, .slack = 1});
  std::vector<float> keys = std::vector<float>(static_cast<std::size_t>(slots.rows_total() * dim), -7);
  std::vector<float> values = keys;
  auto const untouched = keys;
  auto const view = slots.view();
  auto const cache = ha::rolling(slots, view, keys.data(), values.data(), dim);
  ha::RollingState state(2);
  auto const layout = ha::strided_bhsd(2, 4, 21, dim);
  std::vector<std::int32_t> const counts{20, 2};
  TokenModel model(table, 2);
  model.append(counts);
  NewTokens<float> const news(model, counts, layout, layout);
  auto const refuses = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<Error>(call, parts);
    REQUIRE(keys == untouched);
    REQUIRE(values == untouched);
    REQUIRE(state.length(0) + state.length(1) == 0);
  };
  auto const with = [&](std::vector<std::int32_t> const& each) {
    return [&, each] { ha::append(view, state, news.layers(), layout, each, cache); };
  };
  refuses(with({21, 0}), {"new tokens", "in [0, 20]", "21", "append, sequence 0"});
  refuses(with({0, -1}), {"new tokens", "in [0, 20]", "-1", "append, sequence 1"});
  refuses(with({1}), {"counts", "2", "1", "append"});
  auto const source = [&](ha::StridedLayout const& bad) {
    return [&, bad] { ha::append(view, state, news.layers(), bad, counts, cache); };
  };
  refuses(source(ha::strided_bhsd(2, 4, 19, dim)), {"source tokens", "20", "19", "append, keys"});
  refuses(source(ha::strided_bhsd(2, 3, 21, dim)), {"source KV heads", "4", "3", "append, keys"});
  refuses(source(ha::strided_bhsd(3, 4, 21, dim)), {"source sequences", "2", "3", "append, keys"});
  refuses(source(ha::strided_bhsd(2, 4, 21, 2)), {"source channels", "3", "2", "append, keys"});
  auto layers = news.layers();
  layers[1].keys = nullptr;
  refuses([&] { ha::append(view, state, layers, layout, counts, cache); },
          {"new keys", "pointer", "nullptr", "layer 1"});
  layers = news.layers();
  layers[0].values = keys.data();
  refuses([&] { ha::append(view, state, layers, layout, counts, cache); },
          {"buffers", "apart", "overlapping", "append"});
  refuses([&] { ha::append(view, state, news.layers(), layout, counts, cache, {.first_layer = 1}); },
          {"layers", "within the cache's 2", "3", "append"});
  ha::RollingState small(1);
  refuses([&] { ha::append(view, small, news.layers(), layout, std::vector<std::int32_t>{1}, cache); },
          {"state's sequences", "2", "1", "append"});
  ha::RollingSlots const same(table, 2, {.max_tokens = 20, .slack = 1});
  refuses([&] { ha::append(same.view(), state, news.layers(), layout, counts, cache); },
          {"cache", "made for these slots", "other slots", "append"});
  auto const copies = [&](std::vector<ha::SequenceCopy> const& each) {
    return [&, each] { ha::copy_sequences(view, state, each, cache); };
  };
  refuses(copies({{0, 2}}), {"sequence", "[0, 2)", "2", "copy_sequences"});
  refuses(copies({{0, 1}, {1, 0}}), {"sequence to copy to", "neither", "1", "copy_sequences"});
  refuses(copies({{0, 1}, {0, 1}}), {"sequence to copy to", "neither", "1", "copy_sequences"});
  refuses([&] { state.start(view, 0, 21); }, {"length", "[0, 20]", "21", "start"});
  refuses([&] { (void)state.length(2); }, {"sequence", "[0, 2)", "2", "RollingState"});

  check_error<Error>(
      [&] { (void)slots.bytes_held(std::int64_t{1} << 60, 2); },
      {"elements of a tensor, or its bytes", "at most", " * 4611686018427387904", "RollingSlots::bytes"});
  ha::Compaction const sizes(table, std::vector<std::int32_t>{20, 2});
  check_error<Error>([&] { (void)sizes.bytes_held(std::int64_t{1} << 60, 2); }, {"", "", "", "CacheSizes::bytes_held"});
  check_error<Error>([&] { (void)sizes.bytes_full(ha::TokenBytes::of(std::int64_t{1} << 60, 2)); },
                     {"", "", "", "CacheSizes::bytes_full"});
  check_error<Error>([&] { (void)ha::TokenBytes::of(std::int64_t{1} << 60, 8); }, {"", "", "", "TokenBytes::of"});
  check_error<Error>([&] { (void)ha::TokenBytes::of(std::int64_t{1} << 60, 4).total(); },
                     {"", "", " + ", "TokenBytes::total"});

  // The same count of other tokens: (4 sinks, a window of 4) in slots of (2, 6); the same tokens where all are kept.
  ha::RollingSlots const others(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 2, .window = 6}), 1, {});
  auto const fill = [&](std::int32_t length) {
    ha::Compaction const filling(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 4}),
                                 std::vector<std::int32_t>{length});
    std::vector<float> const full(static_cast<std::size_t>(length * dim));
    std::vector<float> slots_of(static_cast<std::size_t>(others.rows_total() * dim));
    std::vector<float> more(slots_of);
    ha::compress(filling, std::vector<ha::LayerKv<float const>>{{full.data(), full.data()}},
                 ha::strided_bhsd(1, 1, length, dim),
                 ha::rolling(others, others.view(), slots_of.data(), more.data(), dim));
  };
  fill(8);
  check_error<Error>([&] { fill(9); }, {"destination", "the compaction's policies", "others", "layer 0, KV head 0"});

  // Layer by layer, counted at the end.
  for (std::int32_t l = 0; l < 2; ++l) {
    ha::append(view, state, std::vector{news.layers()[static_cast<std::size_t>(l)]}, layout, counts, cache,
               {.first_layer = l, .advance = false});
  }
  REQUIRE(state.length(0) == 0);
  state.advance(view, counts);
  REQUIRE(state.length(0) == 20);
  SlotModel held(table, slots);
  held.sequences = model.sequences;
  REQUIRE(held.difference(0, keys.data(), dim, values.data(), dim) == "");
  REQUIRE(held.difference(1, keys.data(), dim, values.data(), dim) == "");
  check_error<Error>(
      [&] {
        state.advance(view, std::vector<std::int32_t>{1, 1});
      },
      {"new tokens", "in [0, 0]", "1", "advance, sequence 0"});
  REQUIRE(state.length(1) == 2);
}

TEST_CASE("a rolling cache's buffers must be there and apart", "[cache]") {
  // Three layers; the second has no rows, and needs no buffers.
  ha::PolicyTable table(3, 1, ha::SinkWindow{.sink = 1, .window = 2});
  table.set(1, 0, ha::Prune{});
  ha::RollingSlots const slots(table, 2, {});
  auto const view = slots.view();
  constexpr std::int64_t dim = 4;
  std::vector<float> buffer(100);
  float* const at = buffer.data();
  std::vector<float> const news(static_cast<std::size_t>(2 * dim), 3);
  ha::RollingState state(2);
  using Layers = std::vector<ha::LayerKv<float>>;
  std::vector<ha::LayerKv<float const>> const tokens{
      {news.data(), news.data()}, {nullptr, nullptr}, {news.data(), news.data()}};
  auto const append = [&](Layers const& layers) {
    ha::append(view, state, tokens, ha::strided_bhsd(2, 1, 1, dim), std::vector<std::int32_t>{1, 1},
               ha::rolling(slots, view, layers, dim));
  };
  auto const copy = [&](Layers const& layers) {
    std::vector<ha::SequenceCopy> const copies{{0, 1}};
    ha::copy_sequences(view, state, copies, ha::rolling(slots, view, layers, dim));
  };
  append({{at, at + 24}, {nullptr, nullptr}, {at + 48, at + 72}});
  copy({{at, at + 24}, {nullptr, nullptr}, {at + 48, at + 72}});
  auto const refused = [&](Layers const& layers, std::string const& what, std::string const& expected,
                           std::string const& got) {
    check_error<ha::ArgumentError>([&] { append(layers); }, {what, expected, got, "append"});
    check_error<ha::ArgumentError>([&] { copy(layers); }, {what, expected, got, "copy_sequences"});
  };
  refused({{nullptr, at + 24}, {}, {at + 48, at + 72}}, "cache's keys", "a pointer", "nullptr");
  refused({{at, at + 24}, {}, {at + 48, nullptr}}, "cache's values", "a pointer", "nullptr");
  auto* const odd = reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(at) + 2);
  refused({{odd, at + 26}, {}, {at + 50, at + 74}}, "cache's keys", "aligned to 4", "2 bytes beyond");
  refused({{at, at}, {}, {at + 48, at + 72}}, "buffers", "apart", "overlapping");
  refused({{at, at + 23}, {}, {at + 48, at + 72}}, "buffers", "apart", "overlapping");
  refused({{at, at + 24}, {}, {at + 47, at + 72}}, "buffers", "apart", "overlapping");
  REQUIRE(state.length(0) == 1);
}

TEST_CASE("a cache of slots that are gone is not the next slots', though its memory may be", "[rolling]") {
  constexpr std::int64_t dim = 4;
  std::vector<float> rows(1000);
  auto const make = [&](std::int32_t window) {
    return ha::RollingSlots(ha::PolicyTable(1, 1, ha::WindowOnly{.window = window}), 1, {});
  };
  ha::RollingSlots const small = make(2);
  ha::RollingSlots const large = make(100);
  auto const small_cache = ha::rolling(small, small.view(), rows.data(), rows.data() + 8, dim);
  ha::RollingSlotsView const reused = large.view();
  auto cache = small_cache;
  cache.form.heads = reused.heads;  // as if the memory of the first slots had become the second's
  ha::RollingState state(1);
  std::vector<ha::LayerKv<float const>> const news{{rows.data() + 500, rows.data() + 600}};
  check_error<ha::ArgumentError>(
      [&] { ha::append(reused, state, news, ha::strided_bshd(1, 1, 1, dim), std::vector<std::int32_t>{1}, cache); },
      {"cache", "these slots", "other slots", "append"});

  ha::RollingSlots from = make(3);
  ha::RollingSlots const moved = std::move(from);
  CHECK(moved.rows_total() == 3);
  CHECK(from.rows_total() == 0);
  CHECK(from.num_layers() == 0);
  CHECK(from.view().num_sequences == 0);
  CHECK(from.bytes().empty());
  check_error<ha::ArgumentError>([&] { (void)from.head(0, 0); }, {"layer", "[0, 0)", "0", "RollingSlots"});
  check_error<ha::ArgumentError>([&] { (void)from.rows_total(0); }, {"layer", "[0, 0)", "0", "RollingSlots"});
  from = make(5);
  CHECK(from.rows_total(0) == 5);
}

TEST_CASE("rolling caches refuse buffers that cannot be, and lengths that their counters cannot hold", "[rolling]") {
  ha::RollingSlots const slots(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 2, .window = 6}), 2, {.slack = 4});
  auto const view = slots.view();
  constexpr std::int64_t dim = 4;
  std::vector<float> rows(static_cast<std::size_t>(2 * slots.rows_total() * dim));
  ha::RollingState state(2);
  std::vector<float> const token(2 * dim, 1.0F);
  std::vector<ha::LayerKv<float const>> const step{{token.data(), token.data()}};
  std::vector<std::int32_t> const counts{1, 1};
  // Values begin inside the keys.
  auto const meeting = ha::rolling(slots, view, rows.data(), rows.data() + dim, dim);
  check_error<ha::ArgumentError>(
      [&] { ha::append(view, state, step, ha::strided_bshd(2, 1, 1, dim), counts, meeting); },
      {"cache's buffers", "keys apart from values", "overlapping", "append"});
  CHECK(state.length(0) == 0);
  float* const none = nullptr;
  auto const missing = ha::rolling(slots, view, none, none, dim);
  check_error<ha::ArgumentError>(
      [&] {
        ha::copy_sequences(view, state, std::vector<ha::SequenceCopy>{{0, 1}}, missing);
      },
      {"cache's keys", "a pointer", "nullptr", "copy_sequences, layer 0"});
  constexpr std::int64_t most = 2147483647 - 4;
  CHECK(slots.token_limit() == most);
  state.start(view, 0, most);
  CHECK(state.max_rollback(view, 0) == 0);
  check_error<ha::ArgumentError>([&] { state.start(view, 0, most + 1); }, {"length", "[0, 2147483643]", "", "start"});
}
