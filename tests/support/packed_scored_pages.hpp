#pragma once

// Pages of encoded rows with scored slots, a head of each format, beside a rolling cache of the same policies and
// formats: both get the same tokens with the same scores, and must hold the same codes.

#include "support/differences.hpp"
#include "support/format_rows.hpp"
#include "support/scored_pages.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/cache/packed_pages_scored.hpp>
#include <headaware/cache/packed_scored.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

template <class T>
struct PackedScoredPages {
  static constexpr std::int32_t batch = 2;
  static constexpr std::int32_t num_pages = 1500;

  std::vector<ha::AnyFormat<>> all = all_formats();
  std::int32_t heads = static_cast<std::int32_t>(all.size());
  std::int64_t dim;
  ha::PolicyTable table{1, heads, ha::SinkWindowScored{.sink = 2, .window = 11, .scored = 20}};
  ha::FormatTable formats{1, heads};
  ha::PackedPages<> planned;
  ha::PagedHeads pages;
  ha::RollingScores scores;
  ha::RollingScores rolled;
  std::vector<ha::RowUnit> pool;
  std::vector<ha::RowUnit> rows;  ///< of the rolling cache
  ha::PackedPages<> cache;
  ha::PackedDestination<ha::RollingSlotsView> rolling;
  ha::RollingState state{batch};
  ha::PageStep step;
  unsigned seed = 70;

  PackedScoredPages(std::int32_t slack, std::int64_t channels)
      : dim(channels),
        planned(plan()),
        pages(table, shape(slack)),
        scores(pages.slots()),
        rolled(pages.slots()),
        pool(at(num_pages * planned.page_units), ha::RowUnit{{~0U, ~0U, ~0U, ~0U}}),
        rows(at(ha::packed_rolling(pages.slots(), pages.slots().view(), formats, dim).total_units()), pool[0]),
        cache(planned.with_pool(pool.data())),
        rolling(ha::packed_rolling(pages.slots(), pages.slots().view(), formats, dim).with_buffer(rows.data())) {}

  ha::PackedPages<> plan() {
    table.set(0, 1, ha::SinkWindow{.sink = 2, .window = 9});
    table.set(0, 2, ha::SinkWindowScored{.sink = 0, .window = 1, .scored = 70});
    std::int64_t widest = 0;
    for (std::int32_t h = 0; h < heads; ++h) {
      formats.set(0, h, {all[at(h)], all[at((h + 3) % heads)]});
      widest = std::max(widest, formats.at(0, h).row_units(dim, dim));
    }
    return ha::packed_pages(formats, batch, 4 * widest + 1, dim);
  }
  [[nodiscard]] ha::PagedHeadsShape shape(std::int32_t slack) const {
    ha::PagedHeadsShape result;
    result.num_sequences = batch;
    result.num_pages = num_pages;
    result.limits = {.max_tokens = 0, .slack = slack};
    result.head_page_sizes = planned.page_sizes;
    return result;
  }

  struct News {
    std::int64_t most = 0;
    std::vector<T> keys, values;
    std::vector<float> scores;
    ha::StridedLayout layout;
  };
  News append(std::vector<std::int32_t> const& counts) {
    News news;
    news.most = std::max(1, *std::max_element(counts.begin(), counts.end()));
    news.layout = ha::strided_bshd(batch, news.most, heads, dim);
    news.keys = random_elements<T>(news.layout.required_span_size(), ++seed);
    news.values = random_elements<T>(news.layout.required_span_size(), ++seed);
    news.scores = random_scores(at(std::int64_t{batch} * heads * news.most), ++seed);
    std::vector<ha::LayerKv<T const>> const tokens{{news.keys.data(), news.values.data()}};
    auto const of = ha::TokenScores::contiguous(news.scores.data(), batch, heads, news.most);
    pages.append(counts, step);
    ha::append(pages, step, tokens, news.layout, cache, scores.view(), of);
    ha::append(pages.slots().view(), state, tokens, news.layout, counts, rolling, rolled.view(), of);
    return news;
  }
  void fork(std::int32_t from, std::int32_t to) {
    pages.release(to);
    ha::fork(pages, from, to, scores.view());
    std::vector<ha::SequenceCopy> const copies{{from, to}};
    ha::copy_sequences(pages.slots().view(), state, copies, rolling, rolled.view());
  }
  void rollback(std::int32_t sequence, std::int64_t tokens) {
    pages.rollback(sequence, tokens);
    state.rollback(pages.slots().view(), sequence, tokens);
  }

  /// The first difference between pages and rolling cache; empty: none.
  [[nodiscard]] std::string difference() {
    FirstDifference result;
    result.expect(std::equal(scores.bytes().begin(), scores.bytes().end(), rolled.bytes().begin()), true,
                  "scores and records");
    for (std::int32_t b = 0; b < batch; ++b) {
      for (std::int32_t h = 0; h < heads; ++h) {
        ha::RollingHead const& head = pages.slots().head(0, h);
        ha::PackedSegment<> const& packed = rolling.layer(0)[at(b * heads + h)];
        std::vector<std::int32_t> positions(at(head.slots()));
        ha::slot_positions(pages.slots().view(), scores.view(), 0, h, b, pages.length(b), positions);
        for (std::int64_t slot = 0; slot < head.slots(); ++slot) {
          if (positions[at(slot)] < 0) continue;
          auto const place =
              PagedPlace::of(pages, {.layer = 0, .sequence = b, .kv_head = h}, slot, positions[at(slot)]);
          auto const* const got = &pool[at(place.page * cache.page_units + place.row * packed.units)];
          auto const* const expected = &rows[at(head.row(b, slot) * packed.units + packed.shift)];
          result.expect(std::memcmp(got, expected, at(packed.units) * sizeof(ha::RowUnit)), 0, "row of sequence ", b,
                        ", KV head ", h, ", slot ", slot);
        }
      }
    }
    result.expect(page_owners(pages) == ScoredTables(pages).references, true, "owners of pages");
    return result.text();
  }

  [[nodiscard]] ha::AttentionShape attention_shape(std::int64_t tokens, std::int32_t group) const {
    return {batch, heads * group, heads, tokens, dim, 0};
  }
  [[nodiscard]] std::vector<std::int32_t> first_positions(std::int64_t tokens) const {
    return first_query_positions(state, tokens);
  }
  /// Attention of the newest tokens over the pages, or over the rolling cache.
  [[nodiscard]] std::vector<float> attend(bool over_pages, std::int64_t tokens, std::int32_t group) {
    auto const layout = ha::strided_bshd(batch, tokens, heads * group, dim);
    auto const queries = random_elements<T>(layout.required_span_size(), 5);
    std::vector<float> output(queries.size(), 77);
    auto const first = first_positions(tokens);
    auto const call = [&](auto const& kept) {
      ha::attend(attention_shape(tokens, group), ha::AttentionQueries{queries.data(), layout}, kept,
                 ha::AttentionOutput{output.data(), layout}, {.first_positions = first.data()});
    };
    std::int32_t const* const lengths = state.lengths().data();
    if (over_pages) {
      ha::ScoredPagesView const view(ha::HeadPagesView::of_chunk(pages.view(), 0, lengths, tokens, cache.page_units),
                                     scores.view());
      call(ha::PackedCache<ha::DefaultFormats, ha::ScoredPagesView>{cache.rows, cache.layer(0).data(), view});
    } else {
      auto const view = ha::ScoredView::of_chunk(pages.slots().view(), rolled.view(), 0, lengths, tokens);
      call(ha::PackedCache<ha::DefaultFormats, ha::ScoredView>{rolling.layers[0], rolling.layer(0).data(), view});
    }
    return output;
  }
};

/// Calls `check(tokens of the last append)` after a prompt, decoding, chunks, what is taken back, and forks.
template <class P, class Check>
void for_each_packed_step(P& p, Check const& check) {
  std::int32_t const slack = p.pages.shape().limits.slack;
  p.append({60, 3});
  for (int i = 0; i < 4; ++i) {
    p.append({1, 1});
    check(1);
  }
  p.append({slack + 1, slack + 1});
  check(slack + 1);
  p.append({12, 70});
  p.rollback(0, slack);
  p.fork(0, 1);
  p.append({0, 1});
  p.append({1, 1});
  check(1);
  p.append({slack + 1, slack + 1});
  check(slack + 1);
}

}  // namespace headaware_test
