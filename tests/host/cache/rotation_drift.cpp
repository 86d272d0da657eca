// How far 16-bit keys drift that turn in place again and again, and the calls that are refused for it.

#include "support/cache_arena.hpp"
#include "support/errors.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

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
    ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 200}), lengths);
    auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000);
    auto const call = [&] { ha::compress_in_place(compaction, cache.layers(), layout, rotation); };
    if (!refused) {
      call();
      return;
    }
    check_error<ha::ArgumentError>(call,
                                   {"evicted tokens", "KeyRotation::evicting(1) if these", std::to_string(evicted),
                                    "compress_in_place, layer 0, sequence 1, KV head 0"});
    REQUIRE(first_difference(cache.keys[0], before.keys[0]) == "");
    ha::compress_in_place(compaction, cache.layers(), layout, rotation.evicting(evicted));
  };
  for (std::int32_t const evicted : {1, 63}) {
    check(ha::float16{}, evicted, true);
    check(ha::bfloat16{}, evicted, true);
    check(0.0F, evicted, false);
  }
  for (std::int32_t const evicted : {0, 64, 100}) check(ha::bfloat16{}, evicted, false);
  // The fewest tokens that a device's compaction says: of all heads whose tokens move, as those of a prefix do not.
  ha::PolicyTable table(1, 3, ha::SinkWindow{.sink = 4, .window = 200});
  table.set(0, 1, ha::SinkWindow{.sink = 300, .window = 0});
  table.set(0, 2, ha::WindowOnly{.window = 100});
  ha::Compaction const compaction(table, std::vector<std::int32_t>{304, 217, 204});
  CHECK(compaction.on_device(table.view(), nullptr).min_evicted == 13);
  CHECK(compaction.on_device(table.view(), nullptr).min_evicted_segment == ha::SegmentName{0, 1, 0});
  CHECK(ha::Compaction(table, std::vector<std::int32_t>{304, 100}).on_device(table.view(), nullptr).min_evicted == 100);
  check_error<ha::ArgumentError>([] { (void)ha::KeyRotation().evicting(0); },
                                 {"evicted tokens", "> 0", "0", "KeyRotation"});
}

TEST_CASE("out of place, keys that turn again with each call drift as they do in place", "[cache]") {
  constexpr std::int64_t dim = 8;
  std::vector<std::int32_t> const lengths{3};
  auto const layout = ha::strided_bhsd(1, 1, 3, dim);
  SourceCache<ha::bfloat16, ha::StridedLayout> in_place(layout, layout.required_span_size(), 1, dim, dim, 212);
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 2}), lengths);
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000).evicting(1);
  auto source = in_place;
  std::vector<ha::bfloat16> keys(2 * dim);
  std::vector<ha::bfloat16> values(2 * dim);
  for (int call = 0; call < 100; ++call) {
    auto const layers = static_cast<SourceCache<ha::bfloat16, ha::StridedLayout> const&>(source).layers();
    ha::compress(
        compaction,
        ha::transfer(layers, layout, ha::ragged(compaction, keys.data(), values.data(), dim)).rotate_keys(rotation));
    ha::compress_in_place(compaction, in_place.layers(), layout, rotation);
    for (auto* const each : {&source.keys[0], &in_place.keys[0]}) {  // the next token takes the last one's place
      std::copy_n((each == &source.keys[0] ? keys.data() : each->data()), 2 * dim, each->data() + dim);
    }
  }
  REQUIRE(first_difference(std::vector(in_place.keys[0].begin() + dim, in_place.keys[0].begin() + 3 * dim), keys) ==
          "");
}
