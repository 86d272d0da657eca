#pragma once

// The model of mixed_model.hpp in pages of single heads, with one page size or one per layer, and what its sequences
// must hold. Every token is written with a number of its own, so that rows of drafts and of other sequences show.

#include "support/mixed_model.hpp"
#include "support/paged_walk.hpp"

#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

struct MixedPages {
  static constexpr std::int32_t page_size = 4;  ///< tokens of the widest layer
  static constexpr std::int32_t num_pages = 240;
  /// A token as it was written: `mixed_element`'s sequence and token.
  struct Token {
    std::int64_t sequence;
    std::int64_t number;
  };

  ha::ModelShape shape = mixed_shape();
  ha::PolicyTable table = mixed_table(shape);
  ha::LayerChannels channels{shape};
  std::int64_t stride = channels.page_stride(page_size);
  ha::PagedHeads pages;
  std::vector<float> keys = std::vector<float>(static_cast<std::size_t>(num_pages * stride), -7.0F);
  std::vector<float> values = keys;
  std::int64_t joined = 0;  ///< elements from a page's keys to its values in one pool; 0: two pools
  std::vector<std::vector<Token>> sequences;
  std::int64_t next = 0;

  MixedPages(std::int32_t num_sequences, bool by_layer)
      : pages(table, {.num_sequences = num_sequences,
                      .page_size = page_size,
                      .num_pages = num_pages,
                      .limits = {.max_tokens = 60, .slack = 3},
                      .page_sizes = by_layer ? channels.page_sizes(page_size) : std::vector<std::int32_t>{}}),
        sequences(static_cast<std::size_t>(num_sequences)) {}
  /// Puts keys and values into one pool, both in every page.
  void join() {
    joined = stride;
    stride = 2 * joined + 3;
    keys.assign(static_cast<std::size_t>(num_pages * stride), -7.0F);
    values.clear();
  }
  [[nodiscard]] float const* value_data() const { return joined != 0 ? keys.data() + joined : values.data(); }
  [[nodiscard]] ha::PageStorage<float> storage() {
    return storage(keys.data(), joined != 0 ? keys.data() + joined : values.data());
  }
  [[nodiscard]] ha::PageStorage<float> storage(float* to_keys, float* to_values) const {
    return {to_keys, to_values, channels.common().head_dim, channels.common().value_dim, stride, channels.layers()};
  }
  /// @param write  (step, `MixedTensors` of the new tokens) writes them once more, elsewhere
  template <class Write>
  void append(std::vector<std::int32_t> const& counts, Write const& write) {
    ha::PageStep const step = pages.append(counts);
    MixedTensors news(shape, static_cast<std::int64_t>(counts.size()), next, step.max_count);
    ha::append(pages, step, news.layers(), ha::per_layer(news.layouts), storage());
    for (std::size_t b = 0; b < counts.size(); ++b) {
      for (std::int64_t i = 0; i < counts[b]; ++i) sequences[b].push_back({static_cast<std::int64_t>(b), next + i});
    }
    next += step.max_count;
    write(step, news);
  }
  void rollback(std::int32_t b, std::int64_t tokens) {
    pages.rollback(b, tokens);
    sequences[static_cast<std::size_t>(b)].resize(static_cast<std::size_t>(pages.length(b)));
  }
  void fork(std::int32_t from, std::int32_t to) {
    pages.release(to);
    pages.fork(from, to);
    sequences[static_cast<std::size_t>(to)] = sequences[static_cast<std::size_t>(from)];
  }
  [[nodiscard]] std::int64_t in_use() const { return pages.pool().num_pages() - pages.pool().free_pages(); }

  /// The first difference between what pages hold and what was written, by page, by view and by tables for engines.
  [[nodiscard]] std::string difference() const {
    FirstDifference result;
    for (std::int32_t l = 0; l < shape.num_layers(); ++l) {
      auto const sinks = pages.indices(l, ha::PagePart::sinks);
      auto const window = pages.block_table(l, ha::PagePart::window);
      for (std::int32_t b = 0; b < pages.shape().num_sequences; ++b) {
        for (std::int32_t h = 0; h < pages.slots().heads().count(l); ++h) note(result, {0, l, b, h}, sinks, window);
      }
    }
    result.expect(accounts_balance(pages), true, "every page has as many owners as references");
    return result.text();
  }

 private:
  /// Rows at any place, as `expect_rows` asks for them.
  struct Place {
    std::int64_t page, stride, at;
    [[nodiscard]] std::int64_t offset(std::int64_t, std::int64_t channels_of_row) const {
      return page * stride + at * channels_of_row;
    }
  };
  void note(FirstDifference& result, ha::Segment const& segment, ha::HeadPageIndices const& sinks,
            ha::HeadBlockTable const& window) const {
    std::int32_t const b = segment.sequence;
    std::int64_t const size = pages.page_size(segment.layer);
    auto const& written = sequences[static_cast<std::size_t>(b)];
    auto const length = static_cast<std::int64_t>(written.size());
    auto const expect = [&](auto const& rows, std::int64_t row, std::int64_t token) {
      Token const& of = written[static_cast<std::size_t>(token)];
      ha::Segment as = segment;
      as.sequence = static_cast<std::int32_t>(of.sequence);
      expect_rows(result, rows, as, row, of.number, channels.of(static_cast<std::size_t>(segment.layer)), keys.data(),
                  value_data());
    };
    for (std::int64_t token = 0; token < length; ++token) {  // all of every page that is held
      std::int32_t const page = pages.page(segment.layer, b, segment.kv_head, token / size);
      if (page >= 0) expect(Place{page, stride, token % size}, 0, token);
    }
    ha::PagedHeadsView const view = pages.view();
    ha::PagedHead const& head = view.head(segment.layer, segment.kv_head);
    auto const rows = view.rows(head, b, head.rule.range(length), stride);
    for (std::int64_t row = 0; row < rows.rows(); ++row) expect(rows, row, rows.position(row));
    // What engines read of the two exact parts.
    std::int64_t next_row = 0;
    auto const entry = static_cast<std::size_t>(b * pages.slots().heads().count(segment.layer) + segment.kv_head);
    auto const read = [&](std::int64_t page, std::int64_t at) {
      if (next_row < rows.rows()) expect(Place{page, stride, at}, 0, rows.position(next_row));
      ++next_row;
    };
    result.expect(std::int64_t{sinks.page_size}, size, "page size of layer ", segment.layer);
    result.expect(std::int64_t{window.page_size}, size, "page size of layer ", segment.layer, ", block table");
    for (std::int32_t i = sinks.indptr[entry]; i < sinks.indptr[entry + 1]; ++i) {
      std::int64_t const end = i + 1 == sinks.indptr[entry + 1] ? sinks.last_page_len[entry] : sinks.page_size;
      for (std::int64_t at = 0; at < end; ++at) read(sinks.indices[static_cast<std::size_t>(i)], at);
    }
    for (std::int64_t i = window.kv_start[entry]; i < window.seq_lens[entry]; ++i) {
      std::int64_t const cell = static_cast<std::int64_t>(entry) * window.max_blocks + i / window.page_size;
      read(window.block_table[static_cast<std::size_t>(cell)], i % window.page_size);
    }
    result.expect(next_row, rows.rows(), "rows in the exact parts of layer ", segment.layer, ", sequence ", b,
                  ", KV head ", segment.kv_head);
  }
};

/// Prompts, token by token, chunks, forks that write on, drafts that are taken back, other policies, an end.
/// @param write  as in `MixedPages::append`; @param check  () after every change of a pool
template <class Write, class Check>
void for_each_mixed_step(MixedPages& m, Write const& write, Check const& check) {
  auto const append = [&](std::vector<std::int32_t> const& counts) {
    INFO("at " << m.next);
    m.append(counts, write);
    check();
  };
  append({21, 5, 0});
  for (int i = 0; i < 14; ++i) append({1, 1, 0});
  m.fork(0, 2);
  append({1, 0, 0});  // 36 tokens: pages of 4, 6 and 12 are full at once, those of 8 are not
  append({1, 3, 1});
  append({0, 7, 4});
  m.rollback(2, 2);
  m.rollback(1, 1);
  append({2, 2, 2});
  for (std::int32_t const tokens : {3, 1, 2}) {
    m.fork(0, 1);
    append({0, tokens, 0});
    m.rollback(1, tokens);
    append({tokens, 1, 1});
  }
  ha::PolicyTable smaller = m.table;
  smaller.set(0, 0, ha::SinkWindow{.sink = 3, .window = 8});
  smaller.set(5, 0, ha::WindowOnly{.window = 4});
  std::int64_t const before = m.in_use();
  m.pages.set_policies(smaller);
  CHECK(m.in_use() < before);
  append({1, 2, 3});
  m.pages.release(1);
  m.sequences[1].clear();
  append({2, 9, 1});
  for (std::int32_t b = 0; b < 3; ++b) m.pages.release(b);
  CHECK(m.in_use() == 0);
}

}  // namespace headaware_test
