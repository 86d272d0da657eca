// Every form of cache on the device from random tensors, whole buffers compared with plain loops.

#include "support/device_arena.cuh"

#include <cstdint>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

template <class T>
void check_random(unsigned seed, int cases) {
  std::mt19937 random(seed);
  // Widths around a warp's, and those that take wide accesses.
  RandomBounds const bounds{.tokens = 90, .widths = {1, 2, 3, 8, 16, 24, 31, 32, 33, 40}};
  for_random_caches<T>(seed, cases, bounds, random, [&](auto const& cache, auto const& table, auto const& lengths) {
    DeviceTable const d_table(table);
    std::int64_t const gap = random() % 2 == 0 ? 7 : 16;
    check_device_forms(cache, cache.source, ha::Compaction(table, lengths), KeptTokens(table, lengths), d_table.view(),
                       gap, seed, random() % 3);
  });
}

}  // namespace

TEST_CASE("on the device any strides, one-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_random<std::uint8_t>(501, 8);
}
TEST_CASE("on the device any strides, two-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_random<ha::float16>(502, 8);
}
TEST_CASE("on the device any strides, four-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_random<float>(503, 8);
}
TEST_CASE("on the device any strides, eight-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_random<std::uint64_t>(504, 8);
}

TEST_CASE("on the device nothing kept, no sequences, one layer and the most layers", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  auto const check = [](ha::PolicyTable const& table, std::vector<std::int32_t> const& lengths) {
    auto const bhsd =
        ha::strided_bhsd(static_cast<std::int64_t>(lengths.size()), table.num_kv_heads(), lengths.empty() ? 0 : 20, 4);
    Strided const source{bhsd, bhsd};
    SourceCache<std::uint8_t, Strided> const cache(source, bhsd.required_span_size(), table.num_layers(), 4, 4, 505);
    DeviceTable const d_table(table);
    check_device_forms(cache, source, ha::Compaction(table, lengths), KeptTokens(table, lengths), d_table.view(), 7,
                       505);
  };
  check(ha::PolicyTable(2, 3, ha::Full{}), {});
  check(ha::PolicyTable(2, 3, ha::Full{}), {0, 0});
  check(ha::PolicyTable(2, 3, ha::Prune{}), {20, 3});
  check(ha::PolicyTable(256, 1, ha::WindowOnly{.window = 2}), {20});
}

TEST_CASE("on the device keep-lists in a table serve all sequences", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{30, 64};
  std::vector<std::int32_t> const tokens{0, 2, 3, 11, 29};
  DeviceVector<std::int32_t> const d_tokens(tokens);
  // The lists are on the device alone, and the host has their counts.
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 1, .window = 40});
  ha::PolicyTable host_table = table;
  table.set(0, 1, ha::KeepList{d_tokens.data(), 5});
  table.set(1, 0, ha::KeepList{d_tokens.data() + 1, 3});
  host_table.set(0, 1, ha::KeepList{tokens.data(), 5});
  host_table.set(1, 0, ha::KeepList{tokens.data() + 1, 3});
  auto const bhsd = ha::strided_bhsd(2, 2, 64, 8);
  Strided const source{bhsd, bhsd};
  SourceCache<std::uint8_t, Strided> const cache(source, bhsd.required_span_size(), 2, 8, 8, 506);
  DeviceTable const d_table(table);
  check_device_forms(cache, source, ha::Compaction(table, lengths), KeptTokens(host_table, lengths), d_table.view(), 16,
                     506);
}
