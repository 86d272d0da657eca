#pragma once

// Every form of compressed cache inside one buffer with guard zones around and between its parts, and what plain
// loops say that buffer must hold. Serves both back ends: block tables go through the caller's `upload`.

#include "support/reference_cache.hpp"
#include "support/table_upload.hpp"

#include <headaware/cache/destination.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/prune.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <sstream>
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

/// Which tensor of a grouped cache a head goes to.
enum class Group { none, window, full };

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
  tokens.for_each_row([&](auto l, auto b, auto h, auto slot, auto token) {
    auto const s = static_cast<std::size_t>(tokens.segment(l, b, h));
    auto const i = static_cast<std::size_t>(slot);
    for (std::int64_t c = 0; c < cache.head_dim; ++c) {
      arena[static_cast<std::size_t>(places.keys[s][i] + c)] = cache.key(l, b, h, token, c);
    }
    for (std::int64_t c = 0; c < cache.value_dim; ++c) {
      arena[static_cast<std::size_t>(places.values[s][i] + c)] = cache.value(l, b, h, token, c);
    }
  });
  return arena;
}

/// The first difference of a buffer from that, by the row it lies in; empty: none.
template <class T>
std::string arena_difference(std::vector<T> const& got, std::vector<T> const& expected, Channels const& channels,
                             KeptTokens const& tokens, Places const& places) {
  return first_difference(got, expected, [&](std::size_t element) {
    std::string name = "outside all rows, element " + std::to_string(element);
    tokens.for_each_row([&](auto l, auto b, auto h, auto slot, auto token) {
      auto const find = [&](char const* what, auto const& rows, std::int64_t width) {
        auto const s = static_cast<std::size_t>(tokens.segment(l, b, h));
        std::int64_t const c = static_cast<std::int64_t>(element) - rows[s][static_cast<std::size_t>(slot)];
        if (c < 0 || c >= width) return;
        std::ostringstream out;
        out << what << " of layer " << l << ", sequence " << b << ", KV head " << h << ", row " << slot << " (token "
            << token << "), channel " << c;
        name = out.str();
      };
      find("key", places.keys, channels.key);
      find("value", places.values, channels.value);
    });
    return name;
  });
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

template <class Table>
DenseRows naive_grouped(KeptTokens const& tokens, Table const& table) {
  auto const group_of = [&](std::int32_t layer, std::int64_t head) {
    auto const group = [](auto const& policy) {
      using P = std::remove_cvref_t<decltype(policy)>;
      return std::is_same_v<P, ha::Full> ? Group::full : std::is_same_v<P, ha::Prune> ? Group::none : Group::window;
    };
    auto const h = static_cast<std::int32_t>(head);
    if constexpr (requires { table.visit(layer, h, h, group); }) {
      return table.visit(layer, 0, h, group);
    } else {
      return table.visit(layer, h, group);
    }
  };
  DenseRows result{{}, std::vector<std::vector<std::int64_t>>(tokens.segments.size())};
  for (std::int32_t l = 0; l < tokens.layers; ++l) {
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
template <class T, class Compaction, class F>
void paged_arena(Compaction const& compaction, KeptTokens const& tokens, Channels const& channels, Paging const& paging,
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
    return ha::paged(compaction, pools, form, channels.key, pool_pages, channels.value);
  });
}

/// @brief Calls `f(name, places, make)` for a ragged cache; `make` as in `for_each_form`.
template <class T, class Compaction, class F>
void ragged_arenas(Compaction const& compaction, KeptTokens const& tokens, Channels const& channels, std::int64_t gap,
                   F const& f) {
  dense_arenas<T>(
      "ragged", tokens, naive_ragged(tokens), channels, gap,
      [&](T* keys, T* values) { return ha::ragged(compaction, keys, values, channels.key, channels.value); },
      [&](auto const& layers) { return ha::ragged(compaction, layers, channels.key, channels.value); }, f);
}

/// @brief Calls `f(name, places, make)` for every form; `make(buffer, upload)` is the destination in that buffer, and
/// `upload(std::vector<std::int32_t>)` puts indices where the back end reads them.
/// @param gap  elements between parts; odd: rows aligned to one element only
template <class T, class Compaction, class F>
void for_each_form(Compaction const& compaction, KeptTokens const& tokens, Channels const& channels, std::int64_t gap,
                   unsigned seed, F const& f) {
  auto const k = channels.key;
  auto const v = channels.value;
  ragged_arenas<T>(compaction, tokens, channels, gap, f);
  for (auto const side : {ha::Alignment::left, ha::Alignment::right}) {
    bool const right = side == ha::Alignment::right;
    dense_arenas<T>(
        right ? "padded, right" : "padded, left", tokens, naive_padded(tokens, right), channels, gap,
        [&](T* keys, T* values) { return ha::padded(compaction, keys, values, k, side, v); },
        [&](auto const& layers) { return ha::padded(compaction, layers, k, side, v); }, f);
  }
  dense_arenas<T>(
      "grouped", tokens, naive_grouped(tokens, compaction.table()), channels, gap,
      [&](T* keys, T* values) { return ha::grouped(compaction, keys, values, k, v); },
      [&](auto const& layers) { return ha::grouped(compaction, layers, k, v); }, f);
  for (Paging const& paging :
       {Paging{.page_size = 5}, Paging{.page_size = 16, .csr = true, .shared_pool = true},
        Paging{.page_size = 1, .csr = true}, Paging{.page_size = 4, .joined = true, .page_gap = 16},
        Paging{.page_size = 8, .csr = true, .shared_pool = true, .joined = true, .page_gap = 1}}) {
    paged_arena<T>(compaction, tokens, channels, paging, gap, seed, f);
  }
}

}  // namespace headaware_test
