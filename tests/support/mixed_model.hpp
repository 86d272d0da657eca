#pragma once

// A small model whose layers differ in all that a cache can differ in: full attention, a sliding window, no cache, a
// latent, a layer that reads another's cache, other KV heads and channels. Its elements are a function of their place,
// so that rows of any cache are checked without the source.

#include "support/differences.hpp"

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/layout/per_layer.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/table.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

inline ha::ModelShape mixed_shape() {
  using ha::LayerKind;
  return ha::ModelShape(std::vector<ha::LayerShape>{
      {.num_query_heads = 8, .num_kv_heads = 4, .head_dim = 16, .value_dim = 16},
      {.kind = LayerKind::sliding, .num_query_heads = 8, .num_kv_heads = 2, .head_dim = 8, .value_dim = 4, .window = 7},
      {.kind = LayerKind::none},
      {.kind = LayerKind::latent, .num_query_heads = 8, .num_kv_heads = 1, .head_dim = 24, .value_dim = 16},
      {.num_query_heads = 8, .num_kv_heads = 4, .head_dim = 16, .value_dim = 16, .cache_layer = 0},
      {.num_query_heads = 8, .num_kv_heads = 1, .head_dim = 12, .value_dim = 12},
      {.kind = LayerKind::sliding,
       .num_query_heads = 8,
       .num_kv_heads = 4,
       .head_dim = 16,
       .value_dim = 16,
       .window = 7}});
}

/// The element of a key (or a value) of the model. A latent's values are the first channels of its keys.
inline float mixed_element(std::int64_t layer, bool value, std::int64_t sequence, std::int64_t head, std::int64_t token,
                           std::int64_t channel) {
  std::uint64_t x = static_cast<std::uint64_t>(
      ((((layer * 2 + (value ? 1 : 0)) * 8 + sequence) * 8 + head) * 4096 + token) * 64 + channel);
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ULL;
  return static_cast<float>(static_cast<double>(x >> 40) / static_cast<double>(1 << 23) - 1.0);
}

/// Policies that differ by head.
inline ha::PolicyTable mixed_table(ha::ModelShape const& shape) {
  ha::PolicyTable table(shape);
  table.set(0, 1, ha::SinkWindow{.sink = 2, .window = 5});
  table.set(0, 2, ha::Prune{});
  table.set(0, 3, ha::WindowOnly{.window = 9});
  table.set(1, 1, ha::SinkWindow{.sink = 1, .window = 3});
  table.set(3, 0, ha::SinkWindow{.sink = 4, .window = 6});
  table.set(6, 2, ha::WindowOnly{.window = 100});
  table.set(6, 3, ha::Prune{});
  return table;
}

/// Tokens [first, first + tokens) of every sequence, layer by layer: `[sequences, heads, tokens, channels]` each.
struct MixedTensors {
  using Layouts = ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>;

  ha::ModelShape shape;
  std::vector<std::vector<float>> keys;
  std::vector<std::vector<float>> values;
  std::vector<Layouts> layouts;

  MixedTensors(ha::ModelShape const& model, std::int64_t sequences, std::int64_t first, std::int64_t tokens)
      : shape(model) {
    for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
      ha::LayerShape const& l = shape.layer(layer);
      bool const held = l.has_cache();
      bool const own_values = held && l.kind != ha::LayerKind::latent;
      std::int64_t const heads = held ? l.num_kv_heads : 0;
      layouts.push_back({ha::strided_bhsd(sequences, heads, tokens, l.head_dim),
                         ha::strided_bhsd(sequences, heads, tokens, own_values ? l.value_dim : 0)});
      auto const fill = [&](bool value, ha::StridedLayout const& layout) {
        std::vector<float> data(static_cast<std::size_t>(layout.required_span_size()));
        for (std::int64_t b = 0; b < sequences && !data.empty(); ++b) {
          for (std::int64_t h = 0; h < heads; ++h) {
            for (std::int64_t t = 0; t < tokens; ++t) {
              for (std::int64_t c = 0; c < layout.num_channels(); ++c) {
                data[static_cast<std::size_t>(layout.offset(b, h, t, c))] =
                    mixed_element(layer, value, b, h, first + t, c);
              }
            }
          }
        }
        return data;
      };
      keys.push_back(fill(false, layouts.back().keys));
      values.push_back(fill(true, layouts.back().values));
    }
  }

  /// Pointers of the layers, null where there is nothing.
  [[nodiscard]] std::vector<ha::LayerKv<float>> layers() {
    std::vector<ha::LayerKv<float>> result;
    for (std::size_t l = 0; l < keys.size(); ++l) {
      result.push_back({keys[l].empty() ? nullptr : keys[l].data(), values[l].empty() ? nullptr : values[l].data()});
    }
    return result;
  }
};

/// Buffers of all layers back to back, filled with what no token has. @tparam Array  made of a vector
template <template <class> class Array>
struct MixedBuffers {
  Array<float> keys;
  Array<float> values;

  /// @param rows  (layer) to its rows
  template <class Rows>
  MixedBuffers(ha::ModelShape const& shape, Rows const& rows)
      : MixedBuffers(ha::buffer_elements(shape, shape.num_layers(), rows)) {}

 private:
  explicit MixedBuffers(ha::RowChannels const& elements)
      : keys(filled(elements.head_dim)), values(filled(elements.value_dim)) {}
  static std::vector<float> filled(std::int64_t elements) {
    return std::vector<float>(static_cast<std::size_t>(elements), std::numeric_limits<float>::quiet_NaN());
  }
};

/// Compares a head's rows with the tokens that they are to hold. @param data  host copies of a layer's buffers
template <class Rows>
void expect_rows(FirstDifference& difference, Rows const& rows, ha::Segment const& segment, std::int64_t row,
                 std::int64_t token, ha::RowChannels const& channels, float const* keys, float const* values) {
  for (std::int64_t c = 0; c < channels.head_dim; ++c) {
    difference.expect(keys[rows.offset(row, channels.head_dim) + c],
                      mixed_element(segment.layer, false, segment.sequence, segment.kv_head, token, c), "layer ",
                      segment.layer, ", sequence ", segment.sequence, ", KV head ", segment.kv_head, ", row ", row,
                      ", key channel ", c);
  }
  for (std::int64_t c = 0; c < channels.value_dim; ++c) {
    difference.expect(values[rows.offset(row, channels.value_dim) + c],
                      mixed_element(segment.layer, true, segment.sequence, segment.kv_head, token, c), "layer ",
                      segment.layer, ", sequence ", segment.sequence, ", KV head ", segment.kv_head, ", row ", row,
                      ", value channel ", c);
  }
}

/// The first difference of a compressed cache from what policies keep; empty if there is none.
/// @param kept  in host memory
template <class Table, class Form>
std::string mixed_difference(ha::Compaction<Table> const& compaction, ha::Destination<float, Form> const& kept) {
  FirstDifference difference;
  for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
    ha::Segment const segment = compaction.segment(s);
    auto const layer = static_cast<std::size_t>(segment.layer);
    auto const rows = kept.form.rows(segment, kept.capacities[layer]);
    compaction.table().visit(segment.layer, segment.kv_head, [&](auto const& policy) {
      for (std::int64_t row = 0; row < segment.kept; ++row) {
        expect_rows(difference, rows, segment, row, ha::source_token(policy, row, segment.length),
                    kept.channels.of(layer), kept.layers[layer].keys, kept.layers[layer].values);
      }
    });
  }
  return difference.text();
}

}  // namespace headaware_test
