#pragma once

// A cache to compress, and what must come of it: plain loops over `keeps`, sharing nothing with the
// library's own maps between tokens and slots.

#include "support/differences.hpp"

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/concept.hpp>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
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
  [[nodiscard]] T& key(std::int32_t layer, std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) {
    return keys[static_cast<std::size_t>(layer)][offset(ha::detail::keys_of(source), b, h, t, c)];
  }
  [[nodiscard]] T& value(std::int32_t layer, std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) {
    return values[static_cast<std::size_t>(layer)][offset(ha::detail::values_of(source), b, h, t, c)];
  }
  [[nodiscard]] T const& key(std::int32_t layer, std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    return keys[static_cast<std::size_t>(layer)][offset(ha::detail::keys_of(source), b, h, t, c)];
  }
  [[nodiscard]] T const& value(std::int32_t layer, std::int64_t b, std::int64_t h, std::int64_t t,
                               std::int64_t c) const {
    return values[static_cast<std::size_t>(layer)][offset(ha::detail::values_of(source), b, h, t, c)];
  }
  /// Numbers in [-1, 1] for keys, which can be rotated.
  void fill_keys(unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (auto& tensor : keys) {
      for (T& x : tensor) x = ha::from_float<T>(uniform(random));
    }
  }

 private:
  static std::size_t offset(auto const& layout, std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) {
    return static_cast<std::size_t>(layout.offset(b, h, t, c));
  }
};

/// The first difference of two caches' tensors; empty: none.
template <class T, class Source>
std::string first_difference(SourceCache<T, Source> const& got, SourceCache<T, Source> const& expected) {
  FirstDifference difference;
  for (std::size_t l = 0; l < expected.keys.size(); ++l) {
    auto const name = [l](char const* what) {
      return [l, what](std::size_t i) {
        return std::string(what) + " of layer " + std::to_string(l) + ", element " + std::to_string(i);
      };
    };
    difference.note(first_difference(got.keys[l], expected.keys[l], name("keys")));
    difference.note(first_difference(got.values[l], expected.values[l], name("values")));
  }
  return difference.text();
}

/// The tokens of every (layer, sequence, head), in this order, found by asking `keeps` of every token.
struct KeptTokens {
  std::int32_t layers = 0;
  std::int64_t sequences = 0;
  std::int64_t heads = 0;
  std::vector<std::vector<std::int64_t>> segments;

  template <class Table>
  KeptTokens(Table const& table, std::vector<std::int32_t> const& lengths)
      : layers(table.num_layers()), sequences(static_cast<std::int64_t>(lengths.size())), heads(table.num_kv_heads()) {
    for_each([&](auto layer, auto b, auto h) {
      segments.push_back(kept_tokens(table, layer, static_cast<std::int32_t>(b), static_cast<std::int32_t>(h),
                                     lengths[static_cast<std::size_t>(b)]));
    });
  }
  [[nodiscard]] std::int64_t segment(std::int64_t layer, std::int64_t b, std::int64_t h) const {
    return (layer * sequences + b) * heads + h;
  }
  [[nodiscard]] std::vector<std::int64_t> const& of(std::int64_t layer, std::int64_t b, std::int64_t h) const {
    return segments[static_cast<std::size_t>(segment(layer, b, h))];
  }
  [[nodiscard]] std::int64_t kept(std::int64_t layer, std::int64_t b, std::int64_t h) const {
    return static_cast<std::int64_t>(of(layer, b, h).size());
  }
  /// Calls `f(layer, sequence, head)` for every segment.
  template <class F>
  void for_each(F const& f) const {
    for (std::int32_t l = 0; l < layers; ++l) {
      for (std::int64_t b = 0; b < sequences; ++b) {
        for (std::int64_t h = 0; h < heads; ++h) f(l, b, h);
      }
    }
  }
  /// Calls `f(layer, sequence, head, slot, token)` for every token that is kept.
  template <class F>
  void for_each_row(F const& f) const {
    for_each([&](auto l, auto b, auto h) {
      std::int64_t slot = 0;
      for (auto const token : of(l, b, h)) f(l, b, h, slot++, token);
    });
  }
};

/// What compaction in place makes of a cache. @param named  whether (layer, sequence, head, slot) takes part
template <class T, class Source, class Named>
SourceCache<T, Source> compacted_in_place(SourceCache<T, Source> const& before, KeptTokens const& tokens,
                                          Named const& named) {
  auto result = before;
  tokens.for_each_row([&](auto l, auto b, auto h, auto slot, auto token) {
    if (!named(l, b, h, slot)) return;
    for (std::int64_t c = 0; c < before.head_dim; ++c) result.key(l, b, h, slot, c) = before.key(l, b, h, token, c);
    for (std::int64_t c = 0; c < before.value_dim; ++c) {
      result.value(l, b, h, slot, c) = before.value(l, b, h, token, c);
    }
  });
  return result;
}
template <class T, class Source>
SourceCache<T, Source> compacted_in_place(SourceCache<T, Source> const& before, KeptTokens const& tokens) {
  return compacted_in_place(before, tokens, [](auto...) { return true; });
}

}  // namespace headaware_test
