// Compaction on the device against the CPU's, bit for bit.

#include "support/device_cache.cuh"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int32_t num_layers = 2;

ha::PolicyTable mixed_table(std::int32_t num_kv_heads) {
  ha::PolicyTable table(num_layers, num_kv_heads);
  std::vector<ha::AnyPolicy<>> const policies{ha::SinkWindow{.sink = 4, .window = 29},
                                              ha::Full{},
                                              ha::WindowOnly{.window = 5},
                                              ha::Prune{},
                                              ha::SinkWindow{.sink = 0, .window = 300},
                                              ha::SinkWindowScored{.sink = 3, .window = 9, .scored = 20}};
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    for (std::int32_t head = 0; head < num_kv_heads; ++head) {
      table.set(layer, head, policies[static_cast<std::size_t>(layer * 3 + head) % policies.size()]);
    }
  }
  return table;
}

DeviceVector<std::byte> upload(ha::PolicyTable const& table) {
  return DeviceVector<std::byte>(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
}

/// All forms of cache from one source.
template <class T, class Source>
void check_all_forms(SourceCache<T, Source> const& cache, Source const& device_layout,
                     std::vector<std::int32_t> const& lengths, std::size_t shift = 0) {
  ha::PolicyTable const table = mixed_table(3);
  auto const d_bytes = upload(table);
  auto const d_table = table.view_at(d_bytes.data());
  ha::Compaction const compaction(table, lengths);
  auto const kd = cache.head_dim;
  auto const vd = cache.value_dim;

  auto const ragged = [&](T* k, T* v) { return ha::ragged(compaction, k, v, kd, vd); };
  compare_forms(cache, device_layout, compaction, d_table, compaction.kept_total(), ragged, ragged, shift);
  auto const padded = [&](T* k, T* v) { return ha::padded(compaction, k, v, kd, ha::Alignment::right, vd); };
  compare_forms(cache, device_layout, compaction, d_table, ha::padded_rows(compaction), padded, padded, shift);
  auto const grouped = [&](T* k, T* v) { return ha::grouped(compaction, k, v, kd, vd); };
  compare_forms(cache, device_layout, compaction, d_table, ha::grouped_rows(compaction), grouped, grouped, shift);

  constexpr std::int32_t page_size = 8;
  auto pages = ha::consecutive_pages(compaction, page_size);
  std::reverse(pages.indices.begin(), pages.indices.end());
  DeviceVector<std::int32_t> const d_indices(pages.indices);
  DeviceVector<std::int32_t> const d_indptr(pages.indptr);
  auto const paged = [&](std::int32_t const* indices, std::int32_t const* indptr, bool host) {
    ha::PagedForm const form{.block_table = indices, .indptr = indptr, .page_size = page_size};
    return [&compaction, form, host, kd, vd, &pages](T* k, T* v) {
      std::vector<ha::LayerKv<T>> const pool(num_layers, {k, v});
      return ha::paged(compaction, pool, form, kd, host ? static_cast<std::int64_t>(pages.indices.size()) : 0, vd);
    };
  };
  compare_forms(cache, device_layout, compaction, d_table, compaction.pages_total(page_size) * page_size,
                paged(pages.indices.data(), pages.indptr.data(), true), paged(d_indices.data(), d_indptr.data(), false),
                shift);
}

template <class T>
void check_strided(ha::StridedLayout const& layout, std::vector<std::int32_t> const& lengths, std::size_t shift = 0) {
  std::int64_t const dim = layout.num_channels();
  check_all_forms(SourceCache<T, ha::StridedLayout>(layout, layout.required_span_size(), num_layers, dim, dim, 21),
                  layout, lengths, shift);
}

}  // namespace

TEST_CASE("two-byte elements, every form, lengths around windows and tiles", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const length : {0, 1, 4, 5, 28, 29, 32, 33, 34, 127, 128, 129, 700}) {
    INFO("length " << length);
    check_strided<std::uint16_t>(ha::strided_bhsd(1, 3, 704, 64), {length});
  }
  check_strided<std::uint16_t>(ha::strided_bshd(4, 400, 3, 64), {33, 0, 400, 1});
}

TEST_CASE("other elements and narrower accesses", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{70, 9};
  check_strided<float>(ha::strided_bhsd(2, 3, 70, 32), lengths);
  check_strided<std::uint8_t>(ha::strided_bshd(2, 70, 3, 48), lengths);
  check_strided<ha::int4x2>(ha::strided_bhsd(2, 3, 70, 32), lengths);
  // An odd pitch, rows of 80, 20, 6 and 2 bytes: 16-, 4- and 2-byte accesses.
  check_strided<std::uint16_t>(
      ha::StridedLayout({2, 3, 70, 64}, {.sequence = 3 * 70 * 65, .head = 70 * 65, .token = 65, .channel = 1}),
      lengths);
  check_strided<std::uint16_t>(ha::strided_bhsd(2, 3, 70, 40), lengths);
  check_strided<std::uint16_t>(ha::strided_bhsd(2, 3, 70, 10), lengths);
  check_strided<std::uint8_t>(ha::strided_bhsd(2, 3, 70, 6), lengths);
  check_strided<std::uint16_t>(ha::strided_bhsd(2, 3, 70, 1), lengths);
}

TEST_CASE("pointers aligned to an element alone", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::size_t const shift : {1, 2, 4}) check_strided<std::uint16_t>(ha::strided_bhsd(1, 3, 90, 64), {90}, shift);
}

TEST_CASE("transposed sources go through shared memory", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{70, 33};
  check_strided<std::uint8_t>(ha::strided_bhds(2, 3, 40, 70), lengths);
  check_strided<std::uint16_t>(ha::strided_bhds(2, 3, 64, 70), lengths);
  check_strided<float>(ha::strided_bhds(2, 3, 33, 70), lengths);
}

TEST_CASE("ragged and paged sources, split-x keys, a layout of one's own", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{40, 75};
  std::vector<std::int32_t> const cu_seqlens{0, 40, 115};
  DeviceVector<std::int32_t> const d_cu_seqlens(cu_seqlens);
  auto const ragged = ha::ragged_thd(cu_seqlens.data(), 2, 115, 3, 64);
  check_all_forms(
      SourceCache<std::uint16_t, ha::RaggedLayout>(ragged, ragged.required_span_size(), num_layers, 64, 64, 22),
      ha::ragged_thd(d_cu_seqlens.data(), 2, 115, 3, 64), lengths);

  std::vector<std::int32_t> block_table(2 * 5);
  for (std::size_t i = 0; i < block_table.size(); ++i)
    block_table[i] = static_cast<std::int32_t>((3 * i + 1) % block_table.size());
  DeviceVector<std::int32_t> const d_block_table(block_table);
  ha::PagedShape const shape{.num_sequences = 2, .num_kv_heads = 3, .channels = 64, .num_pages = 10, .page_size = 16};
  auto const pages = [&](std::int32_t const* table) { return ha::PageTable::dense(table, 5); };
  std::int64_t const elements = std::int64_t{10} * 16 * 3 * 64;
  using Joined = decltype(ha::flashinfer_joined(pages(nullptr), shape, ha::PageOrder::nhd));
  for (auto const order : {ha::PageOrder::nhd, ha::PageOrder::hnd}) {
    SourceCache<std::uint16_t, Joined> const cache(ha::flashinfer_joined(pages(block_table.data()), shape, order),
                                                   2 * elements, num_layers, 64, 64, 23);
    check_all_forms(cache, ha::flashinfer_joined(pages(d_block_table.data()), shape, order), lengths);
  }
  using SplitX = decltype(ha::vllm_paged_attention(pages(nullptr), shape, 8));
  SourceCache<std::uint16_t, SplitX> const split(ha::vllm_paged_attention(pages(block_table.data()), shape, 8),
                                                 elements, num_layers, 64, 64, 24);
  check_all_forms(split, ha::vllm_paged_attention(pages(d_block_table.data()), shape, 8), lengths);
}

namespace own {

struct HeadsFastest {
  std::int64_t heads;
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return ((b * 80 + t) * 16 + c) * heads + h;
  }
};
struct EveryThird {
  static constexpr std::string_view name = "every_third";
  std::int32_t phase = 0;
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t) const { return token % 3 == phase; }
  friend bool operator==(EveryThird const&, EveryThird const&) = default;
};

}  // namespace own

TEST_CASE("policies and layouts of one's own, tables known at compile time", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{80, 11};
  SourceCache<std::uint16_t, own::HeadsFastest> const cache({3}, 2 * 80 * 16 * 3, num_layers, 16, 16, 25);
  using Registry = ha::DefaultRegistry::with<own::EveryThird>;
  ha::BasicPolicyTable<Registry> table(num_layers, 3, own::EveryThird{1});
  table.set(0, 1, ha::Full{});
  ha::Compaction const compaction(table, lengths);
  DeviceVector<std::byte> const d_bytes(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  auto const ragged = [&](auto const& p) { return [&p](auto* k, auto* v) { return ha::ragged(p, k, v, 16); }; };
  compare_forms(cache, cache.source, compaction, table.view_at(d_bytes.data()), compaction.kept_total(),
                ragged(compaction), ragged(compaction));

  ha::UniformTable const uniform(ha::SinkWindow{.sink = 4, .window = 9}, num_layers, 3);
  ha::Compaction const uniform_compaction(uniform, lengths);
  compare_forms(cache, cache.source, uniform_compaction, uniform, uniform_compaction.kept_total(),
                ragged(uniform_compaction), ragged(uniform_compaction));
}

TEST_CASE("keep-lists on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{60, 20};
  auto const layout = ha::strided_bhsd(2, 3, 60, 64);
  SourceCache<std::uint16_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), num_layers, 64, 64,
                                                            26);
  std::vector<std::int32_t> const tokens{0, 3, 4, 17, 18, 19, 59};
  DeviceVector<std::int32_t> const d_tokens(tokens);
  std::vector<ha::KeepList> lists(num_layers * 2 * 3);
  lists[1] = {tokens.data(), 7};
  lists[4] = {tokens.data(), 6};
  lists[10] = {tokens.data(), 1};
  auto d_entries = lists;
  for (auto& list : d_entries) {
    if (list.tokens != nullptr) list.tokens = d_tokens.data();
  }
  DeviceVector<ha::KeepList> const d_lists(d_entries);
  ha::PolicyTable const table = mixed_table(3);
  auto const d_bytes = upload(table);
  ha::Compaction const compaction(ha::WithKeepLists(table.view(), lists.data(), 2), lengths);
  auto const ragged = [&](auto* k, auto* v) { return ha::ragged(compaction, k, v, 64); };
  compare_forms(cache, layout, compaction, ha::WithKeepLists(table.view_at(d_bytes.data()), d_lists.data(), 2),
                compaction.kept_total(), ragged, ragged);
}

TEST_CASE("the host has planned on the device: other lengths, and outputs", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int32_t tokens = 300;
  std::vector<std::int32_t> const lengths{tokens, 250};
  auto const layout = ha::strided_bhsd(2, 2, tokens, 64);
  SourceCache<std::uint16_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), 1, 64, 64, 27);
  DeviceSource<std::uint16_t, ha::StridedLayout> const source(cache);
  ha::PolicyTable table(1, 2, ha::Full{});
  table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 40});
  auto const d_bytes = upload(table);
  ha::Compaction const compaction(table, lengths);
  DeviceVector<std::int64_t> const d_offsets(
      std::vector<std::int64_t>(compaction.offsets().begin(), compaction.offsets().end()));
  auto const rows = static_cast<std::size_t>(compaction.kept_total() * 64);
  auto const run = [&](std::vector<std::int32_t> const& now, std::int32_t* d_kept) {
    DeviceVector<std::int32_t> const d_lengths(now);
    DeviceVector<std::uint16_t> const d_keys(std::vector<std::uint16_t>(rows, 0xA7A7));
    DeviceVector<std::uint16_t> const d_values(std::vector<std::uint16_t>(rows, 0xA7A7));
    auto d_compaction = compaction.on_device(table.view_at(d_bytes.data()), d_lengths.data());
    d_compaction.d_offsets = d_offsets.data();
    d_compaction.d_kept = d_kept;
    run_compress(d_compaction,
                 ha::transfer(source.layers, layout, ha::ragged(compaction, d_keys.data(), d_values.data(), 64)));
    return d_keys.host();
  };
  auto const all = run(lengths, nullptr);
  // The second sequence is shorter than planned: its full head stays out, its window is that of the shorter one.
  auto const shorter = run({tokens, 240}, nullptr);
  auto const at = [&](std::size_t segment) { return static_cast<std::ptrdiff_t>(compaction.offsets()[segment] * 64); };
  REQUIRE(std::equal(all.begin(), all.begin() + at(2), shorter.begin()));
  REQUIRE(std::all_of(shorter.begin() + at(2), shorter.begin() + at(3), [](auto x) { return x == 0xA7A7; }));
  for (std::int64_t row = 0; row < 44; ++row) {
    std::int64_t const token = row < 4 ? row : 200 + row - 4;
    auto const kept = shorter.begin() + at(3) + row * 64;
    REQUIRE(std::equal(kept, kept + 64, cache.keys[0].begin() + layout.offset(1, 1, token, 0)));
  }
  REQUIRE(run({tokens, tokens + 1}, nullptr)[static_cast<std::size_t>(at(2))] == 0xA7A7);
  // An output asked for: the device counts again.
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(4, -1));
  REQUIRE(run(lengths, d_kept.data()) == all);
  REQUIRE(d_kept.host() == std::vector<std::int32_t>{300, 44, 250, 44});
}
