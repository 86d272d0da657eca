// Compaction on the CPU against plain loops: element types × layouts × policies × lengths × forms.

#include "support/errors.hpp"
#include "support/host_forms.hpp"

#include <headaware/layout/engines.hpp>
#include <headaware/layout/paged.hpp>
#include <headaware/layout/ragged.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/with_keep_lists.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int32_t num_layers = 2;

/// Every kind of policy, differently on each head and layer.
ha::PolicyTable mixed_table(std::int32_t num_kv_heads) {
  ha::PolicyTable table(num_layers, num_kv_heads);
  std::vector<ha::AnyPolicy<>> const policies{
      ha::SinkWindow{.sink = 4, .window = 9},  ha::WindowOnly{.window = 5},           ha::Full{}, ha::Prune{},
      ha::SinkWindow{.sink = 0, .window = 16}, ha::SinkWindow{.sink = 3, .window = 0}};
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    for (std::int32_t head = 0; head < num_kv_heads; ++head) {
      table.set(layer, head, policies[static_cast<std::size_t>(layer * 2 + head) % policies.size()]);
    }
  }
  return table;
}

/// Every form, and what the sizes say of a grouped cache and of consecutive pages.
template <class T, class Source>
void check_all_forms(SourceCache<T, Source> const& cache, ha::PolicyTable const& table,
                     std::vector<std::int32_t> const& lengths) {
  ha::Compaction const compaction(table, lengths);
  KeptTokens const tokens(table, lengths);
  tokens.for_each([&](auto l, auto b, auto h) {
    REQUIRE(compaction.kept(l, static_cast<std::int32_t>(b), static_cast<std::int32_t>(h)) == tokens.kept(l, b, h));
  });
  for (std::int32_t l = 0; l < num_layers; ++l) {
    REQUIRE(compaction.grouped_capacity(l).rows ==
            naive_grouped(tokens, table).layer_rows[static_cast<std::size_t>(l)]);
  }
  check_host_forms(cache, compaction, lengths, 7, 1);

  // Pages of the library's own numbering, handed out from the last.
  auto const pages = ha::consecutive_pages(compaction, 4);
  std::vector<std::int32_t> indices;
  for (auto const page : pages.indices) indices.push_back(static_cast<std::int32_t>(pages.indices.size()) - 1 - page);
  Channels const channels{cache.head_dim, cache.value_dim};
  auto const rows = static_cast<std::int64_t>(indices.size()) * 4;
  Places places{rows * (channels.key + channels.value), {}, {}};
  tokens.for_each([&](auto l, auto b, auto h) {
    auto const s = places.keys.size();
    places.keys.emplace_back();
    places.values.emplace_back();
    for (std::int64_t i = 0; i < tokens.kept(l, b, h); ++i) {
      std::int64_t const row =
          std::int64_t{indices[static_cast<std::size_t>(pages.indptr[s]) + static_cast<std::size_t>(i / 4)]} * 4 +
          i % 4;
      places.keys.back().push_back(row * channels.key);
      places.values.back().push_back(rows * channels.key + row * channels.value);
    }
    auto const kept = static_cast<std::int32_t>(tokens.kept(l, b, h));
    REQUIRE(pages.last_page_len[s] == (kept == 0 ? 0 : (kept - 1) % 4 + 1));
  });
  ha::PagedForm const csr{.block_table = indices.data(), .indptr = pages.indptr.data(), .page_size = 4};
  check_host_form(cache, compaction, tokens)("consecutive pages", places, [&](T* buffer, auto const&) {
    std::vector<ha::LayerKv<T>> const pool(num_layers, {buffer, buffer + rows * channels.key});
    return ha::paged(compaction, pool, csr, channels.key, static_cast<std::int64_t>(indices.size()), channels.value);
  });
}

template <class T>
void check_strided(std::vector<std::int32_t> const& lengths, unsigned seed) {
  constexpr std::int32_t heads = 5;
  constexpr std::int64_t dim = 6;
  auto const batch = static_cast<std::int64_t>(lengths.size());
  std::int64_t const tokens = 3 + *std::max_element(lengths.begin(), lengths.end());
  ha::PolicyTable const table = mixed_table(heads);
  auto const bhsd = ha::strided_bhsd(batch, heads, tokens, dim);
  auto const bshd = ha::strided_bshd(batch, tokens, heads, dim);
  auto const bhds = ha::strided_bhds(batch, heads, dim, tokens);
  ha::StridedLayout const odd({batch, heads, tokens, dim},
                              {.sequence = heads * tokens * 11 + 1, .head = tokens * 11, .token = 11, .channel = 1});
  for (auto const& layout : {bhsd, bshd, bhds, odd}) {
    check_all_forms(SourceCache<T, ha::StridedLayout>(layout, layout.required_span_size(), num_layers, dim, dim, seed),
                    table, lengths);
  }
  // Keys and values of different shapes, values transposed: llama.cpp's cache.
  ha::KvLayouts<ha::StridedLayout, ha::StridedLayout> const mixed{bshd, ha::strided_bhds(batch, heads, 4, tokens)};
  check_all_forms(SourceCache<T, ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>>(mixed, bshd.required_span_size(),
                                                                                      num_layers, dim, 4, seed),
                  table, lengths);
}

}  // namespace

TEST_CASE("every element type, layout, policy, length and form", "[cache]") {
  // Lengths around windows (5, 9, 16), sinks and their sums, alone and in a batch; 0, 1 and long.
  for (std::int32_t const length : {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 130}) {
    INFO("length " << length);
    check_strided<std::uint16_t>({length}, 1);
  }
  check_strided<std::uint8_t>({13, 0, 40}, 2);
  check_strided<std::uint16_t>({13, 1, 40}, 3);
  check_strided<float>({9, 130, 17}, 4);
  check_strided<ha::int4x2>({40, 3}, 5);
}

TEST_CASE("ragged and paged sources", "[cache]") {
  constexpr std::int32_t heads = 3;
  constexpr std::int64_t dim = 8;
  std::vector<std::int32_t> const lengths{13, 40, 7};
  ha::PolicyTable const table = mixed_table(heads);

  std::vector<std::int32_t> const cu_seqlens{0, 13, 53, 60};
  auto const ragged = ha::ragged_thd(cu_seqlens.data(), 3, 60, heads, dim);
  check_all_forms(
      SourceCache<std::uint16_t, ha::RaggedLayout>(ragged, ragged.required_span_size(), num_layers, dim, dim, 6), table,
      lengths);

  for (std::int64_t const page : {4, 5}) {
    std::int64_t const blocks = (40 + page - 1) / page;
    std::int64_t const pool = 3 * blocks + 2;
    std::vector<std::int32_t> block_table(static_cast<std::size_t>(3 * blocks));
    for (std::size_t i = 0; i < block_table.size(); ++i)
      block_table[i] = static_cast<std::int32_t>((7 * i + 3) % block_table.size());
    std::vector<std::int32_t> used(block_table);
    std::sort(used.begin(), used.end());
    REQUIRE(std::unique(used.begin(), used.end()) == used.end());
    ha::PagedShape const shape{
        .num_sequences = 3, .num_kv_heads = heads, .channels = dim, .num_pages = pool, .page_size = page};
    auto const table_view = ha::PageTable::dense(block_table.data(), blocks);
    std::int64_t const elements = pool * page * heads * dim;
    for (auto const order : {ha::PageOrder::nhd, ha::PageOrder::hnd}) {
      auto const split = ha::flashinfer_split(table_view, shape, order);
      check_all_forms(SourceCache<std::uint16_t, ha::PagedLayout>(split, elements, num_layers, dim, dim, 7), table,
                      lengths);
      auto const joined = ha::flashinfer_joined(table_view, shape, order);
      using Joined = std::remove_cvref_t<decltype(joined)>;
      check_all_forms(SourceCache<std::uint16_t, Joined>(joined, 2 * elements, num_layers, dim, dim, 8), table,
                      lengths);
    }
    auto const split_x = ha::vllm_paged_attention(table_view, shape, 4);
    using SplitX = std::remove_cvref_t<decltype(split_x)>;
    check_all_forms(SourceCache<std::uint16_t, SplitX>(split_x, elements, num_layers, dim, dim, 9), table, lengths);
  }
}

namespace {

/// An engine's layout with nothing but the one function.
struct OwnLayout {
  std::int64_t heads;
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return ((b * 64 + t) * 8 + c) * heads + h;  // heads run fastest
  }
};

/// Policies with one function alone, and with a count.
struct EveryThird {
  static constexpr std::string_view name = "every_third";
  std::int32_t phase = 0;
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t) const { return token % 3 == phase; }
  friend bool operator==(EveryThird const&, EveryThird const&) = default;
};
struct EvenTokens {
  static constexpr std::string_view name = "even_tokens";
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t) const { return token % 2 == 0; }
  HEADAWARE_HOST_DEVICE std::int64_t kept_before(std::int64_t token, std::int64_t) const { return (token + 1) / 2; }
  friend bool operator==(EvenTokens const&, EvenTokens const&) = default;
};

}  // namespace

TEST_CASE("a caller's own layout and own policies", "[cache]") {
  std::vector<std::int32_t> const lengths{50, 21};
  SourceCache<std::uint16_t, OwnLayout> const cache({3}, 2 * 64 * 8 * 3, num_layers, 8, 8, 10);
  using Registry = ha::DefaultRegistry::with<EveryThird, EvenTokens>;
  ha::BasicPolicyTable<Registry> table(num_layers, 3, EveryThird{1});
  table.set(0, 1, EvenTokens{});
  table.set(1, 0, ha::Full{});
  check_host_ragged(cache, ha::Compaction(table, lengths), lengths, 16);
  check_host_ragged(cache, ha::Compaction(ha::UniformTable(EveryThird{2}, num_layers, 3), lengths), lengths, 16);
}

TEST_CASE("keep-lists a sequence and head, tables below them", "[cache]") {
  std::vector<std::int32_t> const lengths{30, 9};
  auto const layout = ha::strided_bhsd(2, 2, 30, 8);
  SourceCache<std::uint16_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), num_layers, 8, 8, 11);
  std::vector<std::int32_t> const a{0, 3, 4, 17, 29};
  std::vector<std::int32_t> const b{8};
  std::vector<ha::KeepList> lists(num_layers * 2 * 2);
  lists[0] = {a.data(), 5};
  lists[3] = {b.data(), 1};
  lists[5] = {a.data(), 0};
  ha::PolicyTable const table(num_layers, 2, ha::SinkWindow{.sink = 2, .window = 3});
  ha::WithKeepLists const with_lists(table.view(), lists.data(), 2);
  check_host_ragged(cache, ha::Compaction(with_lists, lengths), lengths, 16);
  REQUIRE(ha::Compaction(with_lists, lengths).kept(1, 0, 1) == 0);

  std::vector<std::int32_t> const unsorted{4, 3};
  lists[2] = {unsorted.data(), 2};
  ha::Compaction const compaction(with_lists, lengths);
  std::vector<std::uint16_t> keys(static_cast<std::size_t>(compaction.kept_total() * 8), 77);
  std::vector<std::uint16_t> values(keys);
  check_error<ha::ArgumentError>(
      [&] { ha::compress(compaction, cache.layers(), layout, ha::ragged(compaction, keys.data(), values.data(), 8)); },
      {"keep-list entry", "[5, 9)", "3", "entry 1"});
  REQUIRE(keys == std::vector<std::uint16_t>(keys.size(), 77));
}

TEST_CASE("scales move along", "[cache]") {
  std::vector<std::int32_t> const lengths{25};
  auto const layout = ha::strided_bhsd(1, 4, 25, 8);
  auto const scale_layout = ha::strided_bhsd(1, 4, 25, 1);
  SourceCache<std::uint8_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), num_layers, 8, 8, 12);
  SourceCache<float, ha::StridedLayout> const scales(scale_layout, scale_layout.required_span_size(), num_layers, 1, 1,
                                                     13);
  ha::PolicyTable const table = mixed_table(4);
  ha::Compaction const compaction(table, lengths);
  std::vector<std::uint8_t> k(static_cast<std::size_t>(compaction.kept_total() * 8));
  std::vector<std::uint8_t> v(k);
  std::vector<float> ks(static_cast<std::size_t>(compaction.kept_total()));
  std::vector<float> vs(ks);
  ha::compress(compaction, ha::transfer(cache.layers(), layout, ha::ragged(compaction, k.data(), v.data(), 8)),
               ha::transfer(scales.layers(), scale_layout, ha::ragged(compaction, ks.data(), vs.data(), 1)));
  std::size_t row = 0;
  KeptTokens(table, lengths).for_each_row([&](auto layer, auto b, auto h, auto, auto t) {
    REQUIRE(k[row * 8 + 3] == cache.key(layer, b, h, t, 3));
    REQUIRE(v[row * 8 + 7] == cache.value(layer, b, h, t, 7));
    REQUIRE(ks[row] == scales.key(layer, b, h, t, 0));
    REQUIRE(vs[row] == scales.value(layer, b, h, t, 0));
    ++row;
  });
  REQUIRE(row == ks.size());
}

TEST_CASE("in place, without a second buffer", "[cache]") {
  std::vector<std::int32_t> const lengths{40, 0, 11};
  constexpr std::int32_t heads = 6;
  ha::PolicyTable table = mixed_table(heads);
  table.set(0, 5, ha::SinkWindow{.sink = 4, .window = 30});  // target and source of the window overlap
  ha::Compaction const compaction(table, lengths);
  std::vector<std::int32_t> block_table(3 * 10);
  for (std::size_t i = 0; i < block_table.size(); ++i)
    block_table[i] = static_cast<std::int32_t>((11 * i + 5) % block_table.size());
  ha::PagedShape const shape{.num_sequences = 3, .num_kv_heads = heads, .channels = 8, .num_pages = 30, .page_size = 4};
  auto const check = [&](auto const& layout, std::int64_t extent) {
    using Layout = std::remove_cvref_t<decltype(layout)>;
    SourceCache<std::uint16_t, Layout> const before(layout, extent, num_layers, 8, 8, 14);
    auto after = before;
    ha::compress_in_place(compaction, after.layers(), layout);
    // What lies after the kept rows is as it was: nothing else is written.
    REQUIRE(first_difference(after, compacted_in_place(before, KeptTokens(table, lengths))) == "");
  };
  for (auto const& layout :
       {ha::strided_bhsd(3, heads, 40, 8), ha::strided_bshd(3, 40, heads, 8), ha::strided_bhds(3, heads, 8, 40)}) {
    check(layout, layout.required_span_size());
  }
  auto const paged = ha::flash_attention_paged(ha::PageTable::dense(block_table.data(), 10), shape);
  check(paged, std::int64_t{30} * 4 * heads * 8);
  REQUIRE(compaction.pages_needed(0, 4) == 10);
  REQUIRE(compaction.pages_needed(1, 4) == 0);
  REQUIRE(compaction.pages_needed(2, 4) == 3);
}

TEST_CASE("large caches go past the CPU's caches and arrive", "[cache]") {
  constexpr std::int32_t tokens = 3000;
  auto const layout = ha::strided_bhsd(1, 8, tokens, 128);
  SourceCache<std::uint16_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), num_layers, 128, 128,
                                                            16);
  ha::PolicyTable const table(num_layers, 8, ha::SinkWindow{.sink = 3, .window = 1501});
  check_host_ragged(cache, ha::Compaction(table, std::vector{tokens}), {tokens}, 16);
}

TEST_CASE("bad input is named and nothing is written", "[cache]") {
  std::vector<std::int32_t> const lengths{20};
  auto const layout = ha::strided_bhsd(1, 2, 20, 8);
  SourceCache<std::uint16_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), num_layers, 8, 8, 17);
  ha::PolicyTable const table(num_layers, 2, ha::SinkWindow{.sink = 2, .window = 6});
  ha::Compaction const compaction(table, lengths);
  std::vector<std::uint16_t> k(static_cast<std::size_t>(compaction.kept_total() * 8), 77);
  std::vector<std::uint16_t> v(k);
  auto const kept = ha::ragged(compaction, k.data(), v.data(), 8);
  auto const layers = cache.layers();
  auto const fails = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(call, parts);
    REQUIRE(k == std::vector<std::uint16_t>(k.size(), 77));
    REQUIRE(v == std::vector<std::uint16_t>(v.size(), 77));
  };

  fails([&] { ha::compress(compaction, std::vector<ha::LayerKv<std::uint16_t const>>{layers[0]}, layout, kept); },
        {"source layers", "2", "1", "compress"});
  fails([&] { ha::compress(compaction, layers, ha::strided_bhsd(1, 3, 20, 8), kept); },
        {"source KV heads", "2", "3", "keys"});
  fails([&] { ha::compress(compaction, layers, ha::strided_bhsd(2, 2, 20, 8), kept); },
        {"source sequences", "1", "2", "keys"});
  fails([&] { ha::compress(compaction, layers, ha::strided_bhsd(1, 2, 19, 8), kept); },
        {"source tokens", "20", "19", "keys"});
  fails([&] { ha::compress(compaction, layers, ha::strided_bhsd(1, 2, 20, 16), kept); },
        {"source channels", "8", "16", "keys"});
  fails(
      [&] {
        auto broken = layers;
        broken[1].values = nullptr;
        ha::compress(compaction, broken, layout, kept);
      },
      {"source values", "a pointer", "nullptr", "layer 1"});
  fails(
      [&] {
        auto broken = layers;
        broken[0].keys = reinterpret_cast<std::uint16_t const*>(reinterpret_cast<char const*>(layers[0].keys) + 1);
        ha::compress(compaction, broken, layout, kept);
      },
      {"source keys", "aligned to 2 bytes", "1 bytes beyond", "layer 0"});
  fails(
      [&] {
        auto broken = kept;
        broken.layers[1].keys = const_cast<std::uint16_t*>(layers[0].values) + 5;
        ha::compress(compaction, layers, layout, broken);
      },
      {"buffers", "apart", "overlapping", "compress"});

  fails(
      [&] {
        auto broken = kept;
        broken.layers[0].values = broken.layers[0].keys + 8;
        ha::compress(compaction, layers, layout, broken);
      },
      {"buffers", "apart from each other", "overlapping destinations", "compress"});

  std::vector<std::int32_t> block_table(static_cast<std::size_t>(compaction.num_segments() * 2), 0);
  std::iota(block_table.begin(), block_table.end(), 0);
  block_table[5] = 99;
  ha::PagedForm const form{.block_table = block_table.data(), .table_stride = 2, .page_size = 4};
  std::vector<std::uint16_t> pool(8 * 4 * 8);
  std::vector<ha::LayerKv<std::uint16_t>> const pools(2, {pool.data(), pool.data()});
  fails([&] { ha::compress(compaction, layers, layout, ha::paged(compaction, pools, form, 8, 8)); },
        {"block table entry", "[0, 8)", "99", "segment 2"});
  fails(
      [&] {
        (void)ha::paged(compaction, pools, {.block_table = block_table.data(), .table_stride = 2, .page_size = 0}, 8);
      },
      {"page size", "> 0", "0", "paged"});
  fails(
      [&] {
        (void)ha::paged(compaction, pools, {.block_table = block_table.data(), .table_stride = 1, .page_size = 4}, 8);
      },
      {"block table row", "8 tokens", "4", "paged"});
  fails([&] { (void)ha::ragged(compaction, k.data(), v.data(), 0); }, {"channels", "> 0", "0", "ragged"});
  fails(
      [&] {
        (void)ha::Compaction(table, std::vector<std::int32_t>{5, -1});
      },
      {"negative length", ">= 0", "-1", "sequence 1"});
  fails([&] { (void)ha::KeyRotation::from_base(ha::RotaryPairing::neox, 7, 10000); },
        {"rotary_dim", "even", "7", "KeyRotation"});
  fails(
      [&] {
        std::vector<float> fk(static_cast<std::size_t>(compaction.kept_total() * 8));
        std::vector<float> source(static_cast<std::size_t>(layout.required_span_size()));
        std::vector<ha::LayerKv<float const>> const fl(2, {source.data(), source.data()});
        ha::compress(compaction, ha::transfer(fl, layout, ha::ragged(compaction, fk.data(), fk.data(), 8))
                                     .rotate_keys(ha::KeyRotation::from_base(ha::RotaryPairing::neox, 16, 1e4)));
      },
      {"rotary_dim", "[2, 8]", "16", "KeyRotation"});
  fails([&] { (void)compaction.kept(0, 0, 2); }, {"KV head", "[0, 2)", "2", "kept"});
  fails([&] { (void)compaction.max_kept(-1); }, {"layer", "[0, 2)", "-1", "CacheSizes"});
}

TEST_CASE("nothing to keep is no error", "[cache]") {
  ha::PolicyTable const table(1, 2, ha::Prune{});
  ha::Compaction const none(table, std::vector<std::int32_t>{});
  REQUIRE(none.kept_total() == 0);
  ha::Compaction const pruned(table, std::vector<std::int32_t>{30});
  REQUIRE(pruned.kept_total() == 0);
  std::uint16_t* const nothing = nullptr;
  std::vector<ha::LayerKv<std::uint16_t const>> const layers{{nullptr, nullptr}};
  ha::compress(pruned, layers, ha::strided_bhsd(1, 2, 30, 8), ha::ragged(pruned, nothing, nothing, 8));
  ha::compress(none, layers, ha::strided_bhsd(0, 2, 30, 8), ha::ragged(none, nothing, nothing, 8));
}
