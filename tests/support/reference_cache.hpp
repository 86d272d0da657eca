#pragma once

// A cache to compress, and what must come of it: plain loops over `keeps`, sharing nothing with the
// library's own maps between tokens and slots.

#include "support/catch.hpp"

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/layout/concept.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// The tokens that a policy keeps of a sequence, in order.
template <class Policy>
std::vector<std::int64_t> kept_tokens(Policy const& policy, std::int64_t length) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t t = 0; t < length; ++t) {
    if (policy.keeps(t, length)) tokens.push_back(t);
  }
  return tokens;
}

template <class Table>
std::vector<std::int64_t> kept_tokens(Table const& table, std::int32_t layer, std::int32_t sequence, std::int32_t head,
                                      std::int64_t length) {
  auto const list = [&](auto const& policy) { return kept_tokens(policy, length); };
  if constexpr (requires { table.visit(layer, sequence, head, list); }) {
    return table.visit(layer, sequence, head, list);
  } else {
    return table.visit(layer, head, list);
  }
}

/// Keys and values of some layers in any layout, filled with random bytes.
template <class T, class Source>
struct SourceCache {
  Source source;
  std::int64_t head_dim;
  std::int64_t value_dim;
  std::int32_t num_layers;
  std::vector<std::vector<T>> keys;
  std::vector<std::vector<T>> values;

  SourceCache(Source const& layouts, std::int64_t extent, std::int32_t layers, std::int64_t key_dim,
              std::int64_t value_channels, unsigned seed)
      : source(layouts), head_dim(key_dim), value_dim(value_channels), num_layers(layers) {
    std::mt19937 random(seed);
    for (std::int32_t layer = 0; layer < layers; ++layer) {
      for (auto* tensors : {&keys, &values}) {
        std::vector<T> tensor(static_cast<std::size_t>(extent));
        for (T& element : tensor) {
          auto const bits = random();
          if constexpr (std::is_same_v<T, float>) {
            element = static_cast<float>(bits % 20001) / 10000 - 1;
          } else {
            std::memcpy(static_cast<void*>(&element), &bits, sizeof(T));
          }
        }
        tensors->push_back(std::move(tensor));
      }
    }
  }

  [[nodiscard]] std::vector<ha::LayerKv<T const>> layers() const {
    std::vector<ha::LayerKv<T const>> result;
    for (std::size_t l = 0; l < keys.size(); ++l) result.push_back({keys[l].data(), values[l].data()});
    return result;
  }
  [[nodiscard]] std::vector<ha::LayerKv<T>> layers() {
    std::vector<ha::LayerKv<T>> result;
    for (std::size_t l = 0; l < keys.size(); ++l) result.push_back({keys[l].data(), values[l].data()});
    return result;
  }
  [[nodiscard]] T key(std::int32_t layer, std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    auto const layout = ha::detail::keys_of(source);
    return keys[static_cast<std::size_t>(layer)][static_cast<std::size_t>(layout.offset(b, h, t, c))];
  }
  [[nodiscard]] T value(std::int32_t layer, std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    auto const layout = ha::detail::values_of(source);
    return values[static_cast<std::size_t>(layer)][static_cast<std::size_t>(layout.offset(b, h, t, c))];
  }
};

/// Where a form must put each kept row: row number in the layer's buffer, by (layer, sequence, head, slot).
using RowMap = std::map<std::vector<std::int64_t>, std::int64_t>;

/// Calls `f(layer, sequence, head, tokens)` for every segment.
template <class Table, class F>
void for_each_segment(Table const& table, std::vector<std::int32_t> const& lengths, F const& f) {
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t b = 0; b < static_cast<std::int32_t>(lengths.size()); ++b) {
      for (std::int32_t h = 0; h < table.num_kv_heads(); ++h) {
        f(layer, b, h, kept_tokens(table, layer, b, h, lengths[static_cast<std::size_t>(b)]));
      }
    }
  }
}

template <class Table>
RowMap ragged_rows(Table const& table, std::vector<std::int32_t> const& lengths) {
  RowMap rows;
  std::map<std::int64_t, std::int64_t> next;
  for_each_segment(table, lengths, [&](auto layer, auto b, auto h, auto const& tokens) {
    for (std::size_t i = 0; i < tokens.size(); ++i) rows[{layer, b, h, static_cast<std::int64_t>(i)}] = next[layer]++;
  });
  return rows;
}

template <class Table>
RowMap padded_row_map(Table const& table, std::vector<std::int32_t> const& lengths, ha::Alignment alignment) {
  std::map<std::int64_t, std::int64_t> most;
  for_each_segment(table, lengths, [&](auto layer, auto, auto, auto const& tokens) {
    most[layer] = std::max(most[layer], static_cast<std::int64_t>(tokens.size()));
  });
  RowMap rows;
  for_each_segment(table, lengths, [&](auto layer, auto b, auto h, auto const& tokens) {
    auto const kept = static_cast<std::int64_t>(tokens.size());
    std::int64_t const first = (std::int64_t{b} * table.num_kv_heads() + h) * most[layer] +
                               (alignment == ha::Alignment::right ? most[layer] - kept : 0);
    for (std::int64_t i = 0; i < kept; ++i) rows[{layer, b, h, i}] = first + i;
  });
  return rows;
}

}  // namespace headaware_test
