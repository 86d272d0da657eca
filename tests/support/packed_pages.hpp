#pragma once

// Pages of encoded rows with heads of every format, what was appended to them, and the rows that they must hold.

#include "support/format_rows.hpp"
#include "support/kept_rows.hpp"

#include <headaware/attention/attention.hpp>
#include <headaware/cache/packed_pages.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace headaware_test {

/// Two layers with a head of each format, three sequences.
template <class T>
struct PackedPagesModel {
  static constexpr std::int32_t batch = 3;
  using Counts = std::array<std::int32_t, batch>;

  std::vector<ha::AnyFormat<>> all = all_formats();
  std::int32_t heads = static_cast<std::int32_t>(all.size());
  std::int64_t head_dim;
  std::int64_t value_dim;
  ha::PolicyTable table{2, heads, ha::SinkWindow{.sink = 2, .window = 11}};
  ha::FormatTable formats{2, heads};
  ha::PackedPages<> planned;
  ha::PagedHeads pages;
  std::vector<std::vector<std::vector<std::vector<float>>>> keys;    ///< [layers][sequences][tokens], [heads, head_dim]
  std::vector<std::vector<std::vector<std::vector<float>>>> values;  ///< the same, [heads, value_dim]
  unsigned seed = 300;

  /// New tokens of a step.
  struct News {
    ha::PageStep step;
    std::vector<std::vector<T>> tensors;
    std::vector<ha::LayerKv<T const>> layers;
  };

  PackedPagesModel(std::int64_t key_channels, std::int64_t value_channels)
      : head_dim(key_channels), value_dim(value_channels), planned(plan()), pages(table, shape()) {
    for (auto* const tensor : {&keys, &values}) {
      tensor->resize(2);
      for (auto& layer : *tensor) layer.resize(batch);
    }
  }
  ha::PackedPages<> plan() {
    table.set(0, 3, ha::Full{});
    table.set(1, 5, ha::Prune{});
    std::int64_t widest = 0;
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t h = 0; h < heads; ++h) {
        formats.set(layer, h, {all[at((h + 6 * layer) % heads)], all[at((h + 3 - 3 * layer) % heads)]});
        widest = std::max(widest, formats.at(layer, h).row_units(head_dim, value_dim));
      }
    }
    return ha::packed_pages(formats, batch, 4 * widest + 1, head_dim, value_dim);
  }
  [[nodiscard]] ha::PagedHeadsShape shape() const {
    ha::PagedHeadsShape result;
    result.num_sequences = batch;
    result.num_pages = 900;
    result.limits = {.max_tokens = 90, .slack = 4};
    result.head_page_sizes = planned.page_sizes;
    return result;
  }
  [[nodiscard]] ha::KvLayouts<ha::StridedLayout, ha::StridedLayout> layout(std::int64_t tokens) const {
    return {ha::strided_bshd(batch, tokens, heads, head_dim), ha::strided_bshd(batch, tokens, heads, value_dim)};
  }
  /// Random tokens, and the step that makes room for them.
  News append(Counts const& counts) {
    News news;
    std::int64_t const most = *std::max_element(counts.begin(), counts.end());
    auto const of = layout(most);
    for (std::size_t layer = 0; layer < 2; ++layer) {
      news.tensors.push_back(random_elements<T>(of.keys.required_span_size(), ++seed));
      news.tensors.push_back(random_elements<T>(of.values.required_span_size(), ++seed));
      for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t t = 0; t < counts[at(b)]; ++t) {
          auto const record = [&](auto& to, std::vector<T> const& tensor, ha::StridedLayout const& from,
                                  std::int64_t channels) {
            std::vector<float> row;
            for (std::int32_t h = 0; h < heads; ++h) {
              for (std::int64_t c = 0; c < channels; ++c)
                row.push_back(ha::to_float(tensor[at(from.offset(b, h, t, c))]));
            }
            to[layer][at(b)].push_back(row);
          };
          record(keys, news.tensors[2 * layer], of.keys, head_dim);
          record(values, news.tensors[2 * layer + 1], of.values, value_dim);
        }
      }
    }
    for (std::size_t i = 0; i < 4; i += 2) news.layers.push_back({news.tensors[i].data(), news.tensors[i + 1].data()});
    pages.append(counts, news.step);
    return news;
  }
  void fork(std::int32_t from, std::int32_t to) {
    pages.fork(from, to);
    for (auto* const tensor : {&keys, &values}) {
      for (auto& layer : *tensor) layer[at(to)] = layer[at(from)];
    }
  }
  void rollback(std::int32_t sequence, std::int32_t tokens) {
    pages.rollback(sequence, tokens);
    for (auto* const tensor : {&keys, &values}) {
      for (auto& layer : *tensor) layer[at(sequence)].resize(layer[at(sequence)].size() - at(tokens));
    }
  }
  void release(std::int32_t sequence) {
    pages.release(sequence);
    for (auto* const tensor : {&keys, &values}) {
      for (auto& layer : *tensor) layer[at(sequence)].clear();
    }
  }

  [[nodiscard]] CodedRow coded(bool key, std::size_t layer, std::int64_t b, std::int32_t h, std::int64_t token) const {
    ha::HeadFormats const& of = formats.at(static_cast<std::int32_t>(layer), h);
    std::int64_t const channels = key ? head_dim : value_dim;
    auto const& row = (key ? keys : values)[layer][at(b)][at(token)];
    auto const begin = row.begin() + h * channels;
    return code_row(key ? of.key : of.value, std::vector<float>(begin, begin + channels));
  }
  /// Rows of kept tokens that a pool does not hold as they must be.
  [[nodiscard]] std::size_t wrong_rows(std::vector<ha::RowUnit> const& pool) const {
    std::size_t wrong = 0;
    for_each_kept([&](std::size_t layer, std::int64_t b, std::int32_t h, std::int64_t token) {
      std::vector<std::uint32_t> words = coded(true, layer, b, h, token).words;
      auto const value = coded(false, layer, b, h, token).words;
      words.insert(words.end(), value.begin(), value.end());
      words.resize((words.size() + 3) / 4 * 4);
      auto const units = static_cast<std::int64_t>(words.size()) / 4;
      auto const size = planned.page_sizes[layer * at(heads) + at(h)];
      std::int64_t const page =
          pages.page(static_cast<std::int32_t>(layer), static_cast<std::int32_t>(b), h, token / size);
      auto const* const got = pool[at(page * planned.page_units + token % size * units)].words;
      wrong += std::equal(words.begin(), words.end(), got) ? 0 : 1;
    });
    return wrong;
  }
  /// A layer's problem of attention over the decoded rows.
  [[nodiscard]] HeldProblem<float> held(std::size_t layer) const {
    HeldProblem<float> result({batch, 2 * heads, heads, 1, head_dim, value_dim}, {}, 31);
    result.queries = random_elements<float>(batch * 2 * heads * head_dim, 41);
    result.segments.resize(at(batch * heads));
    for_each_kept([&](std::size_t of, std::int64_t b, std::int32_t h, std::int64_t token) {
      if (of != layer) return;
      HeldRows<float>& rows = result.segments[at(b * heads + h)];
      auto const key = coded(true, layer, b, h, token).decoded;
      auto const value = coded(false, layer, b, h, token).decoded;
      rows.keys.insert(rows.keys.end(), key.begin(), key.end());
      rows.values.insert(rows.values.end(), value.begin(), value.end());
      rows.positions.push_back(static_cast<std::int32_t>(token));
    });
    return result;
  }

  /// Calls `f(layer, sequence, head, token)` for all that policies keep.
  template <class F>
  void for_each_kept(F const& f) const {
    for (std::size_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t b = 0; b < batch; ++b) {
        std::int64_t const length = pages.length(b);
        for (std::int32_t h = 0; h < heads; ++h) {
          for (std::int64_t token = 0; token < length; ++token) {
            bool const kept = table.visit(static_cast<std::int32_t>(layer), h,
                                          [&](auto const& policy) { return policy.keeps(token, length); });
            if (kept) f(layer, b, h, token);
          }
        }
      }
    }
  }
};

}  // namespace headaware_test
