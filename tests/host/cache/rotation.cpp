// Keys turned to the positions of their slots, against rotation in double.

#include "support/cache_arena.hpp"
#include "support/errors.hpp"
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

/// A cache with numbers in [-1, 1] for keys.
template <class T, class Source>
void fill_keys(SourceCache<T, Source>& cache, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (auto& tensor : cache.keys) {
    for (T& x : tensor) x = ha::from_float<T>(uniform(random));
  }
}

/// What a key's row becomes in slot `slot`; the bits of the source where it stays.
template <class T, class Source>
bool row_turned(SourceCache<T, Source> const& cache, Rotary const& rotary, std::int32_t layer, std::int64_t b,
                std::int64_t h, std::int64_t token, std::int64_t slot, T const* got, std::int64_t got_stride) {
  std::vector<double> row;
  for (std::int64_t c = 0; c < cache.head_dim; ++c) {
    row.push_back(double(ha::to_float(cache.key(layer, b, h, token, c))));
  }
  rotary.turn(row, static_cast<double>(slot - token));
  bool right = true;
  for (std::int64_t c = 0; c < cache.head_dim; ++c) {
    T const x = got[c * got_stride];
    bool const moved = token != slot && c < static_cast<std::int64_t>(2 * rotary.frequencies.size());
    right = right && (moved ? close_to(x, row[static_cast<std::size_t>(c)]) : x == cache.key(layer, b, h, token, c));
  }
  return right;
}

template <class T, class Source>
void check_rotation(SourceCache<T, Source> const& cache, ha::Compaction<> const& plan,
                    std::vector<std::int32_t> const& lengths, Rotary const& rotary, ha::KeyRotation const& rotation) {
  KeptTokens const tokens(plan.table(), lengths);
  auto const check = [&](std::string const& name, Places const& places, auto const& make) {
    INFO(name);
    auto arena = guarded<T>(places.elements);
    HostUpload const upload;
    ha::compress(plan, ha::transfer(cache.layers(), cache.source, make(arena.data(), upload)).rotate_keys(rotation));
    // Outside the keys nothing differs from a compaction that does not rotate.
    auto expected = expected_arena(cache, tokens, places);
    bool right = true;
    tokens.for_each([&](auto l, auto b, auto h) {
      auto const s = static_cast<std::size_t>(tokens.segment(l, b, h));
      for (std::size_t i = 0; i < tokens.segments[s].size(); ++i) {
        T* const got = arena.data() + places.keys[s][i];
        right = right && row_turned(cache, rotary, static_cast<std::int32_t>(l), b, h, tokens.segments[s][i],
                                    static_cast<std::int64_t>(i), got, 1);
        std::copy(got, got + cache.head_dim, expected.data() + places.keys[s][i]);
      }
    });
    REQUIRE(right);
    REQUIRE(same_bytes(arena, expected));
  };
  Channels const channels{cache.head_dim, cache.value_dim};
  auto const k = channels.key;
  auto const v = channels.value;
  dense_arenas<T>(
      "ragged", tokens, naive_ragged(tokens), channels, 7,
      [&](T* keys, T* values) { return ha::ragged(plan, keys, values, k, v); },
      [&](auto const& layers) { return ha::ragged(plan, layers, k, v); }, check);
  paged_arena<T>(plan, tokens, channels, {.page_size = 4, .csr = true, .joined = true, .page_gap = 7}, 7, 201, check);

  // In place: the same, and everything else as it was.
  auto moved = cache;
  ha::compress_in_place(plan, moved.layers(), cache.source, rotation.evicting(1));
  auto expected = cache;
  auto const keys = ha::detail::keys_of(cache.source);
  auto const values = ha::detail::values_of(cache.source);
  bool right = true;
  tokens.for_each([&](auto l, auto b, auto h) {
    auto const layer = static_cast<std::size_t>(l);
    auto const& kept = tokens.segments[static_cast<std::size_t>(tokens.segment(l, b, h))];
    for (std::size_t i = 0; i < kept.size(); ++i) {
      auto const slot = static_cast<std::int64_t>(i);
      std::vector<T> got;
      for (std::int64_t c = 0; c < k; ++c) {
        got.push_back(moved.keys[layer][static_cast<std::size_t>(keys.offset(b, h, slot, c))]);
        expected.keys[layer][static_cast<std::size_t>(keys.offset(b, h, slot, c))] = got.back();
      }
      right = right && row_turned(cache, rotary, static_cast<std::int32_t>(l), b, h, kept[i], slot, got.data(), 1);
      for (std::int64_t c = 0; c < v; ++c) {
        expected.values[layer][static_cast<std::size_t>(values.offset(b, h, slot, c))] =
            cache.value(static_cast<std::int32_t>(l), b, h, kept[i], c);
      }
    }
  });
  REQUIRE(right);
  for (std::size_t l = 0; l < cache.keys.size(); ++l) {
    REQUIRE(same_bytes(moved.keys[l], expected.keys[l]));
    REQUIRE(same_bytes(moved.values[l], expected.values[l]));
  }
}

/// Both pairings, all and some channels, each source of angles.
template <class T, class Source>
void check_rotations(Source const& source, std::int64_t extent, Channels const& channels, unsigned seed) {
  std::vector<std::int32_t> const lengths{45, 0, 23};
  std::mt19937 random(seed);
  SourceCache<T, Source> cache(source, extent, 2, channels.key, channels.value, seed);
  fill_keys(cache, seed);
  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    for (std::int32_t const dim : {static_cast<std::int32_t>(channels.key), 6, 2}) {
      ha::PolicyTable table = random_table(2, 3, 45, random);
      table.set(0, 0, ha::SinkWindow{.sink = 4, .window = 20});
      table.set(1, 1, ha::SinkWindow{.sink = 1, .window = 40});
      ha::Compaction const plan(table, lengths);
      INFO("seed " << seed << ", rotary_dim " << dim << (pairing == ha::RotaryPairing::neox ? ", neox" : ""));
      Rotary const rotary = Rotary::of_base(pairing, dim, 10000);
      check_rotation(cache, plan, lengths, rotary, ha::KeyRotation::from_base(pairing, dim, 10000));
      auto const tables = rotary.tables(45);
      check_rotation(cache, plan, lengths, rotary,
                     ha::KeyRotation::from_table(pairing, dim, tables.cosines.data(), tables.sines.data(), 45));
      Rotary scaled{pairing, {}};
      for (std::int32_t i = 0; i < dim / 2; ++i) scaled.frequencies.push_back(2.0 / (1 + i * i) - 0.3);
      check_rotation(cache, plan, lengths, scaled, ha::KeyRotation::from_frequencies(pairing, scaled.frequencies));
    }
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
  ha::Compaction const plan(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 3, .window = 9}),
                            std::vector<std::int32_t>{length});
  Rotary const rotary = Rotary::of_base(ha::RotaryPairing::neox, 8, 10000);
  std::vector<float> keys(12 * 8);
  std::vector<float> values(keys);
  ha::compress(plan, ha::transfer(cache.layers(), cache.source, ha::ragged(plan, keys.data(), values.data(), 8))
                         .rotate_keys(ha::KeyRotation::from_base(ha::RotaryPairing::neox, 8, 10000)));
  for (std::int64_t slot = 0; slot < 12; ++slot) {
    std::int64_t const token = slot < 3 ? slot : length - 12 + slot;
    REQUIRE(row_turned(cache, rotary, 0, 0, 0, token, slot, keys.data() + slot * 8, 1));
  }
}

TEST_CASE("keys that stay keep their bits, whatever those are", "[cache]") {
  auto const check = [](auto const& specials) {
    using T = std::remove_cvref_t<decltype(specials[0])>;
    constexpr std::int64_t dim = 8;
    auto const layout = ha::strided_bhsd(1, 1, 20, dim);
    SourceCache<T, ha::StridedLayout> cache(layout, layout.required_span_size(), 1, dim, dim, 208);
    for (std::size_t i = 0; i < 4 * dim; ++i) cache.keys[0][i] = specials[(3 * i + i / 8) % specials.size()];
    ha::Compaction const plan(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 2}),
                              std::vector<std::int32_t>{20});
    auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::interleaved, dim, 10000);
    std::vector<T> keys(static_cast<std::size_t>(6 * dim));
    std::vector<T> values(keys);
    ha::compress(
        plan,
        ha::transfer(cache.layers(), layout, ha::ragged(plan, keys.data(), values.data(), dim)).rotate_keys(rotation));
    auto const sinks = [](std::vector<T> const& all) { return std::vector<T>(all.begin(), all.begin() + 4 * dim); };
    REQUIRE(same_bytes(sinks(keys), sinks(cache.keys[0])));
    auto moved = cache;
    ha::compress_in_place(plan, moved.layers(), layout, rotation.evicting(1));
    REQUIRE(same_bytes(sinks(moved.keys[0]), sinks(cache.keys[0])));
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

/// Positions as behind an image: the tokens from 8 on count on from 3, those of the second sequence from 1000.
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
  fill_keys(cache, 209);
  ha::Compaction const plan(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 2, .window = 20}), lengths);
  KeptTokens const tokens(plan.table(), lengths);
  std::vector<std::int32_t> const positions = positions_of(stride);
  Rotary const rotary = Rotary::of_base(ha::RotaryPairing::neox, dim, 10000);
  auto const tables = rotary.tables(1066);
  for (bool const by_table : {false, true}) {
    auto const plain = by_table ? ha::KeyRotation::from_table(ha::RotaryPairing::neox, dim, tables.cosines.data(),
                                                              tables.sines.data(), 1066)
                                : ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000);
    auto const rotation = plain.with_positions(positions.data(), stride);
    std::vector<float> keys(static_cast<std::size_t>(plan.kept_total() * dim));
    std::vector<float> values(keys);
    ha::compress(
        plan,
        ha::transfer(cache.layers(), layout, ha::ragged(plan, keys.data(), values.data(), dim)).rotate_keys(rotation));
    auto moved = cache;
    ha::compress_in_place(plan, moved.layers(), layout, rotation);
    bool right = true;
    std::size_t at = 0;
    tokens.for_each([&](auto, auto b, auto) {
      auto const& kept = tokens.segments[static_cast<std::size_t>(b)];
      for (std::size_t i = 0; i < kept.size(); ++i, at += dim) {
        std::vector<double> row;
        for (std::int64_t c = 0; c < dim; ++c) row.push_back(double(cache.key(0, b, 0, kept[i], c)));
        rotary.turn(row, static_cast<double>(i) - double(positions[static_cast<std::size_t>(b * stride + kept[i])]));
        for (std::size_t c = 0; c < dim; ++c) {
          right = right && close_to(keys[at + c], row[c]);
          right =
              right && moved.key(0, b, 0, static_cast<std::int64_t>(i), static_cast<std::int64_t>(c)) == keys[at + c];
          right = right && values[at + c] == cache.value(0, b, 0, kept[i], static_cast<std::int64_t>(c));
        }
      }
    });
    REQUIRE(right);
    for (std::int64_t c = 0; c < dim; ++c) REQUIRE(moved.value(0, 1, 0, 19, c) == cache.value(0, 1, 0, 19, c));
  }

  auto const before = cache;
  auto const refused = [&](ha::KeyRotation const& rotation, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>([&] { ha::compress_in_place(plan, cache.layers(), layout, rotation); }, parts);
    REQUIRE(same_bytes(cache.keys[0], before.keys[0]));
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

namespace {

/// The largest error of a logit after a window of 2,000 tokens has passed, its keys turned in place by each call.
template <class T>
float drift(std::int32_t evicted) {
  constexpr std::int32_t window = 2000;
  constexpr std::int64_t dim = 128;
  constexpr std::int64_t queries = 32;
  std::mt19937 random(211);
  std::normal_distribution<float> normal;
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000).evicting(1);
  // The same turns keep one key, which is last at first, and end with it in the first slot: one head, two tokens.
  constexpr std::int64_t heads = 16;
  std::vector<std::vector<float>> first(heads, std::vector<float>(dim));
  std::vector<float> asked(queries * dim);
  for (float& x : asked) x = normal(random);
  float worst = 0;
  for (auto& key : first) {
    for (float& x : key) x = ha::to_float(ha::from_float<T>(normal(random)));
    std::vector<T> held;
    for (float const x : key) held.push_back(ha::from_float<T>(x));
    std::int32_t turned = 0;
    for (; turned + evicted <= window; turned += evicted) {
      for (std::int32_t i = 0; i < dim / 2; ++i) {
        auto const pair = ha::rotary_pair(rotation, i);
        T& a = held[static_cast<std::size_t>(pair.a)];
        T& b = held[static_cast<std::size_t>(pair.b)];
        auto const now = ha::detail::rotate_pair(rotation, evicted, i, a, b);
        a = now.a;
        b = now.b;
      }
    }
    for (std::int32_t i = 0; i < dim / 2; ++i) {
      rotation.turn_back(turned, i, key[static_cast<std::size_t>(i)], key[static_cast<std::size_t>(i + dim / 2)]);
    }
    for (std::int64_t q = 0; q < queries; ++q) {
      float error = 0;
      for (std::int64_t c = 0; c < dim; ++c) {
        auto const at = static_cast<std::size_t>(c);
        error += asked[static_cast<std::size_t>(q * dim + c)] * (ha::to_float(held[at]) - key[at]);
      }
      worst = std::max(worst, std::abs(error) / std::sqrt(float(dim)));
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("keys of 16 bits are not turned in place for a few tokens", "[cache]") {
  // The figures of KeyRotation::evicting, of calls in place; out of place see below.
  CHECK(drift<ha::bfloat16>(1) > 1);
  auto const bounded = [](auto element, std::vector<float> const& figures) {
    std::size_t i = 0;
    for (std::int32_t const evicted : {1, 64, 500, 2000}) {
      CHECK(drift<decltype(element)>(evicted) < 1.1F * figures[i++]);
    }
  };
  bounded(ha::bfloat16{}, {2.7F, 0.046F, 0.011F, 0.0053F});
  bounded(ha::float16{}, {0.46F, 0.0038F, 0.0013F, 0.0007F});
  CHECK(drift<float>(1) < 2e-4F);

  constexpr std::int64_t dim = 8;
  auto const check = [&](auto element, std::int32_t evicted, bool refused) {
    using T = decltype(element);
    std::vector<std::int32_t> const lengths{4, 204 + evicted};
    auto const layout = ha::strided_bhsd(2, 1, 204 + evicted, dim);
    SourceCache<T, ha::StridedLayout> cache(layout, layout.required_span_size(), 1, dim, dim, 210);
    auto const before = cache;
    ha::Compaction const plan(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 200}), lengths);
    auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000);
    auto const call = [&] { ha::compress_in_place(plan, cache.layers(), layout, rotation); };
    if (!refused) {
      call();
      return;
    }
    check_error<ha::ArgumentError>(call,
                                   {"evicted tokens", "KeyRotation::evicting(1) if these", std::to_string(evicted),
                                    "compress_in_place, layer 0, sequence 1, KV head 0"});
    REQUIRE(same_bytes(cache.keys[0], before.keys[0]));
    ha::compress_in_place(plan, cache.layers(), layout, rotation.evicting(evicted));
  };
  for (std::int32_t const evicted : {1, 63}) {
    check(ha::float16{}, evicted, true);
    check(ha::bfloat16{}, evicted, true);
    check(0.0F, evicted, false);
  }
  for (std::int32_t const evicted : {0, 64, 100}) check(ha::bfloat16{}, evicted, false);
  // The fewest tokens that a device's plan says: of all heads whose tokens move, as those of a prefix do not.
  ha::PolicyTable table(1, 3, ha::SinkWindow{.sink = 4, .window = 200});
  table.set(0, 1, ha::SinkWindow{.sink = 300, .window = 0});
  table.set(0, 2, ha::WindowOnly{.window = 100});
  ha::Compaction const plan(table, std::vector<std::int32_t>{304, 217, 204});
  CHECK(plan.on_device(table.view(), nullptr).min_evicted == 13);
  CHECK(plan.on_device(table.view(), nullptr).min_evicted_segment == 3);
  CHECK(ha::Compaction(table, std::vector<std::int32_t>{304, 100}).on_device(table.view(), nullptr).min_evicted == 100);
  check_error<ha::ArgumentError>([] { (void)ha::KeyRotation().evicting(0); },
                                 {"evicted tokens", "> 0", "0", "KeyRotation"});
}

TEST_CASE("out of place, keys that turn again with each call drift as they do in place", "[cache]") {
  constexpr std::int64_t dim = 8;
  std::vector<std::int32_t> const lengths{3};
  auto const layout = ha::strided_bhsd(1, 1, 3, dim);
  SourceCache<ha::bfloat16, ha::StridedLayout> in_place(layout, layout.required_span_size(), 1, dim, dim, 212);
  ha::Compaction const plan(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 2}), lengths);
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000).evicting(1);
  auto source = in_place;
  std::vector<ha::bfloat16> keys(2 * dim);
  std::vector<ha::bfloat16> values(2 * dim);
  for (int call = 0; call < 100; ++call) {
    auto const layers = static_cast<SourceCache<ha::bfloat16, ha::StridedLayout> const&>(source).layers();
    ha::compress(plan,
                 ha::transfer(layers, layout, ha::ragged(plan, keys.data(), values.data(), dim)).rotate_keys(rotation));
    ha::compress_in_place(plan, in_place.layers(), layout, rotation);
    for (auto* const each : {&source.keys[0], &in_place.keys[0]}) {  // the next token takes the last one's place
      std::copy_n((each == &source.keys[0] ? keys.data() : each->data()), 2 * dim, each->data() + dim);
    }
  }
  REQUIRE(same_bytes(std::vector(in_place.keys[0].begin() + dim, in_place.keys[0].begin() + 3 * dim), keys));
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
  ha::Compaction const plan(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 4}), std::vector<std::int32_t>{20});
  auto keys = guarded<float>(4 * 8);
  auto values = keys;
  auto const refused_here = [&](ha::KeyRotation const& rotation, ha::ErrorDetail const& parts) {
    refused(
        [&] {
          ha::compress(plan, ha::transfer(cache.layers(), layout, ha::ragged(plan, keys.data(), values.data(), 8))
                                 .rotate_keys(rotation));
        },
        parts);
    refused([&] { ha::compress_in_place(plan, cache.layers(), layout, rotation); }, parts);
    REQUIRE(same_bytes(keys, guarded<float>(4 * 8)));
    REQUIRE(same_bytes(values, guarded<float>(4 * 8)));
    REQUIRE(same_bytes(cache.keys[0], before.keys[0]));
    REQUIRE(same_bytes(cache.values[0], before.values[0]));
  };
  refused_here(Rotation::from_base(neox, 10, 10000), {"rotary_dim", "[2, 8]", "10", "KeyRotation"});
  refused_here(Rotation{}, {"rotary_dim", "[2, 8]", "0", "KeyRotation"});
  refused_here(Rotation::from_table(neox, 8, table, table, 19),
               {"rotary table positions", "at least the longest length, 20", "19", "KeyRotation"});
}
