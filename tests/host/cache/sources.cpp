// Every form of cache from the tensors of engines and from layouts of a caller's own.

#include "support/host_forms.hpp"

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

constexpr std::int32_t num_layers = 2;
constexpr std::int32_t heads = 3;
/// A sequence in the middle has no token.
std::vector<std::int32_t> const lengths{37, 0, 50, 1};

template <class T, class Source>
void check_source(Source const& source, std::int64_t extent, Channels const& channels, unsigned seed) {
  SourceCache<T, Source> const cache(source, extent, num_layers, channels.key, channels.value, seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 3; ++i) {
    INFO("seed " << seed << ", table " << i);
    ha::Compaction const compaction(random_table(num_layers, heads, 50, random), lengths);
    check_host_forms(cache, compaction, lengths, i % 2 == 0 ? 16 : 7, seed);
  }
}

/// Page numbers of every sequence in random order, with pages of nobody among them.
struct Pages {
  std::vector<std::int32_t> dense;    ///< [sequences, max_pages]; unused entries name no page
  std::vector<std::int32_t> indices;  ///< the same in CSR form
  std::vector<std::int32_t> indptr{0};
  std::int64_t max_pages = 0;
  std::int64_t pool = 0;

  Pages(std::int64_t page_size, unsigned seed) {
    for (auto const length : lengths) {
      max_pages = std::max(max_pages, (length + page_size - 1) / page_size);
      pool += (length + page_size - 1) / page_size;
    }
    pool += 2;
    std::vector<std::int32_t> order(static_cast<std::size_t>(pool));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(seed);
    std::shuffle(order.begin(), order.end(), random);
    for (auto const length : lengths) {
      std::int64_t const pages = (length + page_size - 1) / page_size;
      for (std::int64_t i = 0; i < max_pages; ++i) {
        dense.push_back(i < pages ? order[indices.size()] : -1000000);
        if (i < pages) indices.push_back(order[indices.size()]);
      }
      indptr.push_back(static_cast<std::int32_t>(indices.size()));
    }
  }
  [[nodiscard]] ha::PageTable dense_table() const { return ha::PageTable::dense(dense.data(), max_pages); }
  [[nodiscard]] ha::PageTable csr_table() const { return ha::PageTable::csr(indices.data(), indptr.data()); }
};

struct HeadsFastest {
  std::int64_t tokens;
  std::int64_t channels;
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return ((b * tokens + t) * channels + c) * heads + h;
  }
};

/// Tokens from the newest to the oldest, rows in one piece, which it says; nothing else.
struct NewestFirst {
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return ((b * heads + h) * 50 + (49 - t)) * 6 + c;
  }
  [[nodiscard]] std::int64_t channel_run() const { return 6; }
};

}  // namespace

TEST_CASE("variable-length tensors with empty sequences", "[cache]") {
  std::vector<std::int32_t> cu_seqlens{0};
  for (auto const length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
  auto const thd = ha::flash_attention_varlen(cu_seqlens.data(), 4, 88, heads, 5);
  check_source<std::uint8_t>(thd, thd.required_span_size(), {5, 5}, 111);
}

TEST_CASE("paged tensors of each engine, block tables in any order", "[cache]") {
  for (std::int64_t const size : {1, 4, 7}) {
    Pages const pages(size, 112);
    ha::PagedShape const shape{
        .num_sequences = 4, .num_kv_heads = heads, .channels = 8, .num_pages = pages.pool, .page_size = size};
    std::int64_t const elements = pages.pool * size * heads * 8;
    for (auto const order : {ha::PageOrder::nhd, ha::PageOrder::hnd}) {
      auto const split = ha::flashinfer_split(pages.csr_table(), shape, order);
      REQUIRE(split.required_span_size() == elements);
      check_source<std::uint16_t>(split, elements, {8, 8}, 113);
      check_source<std::uint16_t>(ha::flashinfer_joined(pages.csr_table(), shape, order), 2 * elements, {8, 8}, 114);
      check_source<std::uint16_t>(ha::vllm_flash(pages.dense_table(), shape, order), 2 * elements, {8, 8}, 115);
    }
    check_source<std::uint16_t>(ha::vllm_paged_attention(pages.dense_table(), shape, 4), elements, {8, 8}, 116);
    check_source<std::uint16_t>(ha::vllm_paged_attention(pages.csr_table(), shape, 8), elements, {8, 8}, 117);
  }
}

TEST_CASE("pools that count half blocks, and cells that sequences share", "[cache]") {
  Pages const pages(4, 118);
  std::vector<std::int32_t> offsets;
  for (std::size_t b = 0; b < 4; ++b) {
    for (std::int32_t const plane : {0, 1}) {
      for (std::int64_t i = 0; i < pages.max_pages; ++i) {
        offsets.push_back(pages.dense[b * static_cast<std::size_t>(pages.max_pages) + static_cast<std::size_t>(i)] * 6 +
                          plane);
      }
    }
  }
  ha::PagedShape const shape{
      .num_sequences = 4, .num_kv_heads = heads, .channels = 8, .num_pages = pages.pool, .page_size = 4};
  check_source<std::uint16_t>(ha::tensorrt_llm(offsets.data(), pages.max_pages, shape, 3),
                              pages.pool * 6 * heads * 4 * 8, {8, 8}, 119);

  Pages const cells(1, 120);
  for (bool const transposed : {false, true}) {
    ha::LlamaCppShape const llama{
        .kv_size = cells.pool, .n_head_kv = heads, .n_embd_head_k = 6, .n_embd_head_v = 4, .v_trans = transposed};
    check_source<std::uint16_t>(ha::llama_cpp_cells(cells.dense_table(), 4, llama), cells.pool * heads * 6, {6, 4},
                                121);
  }
}

TEST_CASE("layouts of a caller's own, with the one function and with one more", "[cache]") {
  ha::KvLayouts<HeadsFastest, HeadsFastest> const own{{50, 6}, {60, 3}};
  check_source<std::uint16_t>(own, 4 * 50 * 6 * heads, {6, 3}, 122);
  check_source<std::uint16_t>(NewestFirst{}, 4 * 50 * 6 * heads, {6, 6}, 123);
}

TEST_CASE("policies of a caller's own and keep-lists, into every form", "[cache]") {
  constexpr unsigned seed = 124;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  SourceCache<std::uint16_t, NewestFirst> const cache({}, 4 * 50 * 6 * heads, num_layers, 6, 6, seed);
  std::vector<std::vector<std::int32_t>> entries(num_layers * 4 * heads);
  std::vector<ha::KeepList> lists(entries.size());
  for (std::size_t i = 0; i < lists.size(); ++i) {
    if (random() % 4 == 0) continue;
    std::int32_t const length = lengths[i / heads % 4];
    for (std::int32_t t = 0; t < length; ++t) {
      if (random() % 3 == 0) entries[i].push_back(t);
    }
    entries[i].reserve(1);  // an empty list is a list, too
    lists[i] = {entries[i].data(), static_cast<std::int64_t>(entries[i].size())};
  }
  ha::UniformTable const below(ha::SinkWindow{.sink = 2, .window = 9}, num_layers, heads);
  ha::Compaction const compaction(ha::WithKeepLists(below, lists.data(), 4), lengths);
  check_host_forms(cache, compaction, lengths, 7, seed);
}
