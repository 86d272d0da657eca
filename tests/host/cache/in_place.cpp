// Compaction in place: whole tensors compared, so that nothing but the moved tokens may change.

#include "support/errors.hpp"
#include "support/random_cache.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/layout/engines.hpp>
#include <headaware/policy/with_keep_lists.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

template <class T, class Source, class Compaction>
void check_in_place(SourceCache<T, Source> const& before, Compaction const& compaction,
                    std::vector<std::int32_t> const& lengths) {
  auto after = before;
  ha::compress_in_place(compaction, after.layers(), before.source);
  REQUIRE(first_difference(after, compacted_in_place(before, KeptTokens(compaction.table(), lengths))) == "");
}

template <class T>
void check_random(unsigned seed) {
  std::mt19937 random(seed);
  for_random_caches<T>(seed, 60, {}, random, [](auto const& cache, auto const& table, auto const& lengths) {
    check_in_place(cache, ha::Compaction(table, lengths), lengths);
  });
}

}  // namespace

TEST_CASE("in place, any strides", "[cache]") {
  check_random<std::uint8_t>(301);
  check_random<ha::float16>(302);
  check_random<float>(303);
}

TEST_CASE("in place, windows that overlap where they came from", "[cache]") {
  std::vector<std::int32_t> const lengths{200};
  for (std::int32_t const window : {1, 2, 99, 100, 101, 150, 197, 198, 199}) {
    for (std::int32_t const sink : {0, 1, 7}) {
      INFO("sink " << sink << ", window " << window);
      ha::PolicyTable const table(1, 2, ha::SinkWindow{.sink = sink, .window = window});
      for (auto const& layout :
           {ha::strided_bhsd(1, 2, 200, 3), ha::strided_bshd(1, 200, 2, 3), ha::strided_bhds(1, 2, 3, 200)}) {
        SourceCache<std::uint8_t, Strided> const cache({layout, layout}, layout.required_span_size(), 1, 3, 3, 304);
        check_in_place(cache, ha::Compaction(table, lengths), lengths);
      }
    }
  }
}

TEST_CASE("in place, pages in any order and keep-lists", "[cache]") {
  constexpr unsigned seed = 305;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::vector<std::int32_t> const lengths{61, 0, 80};
  std::vector<std::int32_t> block_table(3 * 20);
  std::iota(block_table.begin(), block_table.end(), 0);
  for (int i = 0; i < 20; ++i) {
    std::shuffle(block_table.begin(), block_table.end(), random);
    ha::PagedShape const shape{.num_sequences = 3, .num_kv_heads = 2, .channels = 8, .num_pages = 60, .page_size = 4};
    auto const pages = ha::PageTable::dense(block_table.data(), 20);
    std::int64_t const elements = std::int64_t{60} * 4 * 2 * 8;
    std::vector<std::vector<std::int32_t>> entries(12);
    std::vector<ha::KeepList> lists(12);
    for (std::size_t s = 0; s < lists.size(); ++s) {
      if (random() % 4 == 0) continue;
      for (std::int32_t t = 0; t < lengths[s / 2 % 3]; ++t) {
        if (random() % 5 != 0) entries[s].push_back(t);
      }
      entries[s].reserve(1);
      lists[s] = {entries[s].data(), static_cast<std::int64_t>(entries[s].size())};
    }
    ha::PolicyTable const table = random_table(2, 2, 80, random);
    ha::Compaction const compaction(ha::WithKeepLists(table.view(), lists.data(), 3), lengths);
    auto const joined = ha::flashinfer_joined(pages, shape, i % 2 == 0 ? ha::PageOrder::nhd : ha::PageOrder::hnd);
    check_in_place(
        SourceCache<std::uint16_t, std::remove_const_t<decltype(joined)>>(joined, 2 * elements, 2, 8, 8, seed),
        compaction, lengths);
    auto const split_x = ha::vllm_paged_attention(pages, shape, 4);
    check_in_place(SourceCache<std::uint16_t, std::remove_const_t<decltype(split_x)>>(split_x, elements, 2, 8, 8, seed),
                   compaction, lengths);
  }
}

TEST_CASE("keys and values in one tensor are compacted in place, each in its plane", "[cache]") {
  std::vector<std::int32_t> const lengths{21};
  std::vector<std::int32_t> const block_table{3, 0, 4, 1, 5, 2};
  ha::PagedShape const shape{.num_sequences = 1, .num_kv_heads = 2, .channels = 3, .num_pages = 6, .page_size = 4};
  auto const source = ha::vllm_flash(ha::PageTable::dense(block_table.data(), 6), shape);
  std::vector<std::uint16_t> before(2 * 6 * 4 * 2 * 3);
  std::iota(before.begin(), before.end(), std::uint16_t{1});
  auto after = before;
  ha::Compaction const compaction(ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 2, .window = 6}), lengths);
  ha::compress_in_place(compaction, std::vector<ha::LayerKv<std::uint16_t>>{{after.data(), after.data()}}, source);
  auto expected = before;
  // [2, blocks, block, heads, channels]: tokens 15 … 20 go to 2 … 7.
  auto const at = [&](std::size_t plane, std::size_t token) {
    return ((plane * 6 + static_cast<std::size_t>(block_table[token / 4])) * 4 + token % 4) * 6;
  };
  for (std::size_t plane = 0; plane < 2; ++plane) {
    for (std::size_t i = 0; i < 6; ++i) {
      for (std::size_t c = 0; c < 6; ++c) expected[at(plane, 2 + i) + c] = before[at(plane, 15 + i) + c];
    }
  }
  REQUIRE(after == expected);
  REQUIRE(compaction.pages_needed(0, 4) == 2);
}

TEST_CASE("in place, bad input is named and nothing moves", "[cache]") {
  auto const layout = ha::strided_bhsd(2, 3, 20, 4);
  SourceCache<float, ha::StridedLayout> cache(layout, layout.required_span_size(), 2, 4, 4, 306);
  auto const before = cache;
  std::vector<std::int32_t> const lengths{20, 12};
  ha::Compaction const compaction(ha::PolicyTable(2, 3, ha::WindowOnly{.window = 4}), lengths);
  auto const layers = cache.layers();
  auto const refused = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(call, parts);
    REQUIRE(first_difference(cache, before) == "");
  };
  auto const with = [&](auto const& change) {
    auto changed = layers;
    change(changed);
    return [&compaction, &layout, changed] { ha::compress_in_place(compaction, changed, layout); };
  };
  refused(with([](auto& l) { l.pop_back(); }), {"layers", "2", "1", "compress_in_place"});
  refused(with([](auto& l) { l.push_back(l[0]); }), {"layers", "2", "3", "compress_in_place"});
  refused(with([](auto& l) { l[1].keys = nullptr; }), {"keys", "a pointer", "nullptr", "compress_in_place, layer 1"});
  refused(with([](auto& l) { l[0].values = nullptr; }), {"values", "a pointer", "nullptr", "layer 0"});
  refused(with([](auto& l) { l[1].values = reinterpret_cast<float*>(reinterpret_cast<char*>(l[1].values) + 2); }),
          {"values", "aligned to 4 bytes", "one 2 bytes beyond", "layer 1"});
  auto const lying = [&](ha::StridedLayout const& other) {
    return [&, other] { ha::compress_in_place(compaction, layers, other); };
  };
  refused(lying(ha::strided_bhsd(1, 3, 20, 4)), {"source sequences", "2", "1", "compress_in_place, keys"});
  refused(lying(ha::strided_bhsd(2, 6, 10, 4)), {"source KV heads", "3", "6", "compress_in_place, keys"});
  refused(lying(ha::strided_bhsd(2, 3, 19, 4)), {"source tokens", "20", "19", "compress_in_place, keys"});
  refused(
      [&] {
        ha::compress_in_place(compaction, layers, Strided{layout, ha::strided_bhsd(2, 3, 19, 4)});
      },
      {"source tokens", "20", "19", "compress_in_place, values"});
  std::vector<std::int32_t> const tokens{0, 7, 6};
  std::vector<ha::KeepList> lists(12);
  lists[11] = {tokens.data(), 3};
  ha::UniformTable const below(ha::WindowOnly{.window = 4}, 2, 3);
  refused(
      [&] {
        ha::compress_in_place(ha::Compaction(ha::WithKeepLists(below, lists.data(), 2), lengths), layers, layout);
      },
      {"keep-list entry", "[8, 12)", "6", "KeepList entry 2"});
}

TEST_CASE("in place, layers that overlap are refused, those threaded through each other are not", "[cache]") {
  std::vector<std::int32_t> const lengths{6};
  ha::Compaction const compaction(ha::PolicyTable(2, 2, ha::WindowOnly{.window = 2}), lengths);
  std::vector<float> memory(1000);
  float* const at = memory.data();
  auto const taken = [&](auto const& source, std::vector<ha::LayerKv<float>> const& layers) {
    ha::compress_in_place(compaction, layers, source);
  };
  auto const refused = [&](auto const& source, std::vector<ha::LayerKv<float>> const& layers, std::string const& got) {
    auto const before = memory;
    check_error<ha::ArgumentError>([&] { ha::compress_in_place(compaction, layers, source); },
                                   {"tensors", "apart", got, "compress_in_place"});
    REQUIRE(memory == before);
  };
  auto const layout = ha::strided_bhsd(1, 2, 6, 4);  // 48 elements
  taken(layout, {{at, at + 48}, {at + 96, at + 144}});
  refused(layout, {{at, at + 48}, {at + 95, at + 144}}, "layer 0's values and layer 1's keys");
  refused(layout, {{at, at + 48}, {at, at + 144}}, "layer 0's keys and layer 1's keys");
  refused(layout, {{at, at + 200}, {at + 300, at + 20}}, "layer 0's keys and layer 1's values");

  // Layers, keys and values side by side in one tensor [tokens, layers, 2, heads, channels].
  ha::StridedLayout const threaded({1, 2, 6, 4}, {.sequence = 0, .head = 4, .token = 32, .channel = 1});
  taken(threaded, {{at, at + 8}, {at + 16, at + 24}});
  refused(threaded, {{at, at + 8}, {at + 15, at + 24}}, "layer 0's values and layer 1's keys");
  refused(threaded, {{at, at + 8}, {at + 16, at + 35}}, "layer 0's keys and layer 1's values");
  refused(threaded, {{at, at + 8}, {at + 16, at + 31}},
          "layer 0's keys and layer 1's values");  // a token on, a channel back

  // A tensor within itself: two heads half a head apart, two sequences in one place (an expanded tensor).
  auto const folded = [&](ha::StridedLayout const& source, std::string const& above, std::string const& got) {
    ha::Compaction const of(ha::PolicyTable(2, 2, ha::WindowOnly{.window = 2}),
                            std::vector<std::int32_t>(static_cast<std::size_t>(source.num_sequences()), 6));
    std::vector<ha::LayerKv<float>> const layers{{at, at + 200}, {at + 400, at + 600}};
    for (bool const of_values : {false, true}) {
      auto const apart = ha::strided_bhsd(source.num_sequences(), 2, 6, 4);
      ha::KvLayouts const both{of_values ? apart : source, of_values ? source : apart};
      check_error<ha::ArgumentError>(
          [&] { ha::compress_in_place(of, layers, both); },
          {"stride of rows", above, got, of_values ? "compress_in_place, values" : "compress_in_place, keys"});
    }
  };
  folded({{1, 2, 6, 4}, {.sequence = 48, .head = 12, .token = 4, .channel = 1}}, "above 23", "12 (of 2 steps)");
  folded({{2, 2, 6, 4}, {.sequence = 0, .head = 24, .token = 4, .channel = 1}}, "above 0", "0 (of 2 steps)");

  // Pools that layers share by whole pages, as TensorRT-LLM has them: tables tell them apart.
  std::vector<std::int32_t> const offsets{0, 4, 1, 5};
  ha::PagedShape const shape{.num_sequences = 1, .num_kv_heads = 2, .channels = 4, .num_pages = 2, .page_size = 4};
  auto const blocks = ha::tensorrt_llm(offsets.data(), 2, shape, 2);
  taken(blocks, {{at, at}, {at + 64, at + 64}});
  refused(blocks, {{at, at}, {at + 63, at + 64}}, "layer 0's");
  // Keys and values that take turns in pages, a layer a tensor.
  std::vector<std::int32_t> const pages{1, 0};
  auto const joined = ha::flashinfer_joined(ha::PageTable::dense(pages.data(), 2), shape, ha::PageOrder::nhd);
  taken(joined, {{at, at}, {at + 128, at + 128}});
  refused(joined, {{at, at}, {at + 100, at + 100}}, "layer 0's");
}

TEST_CASE("in place, nothing to move", "[cache]") {
  auto const layout = ha::strided_bhsd(2, 3, 20, 4);
  SourceCache<float, ha::StridedLayout> const cache(layout, layout.required_span_size(), 2, 4, 4, 307);
  for (ha::AnyPolicy<> const& policy :
       {ha::AnyPolicy<>(ha::Full{}), ha::AnyPolicy<>(ha::Prune{}), ha::AnyPolicy<>(ha::WindowOnly{.window = 20}),
        ha::AnyPolicy<>(ha::SinkWindow{.sink = 20, .window = 0})}) {
    std::vector<std::int32_t> const lengths{20, 0};
    auto after = cache;
    ha::compress_in_place(ha::Compaction(ha::PolicyTable(2, 3, policy), lengths), after.layers(), layout);
    REQUIRE(first_difference(after, cache) == "");
  }
  // No tensor is needed where no token is kept.
  std::vector<ha::LayerKv<float>> const none(2);
  ha::compress_in_place(ha::Compaction(ha::PolicyTable(2, 3, ha::Prune{}), std::vector<std::int32_t>{20, 20}), none,
                        layout);
  ha::compress_in_place(ha::Compaction(ha::PolicyTable(2, 3), std::vector<std::int32_t>{}), none,
                        ha::strided_bhsd(0, 3, 0, 4));
}
