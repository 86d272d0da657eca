// Attention over pages of single heads: what attention over a rolling cache of the same policies gives.

#include "support/errors.hpp"
#include "support/paged_chunk.hpp"

#include <headaware/layout/ragged.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

using namespace headaware_test;

TEST_CASE("pages of single heads attend as rolling caches do", "[attention]") {
  for (std::int32_t const page_size : {1, 4, 7, 16}) {
    int checks = 0;
    for_each_paged_chunk(page_size,
                         [&](PagedChunk& chunk, std::int64_t tokens, std::vector<std::int32_t> const& first) {
                           INFO("pages of " << page_size << ", check " << ++checks << ", " << tokens << " queries");
                           for (std::int32_t layer = 0; layer < PagedChunk::layers; ++layer) {
                             auto const expected = chunk.over_slots(layer, tokens, first);
                             auto const output = chunk.over_pages(layer, tokens, first);
                             float worst = 0;
                             for (std::size_t i = 0; i < output.size(); ++i) {
                               worst = std::max(worst, std::abs(output[i] - expected[i]));
                             }
                             CHECK(worst < 2e-6F);
                           }
                         });
  }
}

TEST_CASE("pages of single heads show exactly the tokens kept", "[attention]") {
  PagedChunk chunk(4);
  chunk.append({130, 7, 0});
  chunk.append({3, 3, 3});
  auto const table = PagedChunk::table();
  for (std::int32_t layer = 0; layer < PagedChunk::layers; ++layer) {
    ha::HeadPagesView const view(chunk.pages.view(), layer, chunk.pages.state().lengths().data(), chunk.page_stride);
    REQUIRE(view.row_run(32) == 8);
    for (std::int32_t b = 0; b < PagedChunk::sequences; ++b) {
      for (std::int32_t h = 0; h < PagedChunk::num_kv_heads; ++h) {
        auto const segment = view.head(b, h);
        std::int64_t const length = chunk.pages.length(b);
        std::vector<std::int64_t> kept;
        table.visit(layer, h, [&](auto const& policy) {
          for (std::int64_t t = 0; t < length; ++t) {
            if (policy.keeps(t, length)) kept.push_back(t);
          }
        });
        REQUIRE(segment.rows() == static_cast<std::int64_t>(kept.size()));
        for (std::int64_t row = 0; row < segment.rows(); ++row) {
          std::int64_t const token = kept[static_cast<std::size_t>(row)];
          REQUIRE(segment.position(row) == token);
          REQUIRE(segment.sees(token, length - 1));
          REQUIRE(segment.offset(row, 32) ==
                  chunk.pages.page(layer, b, h, token / 4) * chunk.page_stride + token % 4 * 32);
        }
      }
    }
  }
}

TEST_CASE("what views of pages of single heads refuse", "[attention]") {
  PagedChunk const chunk(4);
  auto const lengths = chunk.pages.state().lengths().data();
  using Error = ha::ArgumentError;
  check_error<Error>([&] { (void)ha::HeadPagesView(chunk.pages.view(), 2, lengths); },
                     {"layer", "[0, 2)", "2", "HeadPagesView"});
  check_error<Error>([&] { (void)ha::HeadPagesView(chunk.pages.view(), 0, lengths, -1); },
                     {"page stride", ">= 0", "-1", "HeadPagesView"});
  check_error<Error>([&] { (void)ha::HeadPagesView::of_chunk(chunk.pages.view(), 0, lengths, 11); },
                     {"query_tokens", "1 to 10, the slack and 1", "11", "HeadPagesView"});
  check_error<Error>([&] { (void)chunk.over_pages(0, 10, {}); },
                     {"first_positions", "several queries' windows", "nullptr", "attend, HeadPagesView"});
  ha::HeadPagesView const view(chunk.pages.view(), 0, lengths);
  auto shape = PagedChunk::shape(1);
  shape.num_sequences = 4;
  check_error<Error>([&] { view.check(shape, {}); }, {"sequences", "at most 3", "4", "attend, HeadPagesView"});
  shape = PagedChunk::shape(1);
  shape.num_kv_heads = 3;
  check_error<Error>([&] { view.check(shape, {}); }, {"KV heads", "6", "3", "attend, HeadPagesView"});
}

namespace {

/// Attention of one query head over views whose tables say what is not so.
template <class View>
void refuse_view(View const& view, std::int32_t num_kv_heads, ha::ErrorDetail const& parts) {
  ha::AttentionShape const shape{
      .num_sequences = 2, .num_query_heads = num_kv_heads, .num_kv_heads = num_kv_heads, .head_dim = 4};
  std::vector<float> const rows(4096);
  std::vector<float> const queries(64);
  std::vector<float> output(64, 77);
  auto const layout = ha::strided_bhsd(2, num_kv_heads, 1, 4);
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend(shape, ha::AttentionQueries{queries.data(), layout}, ha::KeptCache{rows.data(), rows.data(), view},
                   ha::AttentionOutput{output.data(), layout});
      },
      parts);
  REQUIRE(output == std::vector<float>(64, 77));
  check_error<ha::ArgumentError>([&] { ha::validate_tables(shape, view); }, parts);
}

}  // namespace

TEST_CASE("views whose tables in host memory name what is not there are refused", "[attention]") {
  using Table = std::vector<std::int32_t>;
  auto const csr = [](Table const& pages, Table const& indptr, Table const& last) {
    return ha::PagedView::csr(pages.data(), indptr.data(), last.data(), 1, 4, 0, 0, 20);
  };
  Table const pages{3, 19, 0};
  Table const ends{0, 2, 3};
  Table const last{4, 1};
  Table broken{3, 19, -1};
  refuse_view(csr(broken, ends, last), 1, {"page table entry", "[0, 19]", "-1", "PagedView, sequence 1, KV head 0"});
  broken[2] = 20;
  refuse_view(csr(broken, ends, last), 1, {"page table entry", "[0, 19]", "20", "PagedView, sequence 1, KV head 0"});
  Table const descending{0, 2, 1};
  refuse_view(csr(pages, descending, last), 1, {"page table's indptr", "[2, ", "1", "sequence 1"});
  Table const negative{-1, 2, 3};
  refuse_view(csr(pages, negative, last), 1, {"page table's indptr", "[0, ", "-1", "sequence 0"});
  for (std::int32_t const bad : {-3, 0, 5}) {
    Table const length{4, bad};
    refuse_view(csr(pages, ends, length), 1, {"last_page_len", "[1, 4]", std::to_string(bad), "sequence 1"});
  }
  Table const dense{3, 4, 5, 6};
  Table lengths{8, 9};
  refuse_view(ha::PagedView::dense(dense.data(), 2, lengths.data(), 1, 4), 1,
              {"rows held", "[0, 8]", "9", "PagedView, sequence 1"});
  lengths = {8, -1};
  refuse_view(ha::PagedView::dense(dense.data(), 2, lengths.data(), 1, 4), 1,
              {"rows held", "[0, 8]", "-1", "PagedView, sequence 1, KV head 0"});
  refuse_view(ha::PaddedView{lengths.data(), 1, 8}, 1, {"rows held", "at least 0", "-1", "PaddedView, sequence 1"});
  lengths = {8, 9};
  for (bool const in_rows : {false, true}) {
    check_error<ha::ArgumentError>(
        [&] {
          (void)(in_rows ? ha::PagedView::csr(pages.data(), ends.data(), last.data(), 1, 4, 0, 0, -1)
                         : ha::PagedView::dense(dense.data(), 2, lengths.data(), 1, 4, 0, 0, -1));
        },
        {"pages", ">= 0", "-1", "PagedView"});
  }
  check_error<ha::ArgumentError>(
      [&] {
        ha::PaddedView{lengths.data(), 1, -8}.check({.num_kv_heads = 1}, {});
      },
      {"head_rows", ">= 0", "-8", "attend, PaddedView"});
  refuse_view(ha::PaddedView{lengths.data(), 1, 8}, 1, {"rows held", "at most 8", "9", "PaddedView, sequence 1"});
  Table const back{4, 9, 8};
  refuse_view(ha::RaggedView{back.data(), 1}, 1, {"rows held", ">= 0", "-1", "RaggedView, sequence 1, KV head 0"});
  Table const offsets{-1, 4, 9};
  refuse_view(ha::RaggedView{offsets.data(), 1}, 1, {"offsets", ">= 0", "-1", "RaggedView, sequence 0, KV head 0"});

  ha::PolicyTable const table(1, 2, ha::SinkWindow{.sink = 2, .window = 6});
  ha::RollingSlots const slots(table, 2, {});
  lengths = {3, -1};
  refuse_view(ha::RollingView{slots.view(), 0, lengths.data()}, 2, {"length", "[0, ", "-1", "RollingView, sequence 1"});
  ha::PagedHeads heads(table, {.num_sequences = 2, .page_size = 4, .num_pages = 20});
  (void)heads.append(Table{30, 9});
  auto const at = [&](Table const& of) { return ha::HeadPagesView(heads.view(), 0, of.data()); };
  refuse_view(at(lengths), 2, {"length", "[0, ", "-1", "HeadPagesView, sequence 1"});
  lengths = {30, 9};
  auto fewer = heads.view();
  fewer.num_pages = *std::max_element(heads.table().begin(), heads.table().end());
  std::string const pool = "[0, " + std::to_string(fewer.num_pages) + ")";
  refuse_view(ha::HeadPagesView(fewer, 0, lengths.data()), 2,
              {"page table entry", pool, std::to_string(fewer.num_pages) + " for page", "HeadPagesView"});
  ha::RollingSlots const short_slots(ha::PolicyTable(1, 2), 2, {.max_tokens = 29});
  refuse_view(ha::RollingView{short_slots.view(), 0, lengths.data()}, 2,
              {"length", "[0, 29]", "30", "RollingView, sequence 0"});
  // Longer than what the pages hold: a length of the next step.
  lengths = {30, 14};
  refuse_view(at(lengths), 2, {"page table entry", "[0, 20)", "-1 for page 3", "HeadPagesView, sequence 1, KV head 0"});

  // Tables of queries.
  ha::AttentionShape const shape{
      .num_sequences = 2, .num_query_heads = 1, .num_kv_heads = 1, .query_tokens = 3, .head_dim = 4};
  std::vector<float> rows(64);
  std::vector<float> output(64);
  Table const cu_seqlens{0, 2, 6};
  Table const held{0, 0, 0};
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend(shape, ha::AttentionQueries{rows.data(), ha::ragged_thd(cu_seqlens.data(), 2, 6, 1, 4)},
                   ha::KeptCache{rows.data(), rows.data(), ha::RaggedView{held.data(), 1}},
                   ha::AttentionOutput{output.data(), ha::strided_bhsd(2, 1, 3, 4)});
      },
      {"cu_seqlens", "at least 3 rows", "0 to 2", "attend, queries, sequence 0"});
}
