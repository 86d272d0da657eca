#pragma once

// Random caches to compress: strides, policies, lengths and channels.

#include "support/cache_arena.hpp"

#include <headaware/layout/concept.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace headaware_test {

using Strided = ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>;

/// A dense tensor with its dimensions in random order and random gaps between them, channels apart in some.
inline ha::StridedLayout random_strides(ha::LayoutShape const& shape, std::mt19937& random) {
  ha::LayoutStrides strides;
  struct Dimension {
    std::int64_t extent;
    std::int64_t* stride;
  };
  std::vector<Dimension> order{{shape.channels, &strides.channel},
                               {shape.tokens, &strides.token},
                               {shape.num_kv_heads, &strides.head},
                               {shape.num_sequences, &strides.sequence}};
  // Half of the tensors have their channels innermost.
  std::shuffle(order.begin() + (random() % 2 == 0 ? 1 : 0), order.end(), random);
  std::int64_t stride = random() % 4 == 0 ? 2 : 1;
  bool const pitched = random() % 2 == 0;
  for (Dimension const& dimension : order) {
    *dimension.stride = stride;
    stride =
        stride * std::max<std::int64_t>(1, dimension.extent) + (pitched ? static_cast<std::int64_t>(random() % 9) : 0);
  }
  return {shape, strides};
}

/// A table of random policies, window sizes around the lengths among them.
inline ha::PolicyTable random_table(std::int32_t layers, std::int32_t heads, std::int32_t longest,
                                    std::mt19937& random) {
  ha::PolicyTable table(layers, heads);
  auto const below = [&](std::int32_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<unsigned>(bound));
  };
  for (std::int32_t l = 0; l < layers; ++l) {
    for (std::int32_t h = 0; h < heads; ++h) {
      switch (random() % 6) {
        case 0: table.set(l, h, ha::Full{}); break;
        case 1: table.set(l, h, ha::Prune{}); break;
        case 2: table.set(l, h, ha::WindowOnly{.window = below(longest + 2)}); break;
        default: table.set(l, h, ha::SinkWindow{.sink = below(9), .window = below(longest + 2)});
      }
    }
  }
  return table;
}

/// The bounds of a random problem.
struct RandomBounds {
  std::int32_t heads = 4;
  std::int32_t tokens = 80;
  std::vector<std::int64_t> widths{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};  ///< one is taken for keys, one for values
};

/// @brief Calls `f(cache, table, lengths)` with `cases` random problems; keys and values differ in all but the tokens.
/// @param random  goes on in `f`, for its own choices
template <class T, class F>
void for_random_caches(unsigned seed, int cases, RandomBounds const& bounds, std::mt19937& random, F const& f) {
  auto const below = [&](auto bound) { return static_cast<decltype(bound)>(random() % static_cast<unsigned>(bound)); };
  for (int i = 0; i < cases; ++i) {
    INFO("seed " << seed << ", case " << i);
    auto const layers = 1 + below(3);
    auto const heads = 1 + below(bounds.heads);
    std::vector<std::int32_t> lengths{below(bounds.tokens), random() % 2 == 0 ? 0 : below(bounds.tokens),
                                      below(bounds.tokens)};
    if (random() % 2 == 0) lengths.resize(1);
    std::int32_t const longest = *std::max_element(lengths.begin(), lengths.end());
    auto const batch = static_cast<std::int64_t>(lengths.size());
    Channels const channels{bounds.widths[below(bounds.widths.size())], bounds.widths[below(bounds.widths.size())]};
    auto const tensor = [&](std::int64_t width) {
      return random_strides({batch, heads, longest + below(4), width}, random);
    };
    ha::StridedLayout const keys = tensor(channels.key);
    Strided const source{keys, tensor(channels.value)};
    SourceCache<T, Strided> const cache(source,
                                        std::max(source.keys.required_span_size(), source.values.required_span_size()),
                                        layers, channels.key, channels.value, seed);
    f(cache, random_table(layers, heads, longest, random), lengths);
  }
}

}  // namespace headaware_test
