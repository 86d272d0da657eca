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
  for (std::int64_t c = 0; c < cache.key_channels; ++c) {
    row.push_back(double(ha::to_float(cache.key(layer, b, h, token, c))));
  }
  rotary.turn(row, static_cast<double>(slot - token));
  bool right = true;
  for (std::int64_t c = 0; c < cache.key_channels; ++c) {
    T const x = got[c * got_stride];
    bool const moved = token != slot && c < static_cast<std::int64_t>(2 * rotary.frequencies.size());
    right = right && (moved ? close_to(x, row[static_cast<std::size_t>(c)]) : x == cache.key(layer, b, h, token, c));
  }
  return right;
}

template <class T, class Source>
void check_rotation(SourceCache<T, Source> const& cache, ha::CachePlan const& plan,
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
        std::copy(got, got + cache.key_channels, expected.data() + places.keys[s][i]);
      }
    });
    REQUIRE(right);
    REQUIRE(same_bytes(arena, expected));
  };
  Channels const channels{cache.key_channels, cache.value_channels};
  auto const k = channels.key;
  auto const v = channels.value;
  dense_arenas<T>(
      "ragged", tokens, naive_ragged(tokens), channels, 7,
      [&](T* keys, T* values) { return ha::ragged(plan, keys, values, k, v); },
      [&](auto const& layers) { return ha::ragged(plan, layers, k, v); }, check);
  paged_arena<T>(plan, tokens, channels, {.page_size = 4, .csr = true, .joined = true, .page_gap = 7}, 7, 201, check);

  // In place: the same, and everything else as it was.
  auto moved = cache;
  ha::compress_in_place(plan, moved.layers(), cache.source, rotation);
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
      ha::CachePlan const plan(table, lengths);
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
  for (auto const& kind : kinds) check_rotations<T>(kind, bhds.extent(), {10, 10}, seed);
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
  ha::PagedShape const shape{.sequences = 3, .kv_heads = 3, .channels = 8, .num_pages = 36, .page_size = 8};
  auto const split_x = ha::vllm_paged_attention(ha::PageTable::dense(table.data(), 12), shape, 4);
  check_rotations<ha::float16>(split_x, std::int64_t{36} * 8 * 3 * 8, {8, 8}, 205);
}

TEST_CASE("keys come right from a billion tokens away", "[cache]") {
  constexpr std::int32_t length = 1 << 30;
  SourceCache<float, Folded> cache({}, 64 * 8, 1, 8, 8, 206);
  ha::CachePlan const plan(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 3, .window = 9}),
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
    SourceCache<T, ha::StridedLayout> cache(layout, layout.extent(), 1, dim, dim, 208);
    for (std::size_t i = 0; i < 4 * dim; ++i) cache.keys[0][i] = specials[(3 * i + i / 8) % specials.size()];
    ha::CachePlan const plan(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 2}),
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
    ha::compress_in_place(plan, moved.layers(), layout, rotation);
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
  SourceCache<float, ha::StridedLayout> cache(layout, layout.extent(), 1, 8, 8, 207);
  auto const before = cache;
  ha::CachePlan const plan(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 4}), std::vector<std::int32_t>{20});
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
