// Keys turned to the positions of their slots, against rotation in double.

#include "support/errors.hpp"
#include "support/random_cache.hpp"
#include "support/rotary.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/layout/engines.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// Notes where a key's row is not what it becomes in slot `slot`: the bits of the source where it stays.
template <class T, class Source>
void expect_turned(FirstDifference& difference, SourceCache<T, Source> const& cache, Rotary const& rotary,
                   std::int32_t layer, std::int64_t b, std::int64_t h, std::int64_t slot, std::int64_t token,
                   auto const& got) {
  std::vector<double> row;
  for (std::int64_t c = 0; c < cache.head_dim; ++c) {
    row.push_back(double(ha::to_float(cache.key(layer, b, h, token, c))));
  }
  rotary.turn(row, static_cast<double>(slot - token));
  for (std::int64_t c = 0; c < cache.head_dim; ++c) {
    T const x = got(c);
    T const source = cache.key(layer, b, h, token, c);
    bool const moved = token != slot && c < static_cast<std::int64_t>(2 * rotary.frequencies.size());
    double const turned = row[static_cast<std::size_t>(c)];
    difference.expect_that(moved ? close_to(x, turned) : x == source, double(ha::to_float(x)),
                           moved ? turned : double(ha::to_float(source)), "layer ", layer, ", sequence ", b,
                           ", KV head ", h, ", row ", slot, " (token ", token, "), channel ", c);
  }
}

template <class T, class Source>
void check_rotation(SourceCache<T, Source> const& cache, ha::Compaction<> const& compaction, Rotary const& rotary,
                    ha::KeyRotation const& rotation) {
  KeptTokens const tokens(compaction.table(), {compaction.lengths().begin(), compaction.lengths().end()});
  Channels const channels{cache.head_dim, cache.value_dim};
  auto const check = [&](std::string const& name, Places const& places, auto const& make) {
    INFO(name);
    auto arena = guarded<T>(places.elements);
    HostUpload const upload;
    ha::compress(compaction,
                 ha::transfer(cache.layers(), cache.source, make(arena.data(), upload)).rotate_keys(rotation));
    // Outside the keys nothing differs from a compaction that does not rotate.
    auto expected = expected_arena(cache, tokens, places);
    FirstDifference difference;
    tokens.for_each_row([&](auto l, auto b, auto h, auto slot, auto token) {
      auto const at = places.keys[static_cast<std::size_t>(tokens.segment(l, b, h))][static_cast<std::size_t>(slot)];
      T* const got = arena.data() + at;
      expect_turned(difference, cache, rotary, l, b, h, slot, token, [&](std::int64_t c) { return got[c]; });
      std::copy(got, got + cache.head_dim, expected.data() + at);
    });
    REQUIRE(difference.text() == "");
    REQUIRE(arena_difference(arena, expected, channels, tokens, places) == "");
  };
  ragged_arenas<T>(compaction, tokens, channels, 7, check);
  paged_arena<T>(compaction, tokens, channels, {.page_size = 4, .csr = true, .joined = true, .page_gap = 7}, 7, 201,
                 check);

  // In place: the same, and everything else as it was.
  auto moved = cache;
  ha::compress_in_place(compaction, moved.layers(), cache.source, rotation.evicting(1));
  auto expected = compacted_in_place(cache, tokens);
  FirstDifference difference;
  tokens.for_each_row([&](auto l, auto b, auto h, auto slot, auto token) {
    auto const got = [&](std::int64_t c) { return moved.key(l, b, h, slot, c); };
    expect_turned(difference, cache, rotary, l, b, h, slot, token, got);
    for (std::int64_t c = 0; c < cache.head_dim; ++c) expected.key(l, b, h, slot, c) = got(c);
  });
  REQUIRE(difference.text() == "");
  REQUIRE(first_difference(moved, expected) == "");
}

/// Each source of angles.
template <class T, class Source>
void check_angles(SourceCache<T, Source> const& cache, ha::Compaction<> const& compaction, ha::RotaryPairing pairing,
                  std::int32_t dim) {
  INFO("rotary_dim " << dim << (pairing == ha::RotaryPairing::neox ? ", neox" : ""));
  Rotary const rotary = Rotary::of_base(pairing, dim, 10000);
  check_rotation(cache, compaction, rotary, ha::KeyRotation::from_base(pairing, dim, 10000));
  check_rotation(cache, compaction, rotary, ha::KeyRotation::from_frequencies(pairing, rotary.frequencies));
  std::int64_t const longest = compaction.max_length();
  auto const tables = rotary.tables(longest);
  check_rotation(cache, compaction, rotary,
                 ha::KeyRotation::from_table(pairing, dim, tables.cosines.data(), tables.sines.data(), longest));
  Rotary scaled{pairing, {}};
  for (std::int32_t i = 0; i < dim / 2; ++i) scaled.frequencies.push_back(2.0 / (1 + i * i) - 0.3);
  check_rotation(cache, compaction, scaled, ha::KeyRotation::from_frequencies(pairing, scaled.frequencies));
}

/// Both pairings, all and some channels.
template <class T, class Source>
void check_rotations(Source const& source, std::int64_t extent, Channels const& channels, unsigned seed) {
  INFO("seed " << seed);
  std::vector<std::int32_t> const lengths{45, 0, 23};
  std::mt19937 random(seed);
  SourceCache<T, Source> cache(source, extent, 2, channels.key, channels.value, seed);
  cache.fill_keys(seed);
  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    for (std::int32_t const dim : {static_cast<std::int32_t>(channels.key), 6, 2}) {
      ha::PolicyTable table = random_table(2, 3, 45, random);
      table.set(0, 0, ha::SinkWindow{.sink = 4, .window = 20});
      table.set(1, 1, ha::SinkWindow{.sink = 1, .window = 40});
      check_angles(cache, ha::Compaction(table, lengths), pairing, dim);
    }
  }
}

/// A window that has moved by thousands of tokens.
template <class T>
void check_far() {
  auto const layout = ha::strided_bhsd(1, 1, 3000, 12);
  SourceCache<T, ha::StridedLayout> cache(layout, layout.required_span_size(), 1, 12, 12, 15);
  cache.fill_keys(15);
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 20}),
                                  std::vector<std::int32_t>{3000});
  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    for (std::int32_t const dim : {12, 8}) check_angles(cache, compaction, pairing, dim);
  }
}

template <class T>
void check_layouts(unsigned seed) {
  auto const bhds = ha::strided_bhds(3, 3, 10, 45);
  auto const bshd = ha::strided_bshd(3, 45, 3, 10);
  ha::KvLayouts<ha::StridedLayout, ha::StridedLayout> const kinds[] = {{bshd, bhds}, {bhds, bshd}};
  for (auto const& kind : kinds) check_rotations<T>(kind, bhds.required_span_size(), {10, 10}, seed);
}

/// A sequence of any length whose tokens all lie in 64 places.
struct Folded {
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t, std::int64_t, std::int64_t t, std::int64_t c) const {
    return t % 64 * 8 + c;
  }
  [[nodiscard]] std::int64_t channel_run() const { return 8; }
};

}  // namespace

TEST_CASE("float keys turn within rounding of the definition", "[cache]") { check_layouts<float>(202); }
TEST_CASE("float16 keys turn within rounding of the definition", "[cache]") { check_layouts<ha::float16>(203); }
TEST_CASE("bfloat16 keys turn within rounding of the definition", "[cache]") { check_layouts<ha::bfloat16>(204); }

TEST_CASE("keys turn to consecutive positions", "[cache]") {
  check_far<float>();
  check_far<ha::float16>();
  check_far<ha::bfloat16>();
}

TEST_CASE("keys turn in pages, too", "[cache]") {
  std::vector<std::int32_t> table(3 * 12);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>((5 * i + 3) % table.size());
  ha::PagedShape const shape{.num_sequences = 3, .num_kv_heads = 3, .channels = 8, .num_pages = 36, .page_size = 8};
  auto const split_x = ha::vllm_paged_attention(ha::PageTable::dense(table.data(), 12), shape, 4);
  check_rotations<ha::float16>(split_x, std::int64_t{36} * 8 * 3 * 8, {8, 8}, 205);
}

TEST_CASE("keys come right from a billion tokens away", "[cache]") {
  constexpr std::int32_t length = 1 << 30;
  SourceCache<float, Folded> cache({}, 64 * 8, 1, 8, 8, 206);
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 3, .window = 9}),
                                  std::vector<std::int32_t>{length});
  Rotary const rotary = Rotary::of_base(ha::RotaryPairing::neox, 8, 10000);
  std::vector<float> keys(12 * 8);
  std::vector<float> values(keys);
  ha::compress(compaction,
               ha::transfer(cache.layers(), cache.source, ha::ragged(compaction, keys.data(), values.data(), 8))
                   .rotate_keys(ha::KeyRotation::from_base(ha::RotaryPairing::neox, 8, 10000)));
  FirstDifference difference;
  for (std::int64_t slot = 0; slot < 12; ++slot) {
    std::int64_t const token = slot < 3 ? slot : length - 12 + slot;
    expect_turned(difference, cache, rotary, 0, 0, 0, slot, token,
                  [&](std::int64_t c) { return keys[static_cast<std::size_t>(slot * 8 + c)]; });
  }
  REQUIRE(difference.text() == "");
}

TEST_CASE("keys that stay keep their bits, whatever those are", "[cache]") {
  auto const check = [](auto const& specials) {
    using T = std::remove_cvref_t<decltype(specials[0])>;
    constexpr std::int64_t dim = 8;
    auto const layout = ha::strided_bhsd(1, 1, 20, dim);
    SourceCache<T, ha::StridedLayout> cache(layout, layout.required_span_size(), 1, dim, dim, 208);
    for (std::size_t i = 0; i < 4 * dim; ++i) cache.keys[0][i] = specials[(3 * i + i / 8) % specials.size()];
    ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 2}),
                                    std::vector<std::int32_t>{20});
    auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::interleaved, dim, 10000);
    std::vector<T> keys(static_cast<std::size_t>(6 * dim));
    std::vector<T> values(keys);
    ha::compress(compaction,
                 ha::transfer(cache.layers(), layout, ha::ragged(compaction, keys.data(), values.data(), dim))
                     .rotate_keys(rotation));
    auto const sinks = [](std::vector<T> const& all) { return std::vector<T>(all.begin(), all.begin() + 4 * dim); };
    REQUIRE(first_difference(sinks(keys), sinks(cache.keys[0])) == "");
    auto moved = cache;
    ha::compress_in_place(compaction, moved.layers(), layout, rotation.evicting(1));
    REQUIRE(first_difference(sinks(moved.keys[0]), sinks(cache.keys[0])) == "");
  };
  // Zeros of both signs, infinities, the smallest numbers, quiet and signalling NaNs with payloads.
  std::vector<float> floats;
  for (std::uint32_t const bits : {0U, 0x80000000U, 0x7f800000U, 0xff800000U, 1U, 0x7fc12345U, 0xffa00001U}) {
    floats.push_back(ha::detail::bits_as<float>(bits));
  }
  check(floats);
  check(std::vector<ha::float16>{{0}, {0x8000}, {0x7c00}, {0xfc00}, {1}, {0x7e12}, {0xfd01}});
  check(std::vector<ha::bfloat16>{{0}, {0x8000}, {0x7f80}, {0xff80}, {1}, {0x7fd2}, {0xffa1}});
}

namespace {

/// Positions as after an image: the tokens from 8 on count on from 3, those of the second sequence from 1000.
std::vector<std::int32_t> positions_of(std::int64_t stride) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(2 * stride));
  for (std::int64_t t = 0; t < stride; ++t) {
    positions[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t < 8 ? t : t - 5);
    positions[static_cast<std::size_t>(stride + t)] = static_cast<std::int32_t>(1000 + 2 * t);
  }
  return positions;
}

}  // namespace

TEST_CASE("keys that were rotated for other positions than their places turn from there", "[cache]") {
  constexpr std::int64_t dim = 8;
  constexpr std::int64_t stride = 33;
  std::vector<std::int32_t> const lengths{30, 20};
  auto const layout = ha::strided_bhsd(2, 1, 30, dim);
  SourceCache<float, ha::StridedLayout> cache(layout, layout.required_span_size(), 1, dim, dim, 209);
  cache.fill_keys(209);
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 2, .window = 20}), lengths);
  KeptTokens const tokens(compaction.table(), lengths);
  std::vector<std::int32_t> const positions = positions_of(stride);
  Rotary const rotary = Rotary::of_base(ha::RotaryPairing::neox, dim, 10000);
  auto const tables = rotary.tables(1066);
  for (bool const by_table : {false, true}) {
    auto const plain = by_table ? ha::KeyRotation::from_table(ha::RotaryPairing::neox, dim, tables.cosines.data(),
                                                              tables.sines.data(), 1066)
                                : ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000);
    auto const rotation = plain.with_positions(positions.data(), stride);
    std::vector<float> keys(static_cast<std::size_t>(compaction.kept_total() * dim));
    std::vector<float> values(keys);
    ha::compress(compaction,
                 ha::transfer(cache.layers(), layout, ha::ragged(compaction, keys.data(), values.data(), dim))
                     .rotate_keys(rotation));
    auto moved = cache;
    ha::compress_in_place(compaction, moved.layers(), layout, rotation);
    FirstDifference difference;
    std::size_t at = 0;
    tokens.for_each_row([&](auto, auto b, auto, auto slot, auto token) {
      std::vector<double> row;
      for (std::int64_t c = 0; c < dim; ++c) row.push_back(double(cache.key(0, b, 0, token, c)));
      rotary.turn(row, static_cast<double>(slot) - double(positions[static_cast<std::size_t>(b * stride + token)]));
      for (std::int64_t c = 0; c < dim; ++c, ++at) {
        double const turned = row[static_cast<std::size_t>(c)];
        difference.expect_that(close_to(keys[at], turned), keys[at], turned, "key element ", at);
        difference.expect(moved.key(0, b, 0, slot, c), keys[at], "in place, key element ", at);
        difference.expect(values[at], cache.value(0, b, 0, token, c), "value element ", at);
      }
    });
    REQUIRE(difference.text() == "");
    for (std::int64_t c = 0; c < dim; ++c) REQUIRE(moved.value(0, 1, 0, 19, c) == cache.value(0, 1, 0, 19, c));
  }

  auto const before = cache;
  auto const refused = [&](ha::KeyRotation const& rotation, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>([&] { ha::compress_in_place(compaction, cache.layers(), layout, rotation); }, parts);
    REQUIRE(first_difference(cache.keys[0], before.keys[0]) == "");
  };
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000);
  refused(rotation.with_positions(positions.data(), 29), {"positions' stride", "longest length, 30", "29", ""});
  auto wrong = positions;
  wrong[stride + 19] = -1;
  refused(rotation.with_positions(wrong.data(), stride), {"position of a key", "[0, ", "-1", "sequence 1, token 19"});
  check_error<ha::ArgumentError>([&] { ha::validate_tables(rotation.with_positions(wrong.data(), stride), lengths); },
                                 {"position of a key", "[0, ", "-1", "sequence 1, token 19"});
  auto const short_table =
      ha::KeyRotation::from_table(ha::RotaryPairing::neox, dim, tables.cosines.data(), tables.sines.data(), 1038);
  refused(short_table.with_positions(positions.data(), stride),
          {"position of a key", "[0, 1038)", "1038", "sequence 1, token 19"});
  auto const far = rotation.with_positions(positions.data(), std::int64_t{1} << 61);
  refused(far, {"elements of a tensor", "at most", " * 2305843009213693952 * 4", "KeyRotation::with_positions"});
  check_error<ha::ArgumentError>([&] { ha::validate_tables(far, lengths); },
                                 {"elements of a tensor", "at most", " * 4", "KeyRotation::with_positions"});
  check_error<ha::ArgumentError>([&] { (void)rotation.with_positions(nullptr, 4); },
                                 {"positions", "a pointer", "nullptr", "KeyRotation"});
}

TEST_CASE("turning there and back is no change but rounding", "[cache]") {
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::interleaved, 64, 500000);
  for (std::int64_t const distance : {1, 100, 32767, 131071, 10000000}) {
    for (std::int32_t i = 0; i < 32; ++i) {
      float a = 0.75F;
      float b = -0.5F;
      rotation.turn_back(distance, i, a, b);
      REQUIRE(std::abs(a * a + b * b - 0.8125F) < 1e-6F);
      rotation.turn_back(-distance, i, a, b);
      REQUIRE(std::abs(a - 0.75F) < 2e-6F);
      REQUIRE(std::abs(b + 0.5F) < 2e-6F);
    }
  }
}

TEST_CASE("rotations that make no sense are named", "[cache]") {
  using Rotation = ha::KeyRotation;
  constexpr auto neox = ha::RotaryPairing::neox;
  auto const refused = [](auto const& call, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(call, parts);
  };
  for (std::int32_t const dim : {-2, 0, 1, 7, 513, 514}) {
    refused([&] { (void)Rotation::from_base(neox, dim, 10000); },
            {"rotary_dim", "even, in (0, 512]", std::to_string(dim), "KeyRotation"});
  }
  REQUIRE(Rotation::from_base(neox, 512, 10000).rotary_dim() == 512);
  for (double const base : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    refused([&] { (void)Rotation::from_base(neox, 8, base); }, {"rotary base", "> 0", "", "KeyRotation"});
  }
  refused([&] { (void)Rotation::from_frequencies(neox, {}); }, {"rotary_dim", "even", "0", "KeyRotation"});
  refused([&] { (void)Rotation::from_frequencies(neox, std::vector<double>(257, 1.0)); },
          {"rotary_dim", "512", "514", "KeyRotation"});
  // So many that twice their number is 8 in 32 bits: not one of them is read.
  double const one = 1.0;
  refused([&] { (void)Rotation::from_frequencies(neox, std::span<double const>(&one, (std::size_t{1} << 31) + 4)); },
          {"rotary_dim", "512", "4294967304", "KeyRotation"});
  for (double const frequency : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    refused(
        [&] {
          (void)Rotation::from_frequencies(neox, std::vector<double>{1.0, frequency});
        },
        {"rotary frequency", "a finite number", "", "KeyRotation"});
  }
  float const table[8] = {};
  refused([&] { (void)Rotation::from_table(neox, 8, nullptr, table, 2); },
          {"rotary tables", "two pointers", "nullptr", "KeyRotation"});
  refused([&] { (void)Rotation::from_table(neox, 8, table, nullptr, 2); },
          {"rotary tables", "two pointers", "nullptr", "KeyRotation"});
  refused([&] { (void)Rotation::from_table(neox, 8, table, table, 0); },
          {"rotary table positions", "> 0", "0", "KeyRotation"});
  refused([&] { (void)Rotation::from_table(neox, 9, table, table, 2); }, {"rotary_dim", "even", "9", "KeyRotation"});

  // What only the cache shows to be wrong: nothing is written.
  auto const layout = ha::strided_bhsd(1, 1, 20, 8);
  SourceCache<float, ha::StridedLayout> cache(layout, layout.required_span_size(), 1, 8, 8, 207);
  auto const before = cache;
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 4}), std::vector<std::int32_t>{20});
  auto keys = guarded<float>(4 * 8);
  auto values = keys;
  auto const refused_here = [&](ha::KeyRotation const& rotation, ha::ErrorDetail const& parts) {
    refused(
        [&] {
          ha::compress(compaction,
                       ha::transfer(cache.layers(), layout, ha::ragged(compaction, keys.data(), values.data(), 8))
                           .rotate_keys(rotation));
        },
        parts);
    refused([&] { ha::compress_in_place(compaction, cache.layers(), layout, rotation); }, parts);
    REQUIRE(first_difference(keys, guarded<float>(4 * 8)) == "");
    REQUIRE(first_difference(values, guarded<float>(4 * 8)) == "");
    REQUIRE(first_difference(cache.keys[0], before.keys[0]) == "");
    REQUIRE(first_difference(cache.values[0], before.values[0]) == "");
  };
  refused_here(Rotation::from_base(neox, 10, 10000), {"rotary_dim", "[2, 8]", "10", "KeyRotation"});
  refused_here(Rotation{}, {"rotary_dim", "[2, 8]", "0", "KeyRotation"});
  refused_here(Rotation::from_table(neox, 8, table, table, 19),
               {"rotary table positions", "at least the longest length, 20", "19", "KeyRotation"});
}
