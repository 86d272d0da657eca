#include "host/layout/definition.hpp"
#include "support/catch.hpp"

#include <headaware/error.hpp>
#include <headaware/layout/engines.hpp>

#include <cstdint>
#include <random>
#include <vector>

// Each test writes down the tensor as the engine documents it and asks where an element is.

namespace ha = headaware;
using layout_test::Array;
using layout_test::Pages;

namespace {

/// Three sequences on a pool of which every page is handed out, in random order.
struct PagedCase {
  std::int64_t page_size = GENERATE(1, 3, 16);
  std::int64_t heads = GENERATE(1, 2);
  std::int64_t dim = GENERATE(8, 24);
  std::int64_t num_pages = 7;
  std::mt19937 random{5};
  std::vector<std::int64_t> lengths{page_size, 2 * page_size - (page_size > 1 ? 1 : 0), 1};
  Pages pages{lengths, page_size, num_pages, random};

  [[nodiscard]] ha::PagedShape shape() const {
    return {static_cast<std::int64_t>(lengths.size()), heads, dim, num_pages, page_size};
  }
  [[nodiscard]] ha::PageTable dense() const {
    return ha::PageTable::dense(pages.dense.data(), pages.max_pages, pages.row_stride);
  }
  [[nodiscard]] ha::PageTable csr() const { return ha::PageTable::csr(pages.indices.data(), pages.indptr.data()); }
  [[nodiscard]] std::int64_t page(std::int64_t s, std::int64_t t) const { return pages.page(s, t / page_size); }
  [[nodiscard]] std::int64_t slot(std::int64_t t) const { return t % page_size; }
  template <class Layout, class Expected>
  void check(Layout const& layout, std::int64_t tensor_size, Expected&& expected) const {
    CAPTURE(page_size, heads, dim);
    layout_test::check_layout(layout, lengths, heads, dim, tensor_size, expected);
  }
};

}  // namespace

TEST_CASE("Hugging Face: [batch, kv_heads, tokens, head_dim]", "[layout][engines]") {
  std::vector<std::int64_t> const lengths{6, 6, 6};
  Array const cache{3, 2, 6, 8};
  layout_test::check_layout(ha::hugging_face(3, 2, 6, 8), lengths, 2, 8, cache.size(),
                            [&](auto s, auto h, auto t, auto c) { return cache.at(s, h, t, c); });
}

TEST_CASE("FlashAttention: [batch, tokens, kv_heads, head_dim]", "[layout][engines]") {
  std::vector<std::int64_t> const lengths{6, 6, 6};
  Array const cache{3, 6, 2, 8};
  layout_test::check_layout(ha::flash_attention(3, 6, 2, 8), lengths, 2, 8, cache.size(),
                            [&](auto s, auto h, auto t, auto c) { return cache.at(s, t, h, c); });
}

TEST_CASE("FlashAttention varlen: [total, kv_heads, head_dim] by cu_seqlens", "[layout][engines]") {
  std::vector<std::int64_t> const lengths{4, 1, 6};
  std::vector<std::int32_t> const cu_seqlens{0, 4, 5, 11};
  Array const cache{11, 2, 8};
  layout_test::check_layout(
      ha::flash_attention_varlen(cu_seqlens.data(), 3, 11, 2, 8), lengths, 2, 8, cache.size(),
      [&](auto s, auto h, auto t, auto c) { return cache.at(cu_seqlens[static_cast<std::size_t>(s)] + t, h, c); });
}

TEST_CASE("FlashAttention paged: [num_blocks, page_block_size, kv_heads, head_dim]", "[layout][engines]") {
  PagedCase const test;
  Array const cache{test.num_pages, test.page_size, test.heads, test.dim};
  test.check(ha::flash_attention_paged(test.dense(), test.shape()), cache.size(),
             [&](auto s, auto h, auto t, auto c) { return cache.at(test.page(s, t), test.slot(t), h, c); });
}

TEST_CASE("FlashInfer split: [pages, page, kv_heads, head_dim], [pages, kv_heads, page, head_dim]",
          "[layout][engines]") {
  PagedCase const test;
  Array const nhd{test.num_pages, test.page_size, test.heads, test.dim};
  test.check(ha::flashinfer_split(test.csr(), test.shape(), ha::PageOrder::nhd), nhd.size(),
             [&](auto s, auto h, auto t, auto c) { return nhd.at(test.page(s, t), test.slot(t), h, c); });
  Array const hnd{test.num_pages, test.heads, test.page_size, test.dim};
  test.check(ha::flashinfer_split(test.csr(), test.shape(), ha::PageOrder::hnd), hnd.size(),
             [&](auto s, auto h, auto t, auto c) { return hnd.at(test.page(s, t), h, test.slot(t), c); });
}

TEST_CASE("FlashInfer joined: [pages, 2, page, kv_heads, head_dim], [pages, 2, kv_heads, page, head_dim]",
          "[layout][engines]") {
  PagedCase const test;
  std::int64_t const plane = test.page_size * test.heads * test.dim;
  Array const nhd{test.num_pages, 2, test.page_size, test.heads, test.dim};
  auto const joined = ha::flashinfer_joined(test.csr(), test.shape(), ha::PageOrder::nhd);
  test.check(joined.keys, nhd.size() - plane,
             [&](auto s, auto h, auto t, auto c) { return nhd.at(test.page(s, t), 0, test.slot(t), h, c); });
  test.check(joined.values, nhd.size(),
             [&](auto s, auto h, auto t, auto c) { return nhd.at(test.page(s, t), 1, test.slot(t), h, c); });
  Array const hnd{test.num_pages, 2, test.heads, test.page_size, test.dim};
  auto const joined_hnd = ha::flashinfer_joined(test.dense(), test.shape(), ha::PageOrder::hnd);
  test.check(joined_hnd.keys, hnd.size() - plane,
             [&](auto s, auto h, auto t, auto c) { return hnd.at(test.page(s, t), 0, h, test.slot(t), c); });
  test.check(joined_hnd.values, hnd.size(),
             [&](auto s, auto h, auto t, auto c) { return hnd.at(test.page(s, t), 1, h, test.slot(t), c); });
}

TEST_CASE("vLLM flash: [2, num_blocks, block_size, kv_heads, head_dim]", "[layout][engines]") {
  PagedCase const test;
  std::int64_t const plane = test.num_pages * test.page_size * test.heads * test.dim;
  Array const nhd{2, test.num_pages, test.page_size, test.heads, test.dim};
  auto const joined = ha::vllm_flash(test.dense(), test.shape());
  test.check(joined.keys, nhd.size() - plane,
             [&](auto s, auto h, auto t, auto c) { return nhd.at(0, test.page(s, t), test.slot(t), h, c); });
  test.check(joined.values, nhd.size(),
             [&](auto s, auto h, auto t, auto c) { return nhd.at(1, test.page(s, t), test.slot(t), h, c); });
  Array const hnd{2, test.num_pages, test.heads, test.page_size, test.dim};
  auto const joined_hnd = ha::vllm_flash(test.dense(), test.shape(), ha::PageOrder::hnd);
  test.check(joined_hnd.values, hnd.size(),
             [&](auto s, auto h, auto t, auto c) { return hnd.at(1, test.page(s, t), h, test.slot(t), c); });
}

TEST_CASE("vLLM paged attention: K [blocks, heads, dim / x, block, x], V [blocks, heads, dim, block]",
          "[layout][engines]") {
  PagedCase const test;
  std::int64_t const x = GENERATE(4, 8);
  CAPTURE(x);
  Array const key_cache{test.num_pages, test.heads, test.dim / x, test.page_size, x};
  Array const value_cache{test.num_pages, test.heads, test.dim, test.page_size};
  auto const layouts = ha::vllm_paged_attention(test.dense(), test.shape(), x);
  test.check(layouts.keys, key_cache.size(), [&](auto s, auto h, auto t, auto c) {
    return key_cache.at(test.page(s, t), h, c / x, test.slot(t), c % x);
  });
  test.check(layouts.values, value_cache.size(),
             [&](auto s, auto h, auto t, auto c) { return value_cache.at(test.page(s, t), h, c, test.slot(t)); });
  CHECK(layouts.values.tokens_adjacent() == (test.page_size > 1));
  CHECK_THROWS_AS(ha::vllm_paged_attention(test.dense(), test.shape(), 5), ha::ArgumentError);
}

TEST_CASE("TensorRT-LLM: pool [blocks, layers, 2, kv_heads, tokens, head_dim], offsets [sequences, 2, max_blocks]",
          "[layout][engines]") {
  PagedCase const test;
  std::int64_t const layers = GENERATE(1, 3);
  CAPTURE(layers);
  // What the engine's cache manager writes into its table: flat places in [blocks, layers, 2] of layer 0.
  Array const blocks{test.num_pages, layers, 2};
  Array const table{static_cast<std::int64_t>(test.lengths.size()), 2, test.pages.max_pages};
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(table.size()), -1);
  for (std::size_t s = 0; s < test.lengths.size(); ++s) {
    for (std::size_t i = 0; i < test.pages.rows[s].size(); ++i) {
      for (std::int64_t kv = 0; kv < 2; ++kv) {
        offsets[static_cast<std::size_t>(table.at(s, kv, i))] =
            static_cast<std::int32_t>(blocks.at(test.pages.rows[s][i], 0, kv));
      }
    }
  }
  Array const pool{test.num_pages, layers, 2, test.heads, test.page_size, test.dim};
  auto const layouts = ha::tensorrt_llm(offsets.data(), test.pages.max_pages, test.shape(), layers);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    std::int64_t const base = pool.at(0, layer, 0, 0, 0, 0);
    auto const place = [&](auto kv, auto s, auto h, auto t, auto c) {
      return pool.at(test.page(s, t), layer, kv, h, test.slot(t), c) - base;
    };
    auto const end = [&](auto kv) {
      return pool.at(test.num_pages - 1, layer, kv, test.heads - 1, test.page_size - 1, test.dim - 1) - base + 1;
    };
    test.check(layouts.keys, end(0), [&](auto s, auto h, auto t, auto c) { return place(0, s, h, t, c); });
    test.check(layouts.values, end(1), [&](auto s, auto h, auto t, auto c) { return place(1, s, h, t, c); });
  }
  CHECK(layouts.keys.token_capacity() == test.pages.max_pages * test.page_size);
  CHECK_THROWS_AS(ha::tensorrt_llm(offsets.data(), 4, test.shape(), 0), ha::ArgumentError);
}

TEST_CASE("TensorRT-LLM with plain block numbers: [blocks, 2, kv_heads, tokens, head_dim]", "[layout][engines]") {
  PagedCase const test;
  Array const pool{test.num_pages, 2, test.heads, test.page_size, test.dim};
  auto const layouts = ha::flashinfer_joined(test.dense(), test.shape(), ha::PageOrder::hnd);
  test.check(layouts.values, pool.size(),
             [&](auto s, auto h, auto t, auto c) { return pool.at(test.page(s, t), 1, h, test.slot(t), c); });
}

TEST_CASE("llama.cpp: K [n_stream, kv_size, n_embd_k_gqa], V likewise or transposed", "[layout][engines]") {
  std::int64_t const streams = GENERATE(1, 3);
  std::int64_t const cells = 5;
  std::int64_t const heads = GENERATE(1, 2);
  std::int64_t const key_dim = 8;
  std::int64_t const value_dim = GENERATE(4, 8);
  std::int64_t const width = heads * value_dim + GENERATE(0, 16);
  CAPTURE(streams, heads, value_dim, width);
  std::vector<std::int64_t> const lengths(static_cast<std::size_t>(streams), cells);
  ha::LlamaCppShape shape{.n_stream = streams,
                          .kv_size = cells,
                          .n_head_kv = heads,
                          .n_embd_head_k = key_dim,
                          .n_embd_head_v = value_dim,
                          .v_trans = false,
                          .n_embd_v_gqa = width};
  Array const keys{streams, cells, heads * key_dim};
  Array const values{streams, cells, width};
  Array const transposed{streams, width, cells};
  std::int64_t const surplus = width - heads * value_dim;  // the last cell's values, or rows, that no head has

  auto const flash = ha::llama_cpp(shape);
  layout_test::check_layout(flash.keys, lengths, heads, key_dim, keys.size(),
                            [&](auto s, auto h, auto t, auto c) { return keys.at(s, t, h * key_dim + c); });
  layout_test::check_layout(flash.values, lengths, heads, value_dim, values.size() - surplus,
                            [&](auto s, auto h, auto t, auto c) { return values.at(s, t, h * value_dim + c); });
  CHECK_FALSE(flash.values.tokens_adjacent());
  shape.v_trans = true;
  auto const plain = ha::llama_cpp(shape);
  layout_test::check_layout(plain.values, lengths, heads, value_dim, transposed.size() - surplus * cells,
                            [&](auto s, auto h, auto t, auto c) { return transposed.at(s, h * value_dim + c, t); });
  CHECK(plain.values.tokens_adjacent());
}

TEST_CASE("llama.cpp, unified: the table says which cell a token is in", "[layout][engines]") {
  std::mt19937 random(3);
  std::int64_t const cells = 12;
  std::int64_t const heads = 2;
  std::vector<std::int64_t> lengths{3, 5, 1};
  Pages const table(lengths, 1, cells, random);
  ha::LlamaCppShape shape{.kv_size = cells, .n_head_kv = heads, .n_embd_head_k = 8, .n_embd_head_v = 4};
  Array const keys{cells, heads * 8};
  Array const values{cells, heads * 4};
  Array const transposed{heads * 4, cells};
  auto const csr = ha::PageTable::csr(table.indices.data(), table.indptr.data());
  auto const flash = ha::llama_cpp_cells(csr, 3, shape);
  layout_test::check_layout(flash.keys, lengths, heads, 8, keys.size(),
                            [&](auto s, auto h, auto t, auto c) { return keys.at(table.page(s, t), h * 8 + c); });
  layout_test::check_layout(flash.values, lengths, heads, 4, values.size(),
                            [&](auto s, auto h, auto t, auto c) { return values.at(table.page(s, t), h * 4 + c); });
  shape.v_trans = true;
  auto const dense = ha::PageTable::dense(table.dense.data(), table.max_pages, table.row_stride);
  auto const plain = ha::llama_cpp_cells(dense, 3, shape);
  layout_test::check_layout(plain.values, lengths, heads, 4, transposed.size(),
                            [&](auto s, auto h, auto t, auto c) { return transposed.at(h * 4 + c, table.page(s, t)); });
  CHECK(plain.values.tokens_adjacent());
  CHECK_FALSE(plain.keys.tokens_adjacent());
  shape.n_stream = 2;
  CHECK_THROWS_AS(ha::llama_cpp_cells(dense, 3, shape), ha::ArgumentError);
  shape.n_embd_v_gqa = 7;
  CHECK_THROWS_AS(ha::llama_cpp(shape), ha::ArgumentError);
}

TEST_CASE("SGLang: slots [slots, kv_heads, head_dim] by req_to_token", "[layout][engines]") {
  std::mt19937 random(9);
  std::int64_t const slots = 20;
  std::vector<std::int64_t> lengths{4, 0, 7, 2};
  Pages const table(lengths, 1, slots, random);
  Array const pool{slots, 2, 8};
  ha::PagedShape const shape{.num_sequences = 4, .num_kv_heads = 2, .channels = 8, .num_pages = slots};
  auto const expected = [&](auto s, auto h, auto t, auto c) { return pool.at(table.page(s, t), h, c); };
  auto const req_to_token = ha::PageTable::dense(table.dense.data(), table.max_pages, table.row_stride);
  layout_test::check_layout(ha::sglang(req_to_token, shape), lengths, 2, 8, pool.size(), expected);
  auto const kv_indices = ha::PageTable::csr(table.indices.data(), table.indptr.data());
  layout_test::check_layout(ha::sglang(kv_indices, shape), lengths, 2, 8, pool.size(), expected);
  ha::PagedShape paged = shape;
  paged.page_size = 16;
  CHECK_THROWS_AS(ha::sglang(req_to_token, paged), ha::ArgumentError);
}

TEST_CASE("engines' caches go beyond 32 bits", "[layout][engines]") {
  std::int32_t const table[] = {0, 262143};
  ha::PagedShape const shape{
      .num_sequences = 1, .num_kv_heads = 8, .channels = 128, .num_pages = 262144, .page_size = 16};
  // Keys fill 2^32 elements, so values lie beyond them, up to 2^33.
  auto const flash = ha::vllm_flash(ha::PageTable::dense(table, 2), shape);
  CHECK(flash.keys.offset(0, 7, 31, 127) == std::int64_t{4294967295});
  CHECK(flash.values.offset(0, 0, 0, 0) == std::int64_t{4294967296});
  CHECK(flash.values.offset(0, 7, 31, 127) == std::int64_t{8589934591});
  auto const joined = ha::flashinfer_joined(ha::PageTable::dense(table, 2), shape, ha::PageOrder::hnd);
  CHECK(joined.values.offset(0, 7, 31, 127) == std::int64_t{8589934591});
  auto const older = ha::vllm_paged_attention(ha::PageTable::dense(table, 2), shape, 8);
  CHECK(older.keys.offset(0, 7, 31, 127) == std::int64_t{4294967295});
  CHECK(older.values.offset(0, 7, 31, 127) == std::int64_t{4294967295});
  std::int32_t const offsets[] = {0, 524286, 1, 524287};
  auto const pool = ha::tensorrt_llm(offsets, 2, shape);
  CHECK(pool.values.offset(0, 7, 31, 127) == std::int64_t{8589934591});
  CHECK(pool.values.required_span_size() == std::int64_t{8589934592});
  auto const llama = ha::llama_cpp(
      {.n_stream = 64, .kv_size = 131072, .n_head_kv = 8, .n_embd_head_k = 128, .n_embd_head_v = 128, .v_trans = true});
  CHECK(llama.keys.offset(63, 7, 131071, 127) == std::int64_t{8589934591});
  CHECK(llama.values.offset(63, 7, 131071, 127) == std::int64_t{8589934591});
}
