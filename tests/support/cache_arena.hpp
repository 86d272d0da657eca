#pragma once

// Every form of compressed cache inside one buffer with guard zones around and between its parts, and what plain
// loops say that buffer must hold. Serves both back ends: block tables go through the caller's `upload`.

#include "support/reference_cache.hpp"
#include "support/table_upload.hpp"

#include <headaware/cache/destination.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace headaware_test {

/// What a buffer holds before; tests compare whole buffers, so a stray write shows.
template <class T>
std::vector<T> guarded(std::int64_t elements) {
  std::vector<T> result(static_cast<std::size_t>(elements));
  if (elements > 0) std::memset(static_cast<void*>(result.data()), 0xA7, result.size() * sizeof(T));
  return result;
}

template <class T>
bool same_bytes(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Which tensor of a grouped cache a head goes to.
enum class Group { none, window, full };

/// The tokens of every (layer, sequence, head), in this order, found by asking `keeps` of every token.
struct KeptTokens {
  std::int64_t layers = 0;
  std::int64_t sequences = 0;
  std::int64_t heads = 0;
  std::vector<std::vector<std::int64_t>> segments;

  template <class Table>
  KeptTokens(Table const& table, std::vector<std::int32_t> const& lengths)
      : layers(table.num_layers()), sequences(static_cast<std::int64_t>(lengths.size())), heads(table.num_kv_heads()) {
    for_each([&](auto layer, auto sequence, auto head) {
      std::int64_t const length = lengths[static_cast<std::size_t>(sequence)];
      segments.emplace_back();
      auto const list = [&](auto const& policy) {
        for (std::int64_t t = 0; t < length; ++t) {
          if (policy.keeps(t, length)) segments.back().push_back(t);
        }
      };
      auto const l = static_cast<std::int32_t>(layer);
      auto const h = static_cast<std::int32_t>(head);
      if constexpr (requires { table.visit(l, h, h, list); }) {
        table.visit(l, static_cast<std::int32_t>(sequence), h, list);
      } else {
        table.visit(l, h, list);
      }
    });
  }
  [[nodiscard]] std::int64_t segment(std::int64_t layer, std::int64_t sequence, std::int64_t head) const {
    return (layer * sequences + sequence) * heads + head;
  }
  [[nodiscard]] std::int64_t kept(std::int64_t layer, std::int64_t sequence, std::int64_t head) const {
    return static_cast<std::int64_t>(segments[static_cast<std::size_t>(segment(layer, sequence, head))].size());
  }
  template <class F>
  void for_each(F const& f) const {
    for (std::int64_t l = 0; l < layers; ++l) {
      for (std::int64_t b = 0; b < sequences; ++b) {
        for (std::int64_t h = 0; h < heads; ++h) f(l, b, h);
      }
    }
  }
};

/// Where each row begins in the buffer, in elements: [segment][slot].
struct Places {
  std::int64_t elements = 0;
  std::vector<std::vector<std::int64_t>> keys;
  std::vector<std::vector<std::int64_t>> values;
};

struct Channels {
  std::int64_t key = 0;
  std::int64_t value = 0;
};

/// Hands out stretches of the buffer with `gap` elements around each, and many more at both ends, so that what goes
/// astray is seen rather than fatal.
struct Arena {
  static constexpr std::int64_t margin = 1024;
  std::int64_t gap;
  std::int64_t end = margin + gap;
  [[nodiscard]] std::int64_t elements() const { return end + margin; }
  std::int64_t take(std::int64_t elements) {
    std::int64_t const begin = end;
    end += elements + gap;
    return begin;
  }
};

/// The buffer that a right compaction leaves.
template <class T, class Source>
std::vector<T> expected_arena(SourceCache<T, Source> const& cache, KeptTokens const& tokens, Places const& places) {
  std::vector<T> arena = guarded<T>(places.elements);
  tokens.for_each([&](auto l, auto b, auto h) {
    auto const s = static_cast<std::size_t>(tokens.segment(l, b, h));
    for (std::size_t i = 0; i < tokens.segments[s].size(); ++i) {
      auto const token = tokens.segments[s][i];
      for (std::int64_t c = 0; c < cache.head_dim; ++c) {
        arena[static_cast<std::size_t>(places.keys[s][i] + c)] =
            cache.key(static_cast<std::int32_t>(l), b, h, token, c);
      }
      for (std::int64_t c = 0; c < cache.value_dim; ++c) {
        arena[static_cast<std::size_t>(places.values[s][i] + c)] =
            cache.value(static_cast<std::int32_t>(l), b, h, token, c);
      }
    }
  });
  return arena;
}

/// Rows of a form whose layers are dense tensors: how many, and the number of each (segment, slot) in its layer.
struct DenseRows {
  std::vector<std::int64_t> layer_rows;
  std::vector<std::vector<std::int64_t>> rows;
};

inline DenseRows naive_ragged(KeptTokens const& tokens) {
  DenseRows result{std::vector<std::int64_t>(static_cast<std::size_t>(tokens.layers)), {}};
  tokens.for_each([&](auto l, auto b, auto h) {
    result.rows.emplace_back();
    for (std::int64_t i = 0; i < tokens.kept(l, b, h); ++i) {
      result.rows.back().push_back(result.layer_rows[static_cast<std::size_t>(l)]++);
    }
  });
  return result;
}

inline DenseRows naive_padded(KeptTokens const& tokens, bool right) {
  DenseRows result;
  for (std::int64_t l = 0; l < tokens.layers; ++l) {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < tokens.sequences; ++b) {
      for (std::int64_t h = 0; h < tokens.heads; ++h) most = std::max(most, tokens.kept(l, b, h));
    }
    std::int64_t first = 0;
    for (std::int64_t b = 0; b < tokens.sequences; ++b) {
      for (std::int64_t h = 0; h < tokens.heads; ++h, first += most) {
        std::int64_t const kept = tokens.kept(l, b, h);
        result.rows.emplace_back(static_cast<std::size_t>(kept));
        std::iota(result.rows.back().begin(), result.rows.back().end(), first + (right ? most - kept : 0));
      }
    }
    result.layer_rows.push_back(first);
  }
  return result;
}

/// @param group_of  (layer, head) to group
template <class GroupOf>
DenseRows naive_grouped(KeptTokens const& tokens, GroupOf const& group_of) {
  DenseRows result{{}, std::vector<std::vector<std::int64_t>>(tokens.segments.size())};
  for (std::int64_t l = 0; l < tokens.layers; ++l) {
    std::int64_t first = 0;
    for (Group const group : {Group::full, Group::window}) {
      std::int64_t most = 0;
      for (std::int64_t b = 0; b < tokens.sequences; ++b) {
        for (std::int64_t h = 0; h < tokens.heads; ++h) {
          if (group_of(l, h) == group) most = std::max(most, tokens.kept(l, b, h));
        }
      }
      for (std::int64_t b = 0; b < tokens.sequences; ++b) {
        for (std::int64_t h = 0; h < tokens.heads; ++h) {
          if (group_of(l, h) != group) continue;
          auto& rows = result.rows[static_cast<std::size_t>(tokens.segment(l, b, h))];
          for (std::int64_t i = 0; i < tokens.kept(l, b, h); ++i) rows.push_back(first + i);
          first += most;
        }
      }
    }
    result.layer_rows.push_back(first);
  }
  return result;
}

/// A dense form twice: all layers in one buffer, and each layer in its own, the last layer's first.
template <class T, class One, class Each, class F>
void dense_arenas(std::string const& name, KeptTokens const& tokens, DenseRows const& dense, Channels const& channels,
                  std::int64_t gap, One const& one, Each const& each, F const& f) {
  auto const layers = static_cast<std::size_t>(tokens.layers);
  auto const place = [&](std::vector<std::int64_t> const& keys, std::vector<std::int64_t> const& values,
                         std::int64_t elements) {
    Places places{elements, dense.rows, dense.rows};
    tokens.for_each([&](auto l, auto b, auto h) {
      auto const s = static_cast<std::size_t>(tokens.segment(l, b, h));
      for (auto& row : places.keys[s]) row = keys[static_cast<std::size_t>(l)] + row * channels.key;
      for (auto& row : places.values[s]) row = values[static_cast<std::size_t>(l)] + row * channels.value;
    });
    return places;
  };
  std::vector<std::int64_t> keys(layers);
  std::vector<std::int64_t> values(layers);
  {
    std::int64_t const rows = std::accumulate(dense.layer_rows.begin(), dense.layer_rows.end(), std::int64_t{0});
    Arena arena{gap};
    std::int64_t const first_key = arena.take(rows * channels.key);
    std::int64_t const first_value = arena.take(rows * channels.value);
    std::int64_t row = 0;
    for (std::size_t l = 0; l < layers; row += dense.layer_rows[l++]) {
      keys[l] = first_key + row * channels.key;
      values[l] = first_value + row * channels.value;
    }
    f(name + ", one buffer", place(keys, values, arena.elements()),
      [&](T* buffer, auto const&) { return one(buffer + first_key, buffer + first_value); });
  }
  Arena arena{gap};
  for (std::size_t l = layers; l-- > 0;) {
    values[l] = arena.take(dense.layer_rows[l] * channels.value);
    keys[l] = arena.take(dense.layer_rows[l] * channels.key);
  }
  f(name + ", a buffer a layer", place(keys, values, arena.elements()), [&](T* buffer, auto const&) {
    std::vector<ha::LayerKv<T>> pointers;
    for (std::size_t l = 0; l < layers; ++l) pointers.push_back({buffer + keys[l], buffer + values[l]});
    return each(pointers);
  });
}

/// How a paged cache is stored.
struct Paging {
  std::int32_t page_size = 1;
  bool csr = false;           ///< block table in CSR form, else dense rows with unused entries at their ends
  bool shared_pool = false;   ///< all layers take pages of one pool
  bool joined = false;        ///< keys and values of a page side by side
  std::int64_t page_gap = 0;  ///< joined: elements of something else after them
};

/// A paged form with pages in random order and unused pages among them.
template <class T, class Plan, class F>
void paged_arena(Plan const& plan, KeptTokens const& tokens, Channels const& channels, Paging const& paging,
                 std::int64_t gap, unsigned seed, F const& f) {
  std::int64_t const size = paging.page_size;
  auto const pages_of = [&](std::size_t s) {
    return (static_cast<std::int64_t>(tokens.segments[s].size()) + size - 1) / size;
  };
  std::int64_t widest = 1;
  std::int64_t total = 0;
  for (std::size_t s = 0; s < tokens.segments.size(); ++s) {
    widest = std::max(widest, pages_of(s));
    total += pages_of(s);
  }
  std::int64_t const pool_pages = total + 3;
  std::vector<std::int32_t> free_pages(static_cast<std::size_t>(pool_pages));
  std::iota(free_pages.begin(), free_pages.end(), 0);
  std::mt19937 random(seed);
  std::shuffle(free_pages.begin(), free_pages.end(), random);

  std::int64_t const page_elements = paging.joined ? size * (channels.key + channels.value) + paging.page_gap
                                                   : size * std::max(channels.key, channels.value);
  Arena arena{gap};
  std::vector<std::int64_t> key_pools;
  std::vector<std::int64_t> value_pools;
  for (std::int64_t l = 0; l < tokens.layers; ++l) {
    if (paging.shared_pool && l > 0) {
      key_pools.push_back(key_pools.front());
      value_pools.push_back(value_pools.front());
    } else if (paging.joined) {
      key_pools.push_back(arena.take(pool_pages * page_elements));
      value_pools.push_back(key_pools.back() + size * channels.key);
    } else {
      key_pools.push_back(arena.take(pool_pages * size * channels.key));
      value_pools.push_back(arena.take(pool_pages * size * channels.value));
    }
  }

  std::int64_t const stride = widest + 1;
  std::vector<std::int32_t> table(paging.csr ? 0 : tokens.segments.size() * static_cast<std::size_t>(stride), -1);
  std::vector<std::int32_t> indptr{0};
  Places places{arena.elements(), {}, {}};
  std::size_t next = 0;
  tokens.for_each([&](auto l, auto b, auto h) {
    auto const s = static_cast<std::size_t>(tokens.segment(l, b, h));
    std::vector<std::int32_t> own;
    for (std::int64_t p = 0; p < pages_of(s); ++p) own.push_back(free_pages[next++]);
    if (paging.csr) {
      table.insert(table.end(), own.begin(), own.end());
      indptr.push_back(static_cast<std::int32_t>(table.size()));
    } else {
      std::copy(own.begin(), own.end(), table.begin() + static_cast<std::ptrdiff_t>(s) * stride);
    }
    places.keys.emplace_back();
    places.values.emplace_back();
    for (std::int64_t i = 0; i < tokens.kept(l, b, h); ++i) {
      std::int64_t const page = own[static_cast<std::size_t>(i / size)];
      auto const row = [&](std::int64_t pool, std::int64_t row_elements) {
        return pool + page * (paging.joined ? page_elements : size * row_elements) + i % size * row_elements;
      };
      places.keys.back().push_back(row(key_pools[static_cast<std::size_t>(l)], channels.key));
      places.values.back().push_back(row(value_pools[static_cast<std::size_t>(l)], channels.value));
    }
  });

  std::string const name = std::string("paged by ") + std::to_string(size) + (paging.csr ? ", CSR" : ", dense") +
                           (paging.shared_pool ? ", one pool" : "") + (paging.joined ? ", joined" : "");
  f(name, places, [&](T* buffer, auto const& upload) {
    ha::PagedForm form{.page_size = paging.page_size};
    form.block_table = upload(table.empty() ? std::vector<std::int32_t>{-1} : table);
    if (paging.csr) form.indptr = upload(indptr);
    if (!paging.csr) form.table_stride = stride;
    if (paging.joined) form.page_stride = page_elements;
    std::vector<ha::LayerKv<T>> pools;
    for (std::size_t l = 0; l < key_pools.size(); ++l) {
      pools.push_back({buffer + key_pools[l], buffer + value_pools[l]});
    }
    return ha::paged(plan, pools, form, channels.key, pool_pages, channels.value);
  });
}

/// @brief Calls `f(name, places, make)` for every form; `make(buffer, upload)` is the destination in that buffer, and
/// `upload(std::vector<std::int32_t>)` puts indices where the back end reads them.
/// @param gap  elements between parts; odd: rows aligned to one element only
template <class T, class Plan, class F>
void for_each_form(Plan const& plan, KeptTokens const& tokens, Channels const& channels, std::int64_t gap,
                   unsigned seed, F const& f) {
  auto const k = channels.key;
  auto const v = channels.value;
  dense_arenas<T>(
      "ragged", tokens, naive_ragged(tokens), channels, gap,
      [&](T* keys, T* values) { return ha::ragged(plan, keys, values, k, v); },
      [&](auto const& layers) { return ha::ragged(plan, layers, k, v); }, f);
  for (auto const side : {ha::Alignment::left, ha::Alignment::right}) {
    bool const right = side == ha::Alignment::right;
    dense_arenas<T>(
        right ? "padded, right" : "padded, left", tokens, naive_padded(tokens, right), channels, gap,
        [&](T* keys, T* values) { return ha::padded(plan, keys, values, k, side, v); },
        [&](auto const& layers) { return ha::padded(plan, layers, k, side, v); }, f);
  }
  auto const group_of = [&](std::int64_t layer, std::int64_t head) {
    auto const group = [](auto const& policy) {
      using P = std::remove_cvref_t<decltype(policy)>;
      return std::is_same_v<P, ha::Full> ? Group::full : std::is_same_v<P, ha::Prune> ? Group::none : Group::window;
    };
    auto const l = static_cast<std::int32_t>(layer);
    auto const h = static_cast<std::int32_t>(head);
    if constexpr (requires { plan.table().visit(l, h, h, group); }) {
      return plan.table().visit(l, 0, h, group);
    } else {
      return plan.table().visit(l, h, group);
    }
  };
  dense_arenas<T>(
      "grouped", tokens, naive_grouped(tokens, group_of), channels, gap,
      [&](T* keys, T* values) { return ha::grouped(plan, keys, values, k, v); },
      [&](auto const& layers) { return ha::grouped(plan, layers, k, v); }, f);
  for (Paging const& paging :
       {Paging{.page_size = 5}, Paging{.page_size = 16, .csr = true, .shared_pool = true},
        Paging{.page_size = 1, .csr = true}, Paging{.page_size = 4, .joined = true, .page_gap = 16},
        Paging{.page_size = 8, .csr = true, .shared_pool = true, .joined = true, .page_gap = 1}}) {
    paged_arena<T>(plan, tokens, channels, paging, gap, seed, f);
  }
}

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

}  // namespace headaware_test
