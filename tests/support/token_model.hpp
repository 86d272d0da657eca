#pragma once

// Caches that are kept up while decoding, as plain lists: every sequence the tokens it has seen, every head what its
// policy's `keeps` says of them. A token's channels follow from its number, so a wrong row is known by its content.

#include "support/differences.hpp"

#include <headaware/cache/destination.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <cstring>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// The content of one channel of a token. @param plane 0: keys; 1: values
template <class T>
T token_element(std::int64_t number, std::int64_t layer, std::int64_t head, int plane, std::int64_t channel) {
  std::uint32_t x = static_cast<std::uint32_t>(number) * 2654435761U + static_cast<std::uint32_t>(layer) * 40503U +
                    static_cast<std::uint32_t>(head) * 9973U + static_cast<std::uint32_t>(plane) * 77U +
                    static_cast<std::uint32_t>(channel) * 1299721U;
  x = (x ^ (x >> 15)) * 2246822519U;
  x ^= x >> 13;
  T element;
  std::memcpy(static_cast<void*>(&element), &x, sizeof(T));
  if constexpr (std::is_same_v<T, float>) element = static_cast<float>(x % 65536U);
  return element;
}

struct TokenModel {
  ha::PolicyTable table;
  std::vector<std::vector<std::int64_t>> sequences;  ///< numbers of the tokens seen
  std::int64_t next = 1;

  TokenModel(ha::PolicyTable policies, std::int32_t num_sequences)
      : table(std::move(policies)), sequences(static_cast<std::size_t>(num_sequences)) {}

  [[nodiscard]] std::int64_t length(std::int64_t sequence) const {
    return static_cast<std::int64_t>(sequences[static_cast<std::size_t>(sequence)].size());
  }
  /// New tokens of every sequence.
  void append(std::vector<std::int32_t> const& counts) {
    for (std::size_t b = 0; b < counts.size(); ++b) {
      for (std::int32_t i = 0; i < counts[b]; ++i) sequences[b].push_back(next++);
    }
  }
  /// The places of the tokens that a head keeps, oldest first.
  [[nodiscard]] std::vector<std::int64_t> kept(std::int32_t layer, std::int64_t sequence, std::int32_t head,
                                               std::int64_t at_length) const {
    std::vector<std::int64_t> result;
    (void)sequence;
    table.visit(layer, head, [&](auto const& policy) {
      for (std::int64_t t = 0; t < at_length; ++t) {
        if (policy.keeps(t, at_length)) result.push_back(t);
      }
    });
    return result;
  }
};

/// The last `counts` tokens of every sequence as tensors to append.
template <class T>
struct NewTokens {
  ha::StridedLayout keys_layout;
  ha::StridedLayout values_layout;
  std::vector<std::vector<T>> keys;
  std::vector<std::vector<T>> values;

  /// @param key_layout, value_layout  with room for the longest
  NewTokens(TokenModel const& model, std::vector<std::int32_t> const& counts, ha::StridedLayout const& key_layout,
            ha::StridedLayout const& value_layout)
      : keys_layout(key_layout), values_layout(value_layout) {
    for (std::int32_t l = 0; l < model.table.num_layers(); ++l) {
      auto const fill = [&](ha::StridedLayout const& layout, int plane) {
        std::vector<T> tensor(static_cast<std::size_t>(layout.required_span_size()), T{});
        for (std::size_t b = 0; b < counts.size(); ++b) {
          auto const& numbers = model.sequences[b];
          for (std::int32_t t = 0; t < counts[b]; ++t) {
            auto const number =
                numbers[numbers.size() - static_cast<std::size_t>(counts[b]) + static_cast<std::size_t>(t)];
            for (std::int32_t h = 0; h < model.table.num_kv_heads(); ++h) {
              for (std::int64_t c = 0; c < layout.num_channels(); ++c) {
                tensor[static_cast<std::size_t>(layout.offset(static_cast<std::int64_t>(b), h, t, c))] =
                    token_element<T>(number, l, h, plane, c);
              }
            }
          }
        }
        return tensor;
      };
      keys.push_back(fill(keys_layout, 0));
      values.push_back(fill(values_layout, 1));
    }
  }
  [[nodiscard]] std::vector<ha::LayerKv<T const>> layers() const {
    std::vector<ha::LayerKv<T const>> result;
    for (std::size_t l = 0; l < keys.size(); ++l) result.push_back({keys[l].data(), values[l].data()});
    return result;
  }
  [[nodiscard]] auto layout() const {
    return ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>{keys_layout, values_layout};
  }
};

/// Notes where a row does not hold a token.
/// @param plane  0: keys, 1: values
template <class T>
void note_row(FirstDifference& difference, T const* row, std::int64_t number, std::int64_t layer, std::int64_t head,
              int plane, std::int64_t channels) {
  for (std::int64_t c = 0; c < channels; ++c) {
    T const expected = token_element<T>(number, layer, head, plane, c);
    difference.expect_that(std::memcmp(row + c, &expected, sizeof(T)) == 0, row[c], expected,
                           plane == 0 ? "key" : "value", " of token number ", number, ", layer ", layer, ", KV head ",
                           head, ", channel ", c);
  }
}

/// New tokens' tensors in one of several layouts.
inline ha::StridedLayout new_token_layout(std::uint_fast32_t kind, std::int64_t batch, std::int64_t heads,
                                          std::int64_t tokens, std::int64_t channels) {
  switch (kind % 3) {
    case 0: return ha::strided_bhsd(batch, heads, tokens, channels);
    case 1: return ha::strided_bshd(batch, tokens, heads, channels);
    default: return ha::strided_bhds(batch, heads, channels, tokens);
  }
}

/// A table with heads of every kind, windows of 1 among them.
inline ha::PolicyTable mixed_table() {
  ha::PolicyTable table(2, 4, ha::SinkWindow{.sink = 3, .window = 7});
  table.set(0, 1, ha::WindowOnly{.window = 5});
  table.set(0, 3, ha::Full{});
  table.set(1, 0, ha::Prune{});
  table.set(1, 1, ha::SinkWindow{.sink = 4, .window = 0});
  table.set(1, 2, ha::WindowOnly{.window = 1});
  table.set(1, 3, ha::SinkWindow{.sink = 1, .window = 16});
  return table;
}

}  // namespace headaware_test
