// Every form of cache from random tensors, and from the engines' layouts, whole buffers compared with plain loops.

#include "support/host_forms.hpp"

#include <headaware/layout/strided.hpp>

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

template <class T>
void check_random(unsigned seed) {
  std::mt19937 random(seed);
  RandomBounds const bounds{.heads = 5, .widths = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17, 20}};
  for_random_caches<T>(seed, 25, bounds, random, [&](auto const& cache, auto const& table, auto const& lengths) {
    check_host_forms(cache, ha::Compaction(table, lengths), lengths, random() % 2 == 0 ? 7 : 16, seed);
  });
}

}  // namespace

TEST_CASE("any strides, one-byte elements", "[cache]") { check_random<std::uint8_t>(101); }
TEST_CASE("any strides, two-byte elements", "[cache]") { check_random<ha::float16>(102); }
TEST_CASE("any strides, four-byte elements", "[cache]") { check_random<float>(103); }
TEST_CASE("any strides, pairs of four-bit elements", "[cache]") { check_random<ha::int4x2>(104); }

TEST_CASE("lengths at the edges of sinks and windows", "[cache]") {
  std::vector<ha::AnyPolicy<>> const policies{
      ha::SinkWindow{.sink = 4, .window = 9}, ha::SinkWindow{.sink = 0, .window = 13},
      ha::SinkWindow{.sink = 13, .window = 0}, ha::WindowOnly{.window = 9}, ha::Full{}};
  ha::PolicyTable table(2, 5);
  for (std::int32_t h = 0; h < 5; ++h) {
    table.set(0, h, policies[static_cast<std::size_t>(h)]);
    table.set(1, h, policies[static_cast<std::size_t>(4 - h)]);
  }
  std::vector<std::int32_t> const edges{0, 1, 2, 3, 4, 5, 8, 9, 10, 12, 13, 14, 22, 23, 300};
  for (std::size_t i = 0; i < edges.size(); ++i) {
    std::vector<std::int32_t> const lengths{edges[i], edges[edges.size() - 1 - i], edges[(i * 7) % edges.size()]};
    INFO("lengths " << lengths[0] << ", " << lengths[1] << ", " << lengths[2]);
    auto const bhsd = ha::strided_bhsd(3, 5, 300, 6);
    Strided const source{bhsd, ha::strided_bhds(3, 5, 4, 300)};
    SourceCache<std::uint8_t, Strided> const cache(source, bhsd.required_span_size(), 2, 6, 4, 105);
    check_host_forms(cache, ha::Compaction(table, lengths), lengths, 7, 105);
  }
}

TEST_CASE("a tensor without a batch, layers left out of compression", "[cache]") {
  std::vector<std::int32_t> const lengths{50};
  auto const shd = ha::strided_shd(50, 3, 8);
  Strided const source{shd, shd};
  SourceCache<ha::float16, Strided> const cache(source, shd.required_span_size(), 4, 8, 8, 106);
  ha::PolicyTable const table(4, 3, ha::SinkWindow{.sink = 2, .window = 6});
  std::vector<std::int32_t> const skipped{0, 3};
  ha::Compaction const compaction(table.skip_layers(skipped), lengths);
  REQUIRE(compaction.kept_total() == 2 * 3 * 50 + 2 * 3 * 8);
  check_host_forms(cache, compaction, lengths, 16, 106);
}

TEST_CASE("keep-lists in a table of policies serve all sequences", "[cache]") {
  std::vector<std::int32_t> const lengths{30, 64, 30};
  std::vector<std::int32_t> const some{0, 2, 3, 11, 29};
  std::vector<std::int32_t> all(30);
  std::iota(all.begin(), all.end(), 0);
  ha::PolicyTable table(2, 3, ha::SinkWindow{.sink = 1, .window = 4});
  table.set(0, 0, ha::KeepList{some.data(), 5});
  table.set(1, 2, ha::KeepList{all.data(), 30});
  table.set(1, 1, ha::KeepList{some.data(), 0});
  auto const bhsd = ha::strided_bhsd(3, 3, 64, 5);
  Strided const source{bhsd, bhsd};
  SourceCache<std::uint8_t, Strided> const cache(source, bhsd.required_span_size(), 2, 5, 5, 107);
  check_host_forms(cache, ha::Compaction(table, lengths), lengths, 7, 107);
}

TEST_CASE("segments longer than a thread's share, in every order of dimensions", "[cache]") {
  constexpr std::int32_t tokens = 9000;
  std::vector<std::int32_t> const lengths{tokens};
  ha::PolicyTable table(1, 3, ha::SinkWindow{.sink = 3, .window = 8000});
  table.set(0, 1, ha::WindowOnly{.window = 5});
  ha::Compaction const compaction(table, lengths);
  auto const bhsd = ha::strided_bhsd(1, 3, tokens, 32);
  auto const bshd = ha::strided_bshd(1, tokens, 3, 32);
  auto const bhds = ha::strided_bhds(1, 3, 32, tokens);
  for (Strided const& source : {Strided{bhsd, bshd}, Strided{bshd, bhsd}, Strided{bhds, bshd}, Strided{bshd, bhds}}) {
    SourceCache<std::uint8_t, Strided> const cache(source, bhsd.required_span_size(), 1, 32, 32, 108);
    check_host_ragged(cache, compaction, lengths, 7);
  }
}

TEST_CASE("stretches that go past the CPU's caches begin and end anywhere", "[cache]") {
  // More than 4 MiB in stretches of more than 2 KiB, to buffers at every kind of address.
  std::vector<std::int32_t> const lengths{60000};
  auto const bhsd = ha::strided_bhsd(1, 3, 60000, 19);
  Strided const source{bhsd, bhsd};
  SourceCache<std::uint8_t, Strided> const cache(source, bhsd.required_span_size(), 1, 19, 19, 109);
  ha::PolicyTable table(1, 3, ha::SinkWindow{.sink = 5, .window = 59990});
  table.set(0, 1, ha::WindowOnly{.window = 30001});
  ha::Compaction const compaction(table, lengths);
  REQUIRE(compaction.bytes_held(19, 1) > (4 << 20));
  for (std::int64_t const gap : {1, 15, 16, 63, 64, 65}) {
    INFO("gap " << gap);
    check_host_ragged(cache, compaction, lengths, gap);
  }
}

TEST_CASE("nothing kept, no sequences, no layers", "[cache]") {
  auto const check = [](ha::PolicyTable const& table, std::vector<std::int32_t> const& lengths) {
    auto const bhsd =
        ha::strided_bhsd(static_cast<std::int64_t>(lengths.size()), table.num_kv_heads(), lengths.empty() ? 0 : 20, 4);
    Strided const source{bhsd, bhsd};
    SourceCache<std::uint8_t, Strided> const cache(source, bhsd.required_span_size(), table.num_layers(), 4, 4, 110);
    check_host_forms(cache, ha::Compaction(table, lengths), lengths, 7, 110);
  };
  check(ha::PolicyTable(2, 3, ha::Full{}), {});
  check(ha::PolicyTable(2, 3, ha::Full{}), {0, 0});
  check(ha::PolicyTable(2, 3, ha::Prune{}), {20, 3});
  check(ha::PolicyTable(2, 3, ha::WindowOnly{.window = 0}), {20});
  check(ha::PolicyTable(), {});
}
