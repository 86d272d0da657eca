#pragma once

// The same tokens in pages of single heads and in a rolling cache of the same policies, for attention over both.

#include "support/kept_rows.hpp"
#include "support/rolled_chunk.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// Three sequences; heads with every kind of policy, in the first of two layers other ones than in the second. Keys and
/// values of a page lie one after the other, with a gap.
struct PagedChunk {
  static constexpr std::int32_t sequences = 3;
  static constexpr std::int32_t layers = 2;
  static constexpr std::int32_t num_kv_heads = RolledChunk::num_kv_heads;
  static constexpr std::int32_t num_query_heads = RolledChunk::num_query_heads;
  static constexpr std::int64_t head_dim = 32;
  static constexpr std::int32_t slack = 9;

  ha::PagedHeads pages;
  std::int64_t page_stride;
  std::vector<float> pool;
  std::vector<float> keys;  ///< of the rolling cache
  std::vector<float> values;
  ha::RollingState state{sequences};
  unsigned seed = 1;

  static ha::PolicyTable table() {
    ha::PolicyTable const one = RolledChunk::table();
    ha::PolicyTable result(layers, num_kv_heads, ha::SinkWindow{.sink = 5, .window = 23});
    for (std::int32_t h = 0; h < num_kv_heads; ++h) {
      one.visit(0, h, [&](auto const& policy) { result.set(0, h, policy); });
    }
    result.set(1, 2, ha::WindowOnly{.window = 1});
    return result;
  }

  explicit PagedChunk(std::int32_t page_size)
      : pages(table(), {.num_sequences = sequences,
                        .page_size = page_size,
                        .num_pages = 12000 / page_size,
                        .limits = {.max_tokens = 400, .slack = slack}}),
        page_stride(2 * page_size * head_dim + 8) {
    pool.resize(static_cast<std::size_t>(pages.shape().num_pages * page_stride), 99.0F);
    keys.resize(static_cast<std::size_t>(pages.slots().rows_total() * head_dim), 99.0F);
    values.resize(keys.size(), 99.0F);
  }
  [[nodiscard]] std::int64_t value_offset() const { return pages.shape().page_size * head_dim; }
  [[nodiscard]] auto rolling() {
    return ha::rolling(pages.slots(), pages.slots().view(), keys.data(), values.data(), head_dim);
  }

  /// New tokens of every sequence, in both caches.
  void append(std::vector<std::int32_t> const& counts) {
    std::int32_t const most = *std::max_element(counts.begin(), counts.end());
    auto const elements = std::int64_t{sequences} * most * num_kv_heads * head_dim;
    std::vector<std::vector<float>> tensors;
    std::vector<ha::LayerKv<float const>> tokens;
    for (int i = 0; i < 2 * layers; ++i) tensors.push_back(random_elements<float>(elements, ++seed));
    for (std::size_t l = 0; l < layers; ++l) tokens.push_back({tensors[2 * l].data(), tensors[2 * l + 1].data()});
    auto const layout = ha::strided_bshd(sequences, most, num_kv_heads, head_dim);
    ha::append(pages, pages.append(counts), tokens, layout,
               ha::PageStorage<float>{pool.data(), pool.data() + value_offset(), head_dim, head_dim, page_stride});
    ha::append(pages.slots().view(), state, tokens, layout, counts, rolling());
  }
  void fork(std::int32_t from, std::int32_t to) {
    pages.release(to);
    pages.fork(from, to);
    std::vector<ha::SequenceCopy> const copies{{from, to}};
    ha::copy_sequences(pages.slots().view(), state, copies, rolling());
  }
  void rollback(std::int32_t sequence, std::int64_t tokens) {
    pages.rollback(sequence, tokens);
    state.rollback(pages.slots().view(), sequence, tokens);
  }

  [[nodiscard]] static ha::AttentionShape shape(std::int64_t tokens) {
    return {sequences, num_query_heads, num_kv_heads, tokens, head_dim, 0};
  }
  [[nodiscard]] static ha::StridedLayout layout(std::int64_t tokens) {
    return ha::strided_bshd(sequences, tokens, num_query_heads, head_dim);
  }
  [[nodiscard]] static std::vector<float> queries(std::int64_t tokens) {
    return random_elements<float>(layout(tokens).required_span_size(), 7);
  }
  /// Where each sequence's first query is, if all have so many new tokens.
  [[nodiscard]] std::vector<std::int32_t> first_positions(std::int64_t tokens) const {
    std::vector<std::int32_t> result;
    for (std::int32_t const length : state.lengths()) result.push_back(length - static_cast<std::int32_t>(tokens));
    return result;
  }
  /// Attention over the rolling cache. @param first  [sequences]; empty: no mask
  [[nodiscard]] std::vector<float> over_slots(std::int32_t layer, std::int64_t tokens,
                                              std::vector<std::int32_t> const& first) {
    std::vector<float> const asked = queries(tokens);
    std::vector<float> output(asked.size(), 77.0F);
    auto const cache = rolling();
    auto const& buffers = cache.layers[static_cast<std::size_t>(layer)];
    auto const view = ha::RollingView::of_chunk(pages.slots().view(), layer, state.lengths().data(), tokens);
    ha::attend(shape(tokens), ha::AttentionQueries{asked.data(), layout(tokens)},
               ha::KeptCache{buffers.keys, buffers.values, view}, ha::AttentionOutput{output.data(), layout(tokens)},
               {.first_positions = first.empty() ? nullptr : first.data()});
    return output;
  }
  /// Attention over the pages.
  [[nodiscard]] std::vector<float> over_pages(std::int32_t layer, std::int64_t tokens,
                                              std::vector<std::int32_t> const& first) const {
    std::vector<float> const asked = queries(tokens);
    std::vector<float> output(asked.size(), 77.0F);
    auto const lengths = pages.state().lengths().data();
    auto const view = tokens == 1 ? ha::HeadPagesView(pages.view(), layer, lengths, page_stride)
                                  : ha::HeadPagesView::of_chunk(pages.view(), layer, lengths, tokens, page_stride);
    ha::attend(shape(tokens), ha::AttentionQueries{asked.data(), layout(tokens)},
               ha::KeptCache{pool.data(), pool.data() + value_offset(), view},
               ha::AttentionOutput{output.data(), layout(tokens)},
               {.first_positions = first.empty() ? nullptr : first.data()});
    return output;
  }
};

/// Calls `check(chunk, tokens, first_positions)` after prefill, decoding, a fork, a rollback and chunks.
template <class Check>
void for_each_paged_chunk(std::int32_t page_size, Check const& check) {
  PagedChunk chunk(page_size);
  check(chunk, 1, {});
  chunk.append({130, 7, 0});
  check(chunk, 1, {});
  chunk.fork(0, 2);
  for (int i = 0; i < 12; ++i) {
    chunk.append({1, 1, i % 3});
    if (i % 4 == 3) check(chunk, 1, {});
  }
  chunk.rollback(0, 5);
  chunk.rollback(1, 9);
  check(chunk, 1, {});
  chunk.append({10, 10, 10});
  check(chunk, 10, chunk.first_positions(10));
  check(chunk, 1, {});
  // The second sequence is another's beginning, and the chunk's tokens fewer than the slack.
  chunk.fork(2, 1);
  chunk.append({3, 3, 3});
  check(chunk, 3, chunk.first_positions(3));
  // One that has been taken back has no new tokens in a chunk of others: its queries see what its newest token sees.
  chunk.rollback(0, 9);
  chunk.append({0, 10, 10});
  auto first = chunk.first_positions(10);
  first[0] = static_cast<std::int32_t>(chunk.pages.length(0)) - 1;
  check(chunk, 10, first);
}

}  // namespace headaware_test
