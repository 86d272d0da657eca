#pragma once

// Caches compressed into encoded rows, with heads of every format side by side, and the same rows encoded and decoded
// one by one.

#include "support/format_rows.hpp"
#include "support/kept_rows.hpp"

#include <headaware/cache/pack.hpp>
#include <headaware/cache/packed_pages.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

/// Two layers of as many KV heads as there are formats, each head with others for keys and for values; one keeps all,
/// one nothing.
template <class T>
struct PackedProblem {
  std::int32_t num_kv_heads = static_cast<std::int32_t>(all_formats().size());
  std::int64_t head_dim;
  std::int64_t value_dim;
  std::vector<std::int32_t> lengths;
  ha::PolicyTable table{2, num_kv_heads, ha::SinkWindow{.sink = 3, .window = 60}};
  ha::FormatTable formats{2, num_kv_heads};
  std::int64_t longest = 0;
  std::vector<std::vector<T>> keys, values;  ///< [layers][sequences, heads, tokens, channels]
  std::vector<ha::LayerKv<T const>> layers;

  PackedProblem(std::int64_t of_keys, std::int64_t of_values, std::vector<std::int32_t> const& of)
      : head_dim(of_keys), value_dim(of_values), lengths(of) {
    std::vector<ha::AnyFormat<>> const all = all_formats();
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t h = 0; h < num_kv_heads; ++h) {
        auto const other = static_cast<std::size_t>((h + 5 * layer + 4) % num_kv_heads);
        formats.set(layer, h, {all[at(h)], all[other]});
      }
    }
    table.set(0, 1, ha::Full{});
    table.set(1, 7, ha::Full{});
    table.set(1, 2, ha::Prune{});
    for (std::int32_t const length : lengths) longest = std::max<std::int64_t>(longest, length);
    auto const count = static_cast<std::int64_t>(lengths.size()) * num_kv_heads * longest;
    for (unsigned layer = 0; layer < 2; ++layer) {
      keys.push_back(random_elements<T>(count * head_dim, 3 + layer));
      values.push_back(random_elements<T>(count * value_dim, 5 + layer));
      layers.push_back({keys.back().data(), values.back().data()});
    }
  }
  [[nodiscard]] auto source() const {
    auto const sequences = static_cast<std::int32_t>(lengths.size());
    return ha::KvLayouts{ha::strided_bhsd(sequences, num_kv_heads, longest, head_dim),
                         ha::strided_bhsd(sequences, num_kv_heads, longest, value_dim)};
  }
  [[nodiscard]] std::vector<float> row(std::vector<T> const& tensor, std::int64_t sequence, std::int64_t head,
                                       std::int64_t token, std::int64_t channels) const {
    std::vector<float> result(at(channels));
    for (std::int64_t c = 0; c < channels; ++c) {
      result[at(c)] = ha::to_float(tensor[at(((sequence * num_kv_heads + head) * longest + token) * channels + c)]);
    }
    return result;
  }
  /// The words that a token's row must have.
  [[nodiscard]] std::vector<std::uint32_t> words(std::int32_t layer, std::int64_t sequence, std::int32_t head,
                                                 std::int64_t token) const {
    ha::HeadFormats const& of = formats.at(layer, head);
    CodedRow key = code_row(of.key, row(keys[at(layer)], sequence, head, token, head_dim));
    CodedRow const value = code_row(of.value, row(values[at(layer)], sequence, head, token, value_dim));
    key.words.insert(key.words.end(), value.words.begin(), value.words.end());
    key.words.resize((key.words.size() + 3) / 4 * 4);
    return key.words;
  }
  /// What a layer's heads hold, encoded and decoded again.
  [[nodiscard]] HeldProblem<float> held(std::int32_t layer, ha::AttentionShape const& shape) const {
    HeldProblem<float> result(shape, {}, 17);
    result.queries = random_elements<float>(
        std::int64_t{shape.num_sequences} * shape.num_query_heads * shape.query_tokens * head_dim, 23);
    for (std::int32_t b = 0; b < shape.num_sequences; ++b) {
      for (std::int32_t h = 0; h < num_kv_heads; ++h) {
        HeldRows<float> rows;
        ha::HeadFormats const& of = formats.at(layer, h);
        for (std::int32_t token = 0; token < lengths[at(b)]; ++token) {
          bool const kept =
              table.visit(layer, h, [&](auto const& policy) { return policy.keeps(token, lengths[at(b)]); });
          if (!kept) continue;
          auto const key = code_row(of.key, row(keys[at(layer)], b, h, token, head_dim)).decoded;
          auto const value = code_row(of.value, row(values[at(layer)], b, h, token, value_dim)).decoded;
          rows.keys.insert(rows.keys.end(), key.begin(), key.end());
          rows.values.insert(rows.values.end(), value.begin(), value.end());
          rows.positions.push_back(static_cast<std::int32_t>(rows.positions.size()));
        }
        result.segments.push_back(std::move(rows));
      }
    }
    return result;
  }
  /// Every head's formats in another order, of which some stay what they are.
  [[nodiscard]] ha::FormatTable other_formats() const {
    ha::FormatTable result(2, num_kv_heads);
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t h = 0; h < num_kv_heads; ++h) {
        ha::HeadFormats of = formats.at(layer, (h + 3 * layer + 2) % num_kv_heads);
        if (h % 4 == 1) of.key = formats.at(layer, h).key;
        result.set(layer, h, of);
      }
    }
    return result;
  }
  /// The same for three sequences; with a group of 3 a soft cap, of 12 learned sinks, and chunks within a window.
  [[nodiscard]] HeldProblem<float> varied(std::int32_t layer, std::int32_t group, std::int64_t tokens) const {
    HeldProblem<float> result = held(layer, {3, group * num_kv_heads, num_kv_heads, tokens, head_dim, value_dim});
    result.options.soft_cap = group == 3 ? 20.0F : 0.0F;
    if (group == 12) result.sinks.assign(at(result.shape.num_query_heads), 1.5F);
    if (tokens > 1) {
      result.first_positions = {600, 3, 0};
      result.options.window = 50;
    }
    return result;
  }
};

/// Rotates queries as a caller does whose heads' keys are rotated, or outputs back whose values are: of layer 0.
/// @param tensor  [sequences, query heads, tokens, channels] by the layout, channels whole blocks of all formats
template <class Layout>
void rotate_rows(std::vector<float>& tensor, Layout const& layout, ha::AttentionShape const& shape,
                 ha::FormatTable const& formats, bool queries) {
  std::int64_t const channels = queries ? shape.head_dim : shape.output_dim();
  for (std::int64_t s = 0; s < shape.num_sequences; ++s) {
    for (std::int64_t head = 0; head < shape.num_query_heads; ++head) {
      auto const& of = formats.at(0, static_cast<std::int32_t>(head * shape.num_kv_heads / shape.num_query_heads));
      for (std::int64_t token = 0; token < shape.query_tokens; ++token) {
        std::vector<float> row;
        for (std::int64_t c = 0; c < channels; ++c) row.push_back(tensor[at(layout.offset(s, head, token, c))]);
        (queries ? of.key : of.value).visit([&]<class Format>(Format const&) {
          if constexpr (Format::rotated) {
            for (std::int64_t c = 0; c < channels; c += Format::group) ha::rotate_block<Format::group>(&row[at(c)]);
          }
        });
        for (std::int64_t c = 0; c < channels; ++c) tensor[at(layout.offset(s, head, token, c))] = row[at(c)];
      }
    }
  }
}

/// Pages of single heads with room for a problem's sequences, in formats of their own.
template <class T>
struct PackedHeadPages {
  static constexpr std::int32_t slack = 3;

  ha::PackedPages<> cache;
  ha::PagedHeads pages;
  ha::PageStep step;  ///< that has made the room

  PackedHeadPages(PackedProblem<T> const& p, ha::FormatTable const& formats)
      : cache(ha::packed_pages(formats, static_cast<std::int32_t>(p.lengths.size()), 40, p.head_dim, p.value_dim)),
        pages(p.table, shape()),
        step(pages.append(p.lengths)) {}
  [[nodiscard]] ha::PagedHeadsShape shape() const {
    ha::PagedHeadsShape result;
    result.num_sequences = cache.num_sequences;
    result.num_pages = 2000;
    result.limits = {.max_tokens = 128, .slack = slack};
    result.head_page_sizes = cache.page_sizes;
    return result;
  }
  /// As `transcode` takes it, without a pool.
  [[nodiscard]] ha::PackedDestination<ha::HeadPagesForm> rows() const {
    return ha::packed_head_pages(pages, pages.view(), cache);
  }
  /// Writes the problem's tokens. @param pool  [rows().total_units()]
  void fill(PackedProblem<T> const& p, ha::RowUnit* pool) const {
    ha::append(pages, step, p.layers, p.source(), cache.with_pool(pool));
  }
};

}  // namespace headaware_test
