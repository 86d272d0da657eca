// Tables and policies in host memory that name what is not there: named by the error, and nothing written.

#include "support/cache_arena.hpp"
#include "support/errors.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/engines.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace mine {

/// A policy whose closed form names a token that is not the sequence's.
struct Astray {
  static constexpr std::string_view name = "astray";
  std::int64_t shift = 0;
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token >= length - 3;
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t slot, std::int64_t length) const {
    return length - 3 + slot + (slot == 1 ? shift : 0);
  }
  friend constexpr bool operator==(Astray const&, Astray const&) = default;
};

}  // namespace mine

namespace {

constexpr std::int64_t dim = 4;
std::vector<std::int32_t> const lengths{10, 6};

/// Two sequences of two heads: what calls on a source refuse.
struct Calls {
  ha::Compaction<> compaction{ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 1, .window = 3}), lengths};
  std::vector<float> keys = std::vector<float>(4096, 1.0F);
  std::vector<float> values = keys;
  std::vector<float> kept = guarded<float>(2 * compaction.kept_total() * dim);

  template <class Source>
  void refuse(Source const& source, ha::ErrorDetail const& parts) {
    std::vector<ha::LayerKv<float>> const layers{{keys.data(), values.data()}};
    auto const at = [&](std::string const& where) {
      ha::ErrorDetail placed = parts;
      placed.where = where + ", keys" + parts.where;
      return placed;
    };
    check_error<ha::ArgumentError>(
        [&] {
          ha::compress(compaction, layers, source,
                       ha::ragged(compaction, kept.data(), kept.data() + compaction.kept_total() * dim, dim));
        },
        at("compress"));
    REQUIRE(first_difference(kept, guarded<float>(2 * compaction.kept_total() * dim)) == "");
    check_error<ha::ArgumentError>([&] { ha::compress_in_place(compaction, layers, source); }, at("compress_in_place"));
    ha::RollingSlots const rolling(ha::PolicyTable(1, 2, ha::Full{}), 2, {.max_tokens = 16});
    std::vector<float> slots(static_cast<std::size_t>(2 * rolling.rows_total() * dim));
    ha::RollingState state(2);
    check_error<ha::ArgumentError>(
        [&] {
          ha::append(
              rolling.view(), state, layers, source, lengths,
              ha::rolling(rolling, rolling.view(), slots.data(), slots.data() + rolling.rows_total() * dim, dim));
        },
        at("append"));
    REQUIRE(state.length(0) == 0);
    REQUIRE(keys == std::vector<float>(4096, 1.0F));
    check_error<ha::ArgumentError>([&] { ha::validate_tables(source, lengths); }, at("validate_tables"));
  }
  template <class Source>
  void take(Source const& source) {
    ha::validate_tables(source, lengths);
    ha::compress(compaction, std::vector<ha::LayerKv<float>>{{keys.data(), values.data()}}, source,
                 ha::ragged(compaction, kept.data(), kept.data() + compaction.kept_total() * dim, dim));
    kept = guarded<float>(2 * compaction.kept_total() * dim);
  }
};

}  // namespace

TEST_CASE("a source's tables name places for all its tokens, or are refused", "[cache]") {
  Calls calls;
  ha::PagedShape const shape{.num_sequences = 2, .num_kv_heads = 2, .channels = dim, .num_pages = 20, .page_size = 4};
  auto const csr = [&](std::vector<std::int32_t> const& pages, std::vector<std::int32_t> const& indptr) {
    return ha::flashinfer_split(ha::PageTable::csr(pages.data(), indptr.data()), shape, ha::PageOrder::nhd);
  };
  std::vector<std::int32_t> const pages{7, 3, 19, 0, 5};
  std::vector<std::int32_t> const ends{0, 3, 5};
  calls.take(csr(pages, ends));
  std::vector<std::int32_t> const too_few{0, 2, 4};
  calls.refuse(csr(pages, too_few), {"page table", "3 pages for 10 tokens", "2 pages", ", sequence 0"});
  std::vector<std::int32_t> const descending{0, 3, 2};
  calls.refuse(csr(pages, descending), {"page table", "2 pages for 6 tokens", "-1 pages", ", sequence 1"});
  std::vector<std::int32_t> const negative{-1, 3, 5};
  calls.refuse(csr(pages, negative), {"page table's indptr", ">= 0", "-1", ", sequence 0"});
  for (std::int32_t const bad : {-1, 20, 1000000}) {
    auto broken = pages;
    broken[4] = bad;
    std::string const got = std::to_string(bad) + " for page 1";
    calls.refuse(csr(broken, ends), {"page table entry", "a page in [0, 20)", got, ", sequence 1"});
    std::vector<std::int32_t> const dense{7, 3, 19, 0, bad, -9};  // after a sequence's end nothing is read
    auto const table = ha::PageTable::dense(dense.data(), 3);
    calls.refuse(ha::vllm_paged_attention(table, shape, 4),
                 {"page table entry", "a page in [0, 20)", got, ", sequence 1"});
  }

  auto const varlen = [&](std::vector<std::int32_t> const& cu_seqlens) {
    return ha::flash_attention_varlen(cu_seqlens.data(), 2, 16, 2, dim);
  };
  std::vector<std::int32_t> const rows{0, 10, 16};
  calls.take(varlen(rows));
  std::vector<std::int32_t> const swapped{0, 6, 16};
  calls.refuse(varlen(swapped), {"cu_seqlens", "at least 10 rows in [0, 16)", "0 to 6", ", sequence 0"});
  std::vector<std::int32_t> const before{-1, 9, 15};
  calls.refuse(varlen(before), {"cu_seqlens", "at least 10 rows in [0, 16)", "-1 to 9", ", sequence 0"});
  std::vector<std::int32_t> const beyond{0, 11, 17};
  calls.refuse(varlen(beyond), {"cu_seqlens", "at least 6 rows in [0, 16)", "11 to 17", ", sequence 1"});

  // Of a sequence without tokens, too: the next one would have an earlier one's rows.
  auto const of_three = [&](auto const& layout, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>([&] { ha::validate_tables(layout, std::vector<std::int32_t>{6, 0, 6}); }, parts);
  };
  std::vector<std::int32_t> const back{0, 6, 0, 6};
  of_three(ha::flash_attention_varlen(back.data(), 3, 16, 2, dim),
           {"cu_seqlens", "at least 0 rows in [0, 16)", "6 to 0", ", sequence 1"});
  std::vector<std::int32_t> const pages_back{0, 2, 0, 2};
  ha::PagedShape of_pages = shape;
  of_pages.num_sequences = 3;
  of_three(ha::flashinfer_split(ha::PageTable::csr(pages.data(), pages_back.data()), of_pages, ha::PageOrder::nhd),
           {"page table", "0 pages for 0 tokens", "-2 pages", ", sequence 1"});

  // Values have tables of their own.
  std::vector<ha::LayerKv<float>> const layers{{calls.keys.data(), calls.values.data()}};
  ha::KvLayouts<ha::RaggedLayout, ha::RaggedLayout> const both{varlen(rows), varlen(swapped)};
  check_error<ha::ArgumentError>([&] { ha::compress_in_place(calls.compaction, layers, both); },
                                 {"cu_seqlens", "at least 10 rows", "0 to 6", "values, sequence 0"});
  // Two sequences may share a page that is read, but not one that is compacted in place.
  for (std::int32_t const page : {7, 19}) {  // a whole page, and one that both hold in part
    std::vector<std::int32_t> const shared{7, 3, 19, page == 7 ? 7 : 0, page == 7 ? 5 : 19};
    std::string const got = std::to_string(page) + ", also of sequence 0";
    calls.take(csr(shared, ends));
    check_error<ha::ArgumentError>([&] { ha::compress_in_place(calls.compaction, layers, csr(shared, ends)); },
                                   {"page table entry", "named once", got, "keys, sequence 1"});
    ha::KvLayouts const of_values{csr(pages, ends), csr(shared, ends)};
    check_error<ha::ArgumentError>([&] { ha::compress_in_place(calls.compaction, layers, of_values); },
                                   {"page table entry", "named once", got, "values, sequence 1"});
  }
}

TEST_CASE("tables need no places for tokens that no head keeps, but in place", "[cache]") {
  // Of 40 tokens sinks lie in page 0, the window of 12 in pages 7 to 9; the others went back to their allocator.
  std::vector<std::int32_t> const pages{0, -1, -1, -1, -1, -1, -1, 7, 8, 9};
  std::vector<std::int32_t> const length{40};
  ha::PagedShape const shape{.num_sequences = 1, .num_kv_heads = 2, .channels = dim, .num_pages = 10, .page_size = 4};
  auto const source = ha::flash_attention_paged(ha::PageTable::dense(pages.data(), 10), shape);
  auto keys = guarded<float>(source.required_span_size());
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>(i);
  std::vector<ha::LayerKv<float>> const layers{{keys.data(), keys.data()}};
  auto const compress = [&](std::int32_t window) {
    ha::PolicyTable table(1, 2, ha::SinkWindow{.sink = 4, .window = 4});
    table.set(0, 1, ha::WindowOnly{.window = window});
    ha::Compaction const compaction(table, length);
    auto kept = guarded<float>(2 * compaction.kept_total() * dim);
    ha::compress(compaction, std::vector<ha::LayerKv<float const>>{{keys.data(), keys.data()}}, source,
                 ha::ragged(compaction, kept.data(), kept.data() + compaction.kept_total() * dim, dim));
    return kept;
  };
  auto const kept = compress(12);
  REQUIRE(kept[0] == keys[0]);
  REQUIRE(kept[8 * dim] == keys[static_cast<std::size_t>(source.offset(0, 1, 28, 0))]);
  check_error<ha::ArgumentError>([&] { compress(13); },
                                 {"page table entry", "[0, 10)", "-1 for page 6", "compress, keys, sequence 0"});
  ha::Compaction const compaction(ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 4, .window = 12}), length);
  auto values = keys;
  check_error<ha::ArgumentError>(
      [&] {
        ha::compress_in_place(compaction, std::vector<ha::LayerKv<float>>{{keys.data(), values.data()}}, source);
      },
      {"page table entry", "[0, 10)", "-1 for page 1", "compress_in_place, keys, sequence 0"});
}

TEST_CASE("pages that are read and pages that are written may lie in one pool, apart", "[cache]") {
  std::vector<std::int32_t> const length{24};
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 8}), length);
  std::vector<std::int32_t> source{0, 1, 2, 3, 4, 5};  // of which the last two are read
  std::vector<std::int32_t> target{8, 6};
  std::vector<float> keys(10 * 4 * dim);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>(i);
  auto values = keys;
  auto const before = keys;
  std::vector<ha::LayerKv<float>> const pool{{keys.data(), values.data()}};
  ha::PagedShape const shape{.num_sequences = 1, .num_kv_heads = 1, .channels = dim, .num_pages = 10, .page_size = 4};
  auto const compress = [&](std::int64_t num_pages) {
    ha::compress(
        compaction, pool, ha::flash_attention_paged(ha::PageTable::dense(source.data(), 6), shape),
        ha::paged(compaction, pool, {.block_table = target.data(), .table_stride = 2, .page_size = 4}, dim, num_pages));
  };
  for (std::int64_t const num_pages : {0, 10}) {  // whether the pool's size is known or not
    target = {8, 5};
    check_error<ha::ArgumentError>([&] { compress(num_pages); },
                                   {"buffers", "apart from all that is read", "overlapping pages", "compress"});
    REQUIRE(keys == before);
    target = {8, 0};  // a page of the source of which nothing is kept
    compress(num_pages);
    for (std::size_t i = 0; i < 4 * dim; ++i) {
      REQUIRE(keys[8 * 4 * dim + i] == before[4 * 4 * dim + i]);
      REQUIRE(values[i] == before[5 * 4 * dim + i]);
    }
    keys = values = before;
  }
  // A source without a table within the pool.
  check_error<ha::ArgumentError>(
      [&] {
        ha::compress(
            compaction, pool, ha::strided_bhsd(1, 1, 24, dim),
            ha::paged(compaction, pool, {.block_table = target.data(), .table_stride = 2, .page_size = 4}, dim));
      },
      {"buffers", "apart from all that is read", "overlapping pages", "compress"});
}

TEST_CASE("a page belongs to one head alone", "[cache]") {
  std::vector<float> const tensor(2 * 2 * 10 * dim, 1.0F);
  std::vector<ha::LayerKv<float const>> const source(2, {tensor.data(), tensor.data()});
  auto const layout = ha::strided_bhsd(2, 2, 10, dim);
  ha::Compaction const compaction(ha::PolicyTable(2, 2, ha::SinkWindow{.sink = 1, .window = 3}), lengths);
  std::vector<std::int32_t> table{0, 1, 2, 3, 4, 5, 6, 7};
  auto keys = guarded<float>(8 * 4 * dim);
  auto values = keys;
  auto more_keys = keys;
  auto more_values = keys;
  std::vector<ha::LayerKv<float>> pools(2, {keys.data(), values.data()});
  auto const kept = [&](std::int64_t pages) {
    return ha::paged(compaction, pools, {.block_table = table.data(), .table_stride = 1, .page_size = 4}, dim, pages);
  };
  auto const refused = [&](std::int64_t pages, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>([&] { ha::compress(compaction, source, layout, kept(pages)); }, parts);
    check_error<ha::ArgumentError>([&] { ha::validate_tables(compaction, kept(pages)); }, parts);
    REQUIRE(first_difference(keys, guarded<float>(8 * 4 * dim)) == "");
    REQUIRE(first_difference(values, guarded<float>(8 * 4 * dim)) == "");
  };
  table[6] = 1;
  for (std::int64_t const pages : {0, 8}) {  // whether the pool's size is known or not
    refused(pages, {"block table entry", "a page of one head", "1, which meets page 1 of segment 1",
                    "segment 6, page 0, layer 1, sequence 1, KV head 0"});
  }
  // Pools of their own: the same number is another page.
  pools[1] = {more_keys.data(), more_values.data()};
  ha::compress(compaction, source, layout, kept(8));
  keys = values = guarded<float>(8 * 4 * dim);
  table[6] = 5;
  refused(8, {"block table entry", "a page of one head", "5, which meets page 5 of segment 5", "segment 6, page 0"});
  table[6] = -1;
  refused(0, {"block table entry", "a page in [0, 2147483648)", "-1", "segment 6, page 0"});
  table[6] = 6;
  // A pool that begins within another, and keys that are values.
  std::vector<float> wide(16 * 4 * dim);
  pools = {{wide.data(), values.data()}, {wide.data() + 6 * 4 * dim, more_values.data()}};
  table = {0, 1, 2, 3, 0, 1, 2, 3};
  ha::validate_tables(compaction, kept(8));
  table[2] = 7;
  refused(8, {"block table entry", "a page of one head", "1, which meets page 7 of segment 2", "segment 5, page 0"});
  table = {0, 1, 2, 3, 4, 5, 6, 7};
  pools = {{keys.data(), keys.data() + dim}, {more_keys.data(), more_values.data()}};
  refused(8, {"block table entry", "a page of one head's keys or values", "", "layer 0"});
}

TEST_CASE("a policy of one's own names tokens of the sequence, or is refused", "[cache]") {
  auto const layout = ha::strided_bhsd(2, 2, 10, dim);
  SourceCache<float, ha::StridedLayout> cache(layout, layout.required_span_size(), 1, dim, dim, 431);
  auto const before = cache;
  auto kept = guarded<float>(2 * 12 * dim);
  auto const compress = [&](std::int64_t shift) {
    ha::Compaction const compaction(ha::UniformTable(mine::Astray{.shift = shift}, 1, 2), lengths);
    ha::compress(compaction, cache.layers(), layout, ha::ragged(compaction, kept.data(), kept.data() + 12 * dim, dim));
  };
  auto const in_place = [&](std::int64_t shift) {
    ha::Compaction const compaction(ha::UniformTable(mine::Astray{.shift = shift}, 1, 2), lengths);
    ha::compress_in_place(compaction, cache.layers(), layout);
  };
  auto const refused = [&](std::int64_t shift, std::string const& expected, std::string const& got) {
    std::string const where = ", layer 0, sequence 0, KV head 0, row 1";
    check_error<ha::ArgumentError>([&] { compress(shift); }, {"policy 'astray'", expected, got, "compress" + where});
    check_error<ha::ArgumentError>([&] { in_place(shift); },
                                   {"policy 'astray'", expected, got, "compress_in_place" + where});
    REQUIRE(first_difference(kept, guarded<float>(2 * 12 * dim)) == "");
    REQUIRE(first_difference(cache.keys[0], before.keys[0]) == "");
  };
  std::string const range = "above the row before, 7, and below 10";
  refused(1000000, range, "1000008");
  refused(2, range, "10");
  refused(-1, range, "7");  // a token twice
  refused(-100, range, "-92");
  compress(0);
  in_place(0);
  REQUIRE(kept[0] == before.key(0, 0, 0, 7, 0));
}
