#pragma once

// What a paged cache must hold, page by page, for walks on both back ends: content, owners, and tables for engines.

#include "support/token_model.hpp"

#include <headaware/cache/paged_append.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

namespace headaware_test {

/// Everything that a failed call must leave as it was.
struct PagedSnapshot {
  std::vector<std::int32_t> table;
  std::vector<std::int32_t> lengths;
  std::vector<std::int64_t> high_water;
  std::vector<std::int32_t> references;
  std::int64_t free_pages;

  explicit PagedSnapshot(ha::PagedHeads const& pages)
      : table(pages.table().begin(), pages.table().end()),
        lengths(pages.state().lengths().begin(), pages.state().lengths().end()),
        free_pages(pages.pool().free_pages()) {
    for (std::int32_t b = 0; b < pages.shape().num_sequences; ++b) high_water.push_back(pages.state().high_water(b));
    for (std::int32_t p = 0; p < pages.pool().num_pages(); ++p) references.push_back(pages.pool().references(p));
  }
  friend bool operator==(PagedSnapshot const&, PagedSnapshot const&) = default;
};

/// None lost, none freed twice: every page has as many owners as entries name it, and the others are free.
inline bool accounts_balance(ha::PagedHeads const& pages, std::int64_t taken_elsewhere = 0) {
  std::vector<std::int32_t> owners(static_cast<std::size_t>(pages.pool().num_pages()), 0);
  for (std::int32_t const page : pages.table()) {
    if (page >= 0) ++owners[static_cast<std::size_t>(page)];
  }
  std::int64_t free_pages = 0;
  std::int64_t unnamed = 0;
  for (std::int32_t p = 0; p < pages.pool().num_pages(); ++p) {
    auto const references = pages.pool().references(p);
    auto const named = owners[static_cast<std::size_t>(p)];
    free_pages += references == 0 ? 1 : 0;
    if (references == 1 && named == 0) {
      ++unnamed;
    } else if (references != named) {
      return false;
    }
  }
  return free_pages == pages.pool().free_pages() && unnamed == taken_elsewhere;
}

/// The first difference between one sequence's pages and what the policies keep; empty: none.
/// @param page_stride  as `PageStorage::page_stride`
template <class T>
std::string pages_difference(TokenModel const& model, ha::PagedHeads const& pages, std::int32_t b, T const* keys,
                             std::int64_t head_dim, T const* values, std::int64_t value_dim,
                             std::int64_t page_stride = 0) {
  FirstDifference result;
  std::int64_t const length = model.length(b);
  std::int32_t const heads = model.table.num_kv_heads();
  for (std::int32_t l = 0; l < model.table.num_layers(); ++l) {
    auto const sinks = pages.indices(l, ha::PagePart::sinks);
    auto const window = pages.indices(l, ha::PagePart::window);
    auto const whole = pages.indices(l, ha::PagePart::whole);
    auto const dense = pages.block_table(l, ha::PagePart::window);
    std::int64_t const size = pages.page_size(l);
    result.expect(std::int64_t{whole.page_size}, size, "page size of layer ", l);
    result.expect(std::int64_t{dense.page_size}, size, "page size of layer ", l, ", block table");
    for (std::int32_t h = 0; h < heads && result.text().empty(); ++h) {
      auto const expect = [&](char const* what, auto const& got, auto const& expected) {
        result.expect(got, expected, what, " of layer ", l, ", sequence ", b, ", KV head ", h);
      };
      auto const note = [&](std::int64_t page, std::int64_t at, std::int64_t token) {
        std::int64_t const number = model.sequences[static_cast<std::size_t>(b)][static_cast<std::size_t>(token)];
        auto const row = [&](T const* pool, std::int64_t dim) {
          return pool + page * (page_stride != 0 ? page_stride : size * dim) + at * dim;
        };
        note_row(result, row(keys, head_dim), number, l, h, 0, head_dim);
        note_row(result, row(values, value_dim), number, l, h, 1, value_dim);
      };
      auto const kept = model.kept(l, b, h, length);
      // The two exact parts, one after the other, are the kept tokens in order.
      std::size_t next = 0;
      auto const entry = static_cast<std::size_t>(b * heads + h);
      for (auto const* part : {&sinks, &window}) {
        for (std::int32_t i = part->indptr[entry]; i < part->indptr[entry + 1]; ++i) {
          bool const last = i + 1 == part->indptr[entry + 1];
          std::int64_t const end = last ? part->last_page_len[entry] : size;
          expect("last_page_len is in the page", end >= 1 && end <= size, true);
          for (std::int64_t at = i == part->indptr[entry] ? part->kv_start[entry] : 0; at < end; ++at, ++next) {
            if (next < kept.size()) note(part->indices[static_cast<std::size_t>(i)], at, kept[next]);
          }
        }
      }
      expect("rows in the exact parts", next, kept.size());
      std::int64_t const pages_of_window = window.indptr[entry + 1] - window.indptr[entry];
      std::int64_t const in_window =
          pages_of_window == 0 ? 0 : (pages_of_window - 1) * size + window.last_page_len[entry];
      // What a kernel shows that knows no `kv_start`, but a sliding window, of the second part: the same.
      if (pages_of_window > 0) expect("kv_start", window.kv_start[entry], in_window - pages.head(l, h).rule.window);
      // The dense table says the same.
      for (std::int64_t i = 0; i < pages_of_window; ++i) {
        expect("dense table entry",
               dense.block_table[entry * static_cast<std::size_t>(dense.max_blocks) + static_cast<std::size_t>(i)],
               window.indices[static_cast<std::size_t>(window.indptr[entry] + i)]);
      }
      expect("seq_lens", dense.seq_lens[entry], in_window);
      // Whole pages: those with a kept token, each once, and every token in them in its place.
      std::set<std::int64_t> needed;
      for (std::int64_t const token : kept) needed.insert(token / size);
      auto const whole_pages = static_cast<std::size_t>(whole.indptr[entry + 1] - whole.indptr[entry]);
      expect("whole pages", whole_pages, needed.size());
      if (whole_pages != needed.size()) continue;
      std::int32_t i = whole.indptr[entry];
      for (std::int64_t const p : needed) {
        std::int32_t const page = whole.indices[static_cast<std::size_t>(i++)];
        expect("whole page is held", page >= 0, true);
        expect("whole page", page, pages.page(l, b, h, p));
      }
      for (std::int64_t p = 0; p * size < length; ++p) {
        std::int32_t const page = pages.page(l, b, h, p);
        for (std::int64_t at = 0; page >= 0 && at < size && p * size + at < length; ++at) note(page, at, p * size + at);
      }
      if (!needed.empty()) {
        expect("whole last_page_len", whole.last_page_len[entry], std::min(size, length - *needed.rbegin() * size));
      }
    }
  }
  return result.text();
}

/// Whether every page with a token that policies keep of the first `at` is held.
inline bool pages_reach(TokenModel const& model, ha::PagedHeads const& pages, std::int32_t b, std::int64_t at) {
  for (std::int32_t l = 0; l < model.table.num_layers(); ++l) {
    for (std::int32_t h = 0; h < model.table.num_kv_heads(); ++h) {
      for (std::int64_t const token : model.kept(l, b, h, at)) {
        if (pages.page(l, b, h, token / pages.page_size(l)) < 0) return false;
      }
    }
  }
  return true;
}

/// Policies that keep no more than others do, or the same: what a cache may change to.
inline ha::PolicyTable smaller_table(ha::PolicyTable const& table, std::mt19937& random) {
  ha::PolicyTable result = table;
  auto const below = [&](std::int32_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound));
  };
  for (std::int32_t l = 0; l < table.num_layers(); ++l) {
    for (std::int32_t h = 0; h < table.num_kv_heads(); ++h) {
      if (below(2) == 0) continue;
      ha::WindowRule const form = table.visit(l, h, [](auto const& policy) {
        if constexpr (ha::RollingPolicy<std::remove_cvref_t<decltype(policy)>>) {
          return ha::window_rule(policy);
        } else {
          return ha::WindowRule{};
        }
      });
      // Of a head that keeps all anything is left, of another one fewer sinks or a smaller window.
      bool const all = form.sink == ha::all_tokens;
      std::int32_t const sink = below(all ? 6 : form.sink + 1);
      result.set(l, h, ha::SinkWindow{.sink = sink, .window = below(all ? 18 : form.window + 1)});
    }
  }
  return result;
}

/// @brief A random walk over tables; `write(step, tokens)` writes the new tokens, `check(sequence)` names what
/// its pages hold wrongly.
template <class T, class Write, class Check>
void paged_walk(TokenModel& model, ha::PagedHeads& pages, unsigned seed, int steps, std::int64_t max_tokens,
                std::int64_t key_dim, std::int64_t value_dim, Write const& write, Check const& check) {
  auto const batch = static_cast<std::int32_t>(model.sequences.size());
  std::int32_t const heads = model.table.num_kv_heads();
  ha::PolicyTable const first = model.table;
  ha::PolicyTable const full(first.num_layers(), first.num_kv_heads(), ha::Full{});
  std::mt19937 random(seed);
  auto const below = [&](std::int64_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound));
  };
  auto const layout = [&](std::int64_t tokens, std::int64_t channels) {
    return new_token_layout(random(), batch, heads, tokens, channels);
  };
  int failures = 0;
  int copies = 0;
  int compressions = 0;
  int refusals = 0;
  for (int step = 0; step < steps; ++step) {
    INFO("seed " << seed << ", step " << step);
    std::int32_t const b = below(batch);
    auto const i = static_cast<std::size_t>(b);
    if (below(50) == 0) {
      // Other policies: fewer tokens, or those of the beginning, only to be had while nothing has been lost; or all
      // tokens, which can all be taken back before they are fewer.
      bool const anew = below(2) == 0;
      if (anew && below(2) == 0) {
        for (std::int32_t s = 0; s < batch; ++s) {
          pages.release(s);
          model.sequences[static_cast<std::size_t>(s)].clear();
        }
      }
      ha::PolicyTable const table = !anew ? smaller_table(model.table, random) : below(2) == 0 ? first : full;
      bool possible = true;
      TokenModel asked = model;
      asked.table = table;
      for (std::int32_t s = 0; s < batch; ++s) possible = possible && pages_reach(asked, pages, s, pages.length(s));
      PagedSnapshot const before(pages);
      try {
        pages.set_policies(table);
        model.table = table;
        ++compressions;
        REQUIRE(possible);
      } catch (ha::ArgumentError const&) {
        ++refusals;
        REQUIRE(!possible);
        REQUIRE(PagedSnapshot(pages) == before);
      }
      for (std::int32_t s = 0; s < batch; ++s) {
        for (std::int64_t r = pages.max_rollback(s); r >= 0; --r) {
          REQUIRE(pages_reach(model, pages, s, pages.length(s) - r));
        }
        REQUIRE(check(s) == "");
      }
    }
    switch (below(10)) {
      case 0: {
        std::int64_t const most = pages.max_rollback(b);
        for (std::int64_t r = 0; r <= most; ++r) REQUIRE(pages_reach(model, pages, b, pages.length(b) - r));
        std::int64_t const tokens = below(most + 1);
        pages.rollback(b, tokens);
        model.sequences[i].resize(static_cast<std::size_t>(pages.length(b)));
        break;
      }
      case 1: {
        std::int32_t const to = (b + 1 + below(batch - 1)) % batch;
        pages.release(to);
        pages.fork(b, to);
        model.sequences[static_cast<std::size_t>(to)] = model.sequences[i];
        break;
      }
      case 2: {
        if (below(2) == 0) break;
        pages.release(b);
        model.sequences[i].clear();
        break;
      }
      default: {
        std::vector<std::int32_t> counts(static_cast<std::size_t>(batch));
        for (std::int32_t s = 0; s < batch; ++s) {
          std::int32_t const count = below(8) == 0 ? below(30) : below(3);
          counts[static_cast<std::size_t>(s)] = model.length(s) + count <= max_tokens ? count : 0;
        }
        if (model.length(b) > max_tokens - 3) {
          pages.release(b);
          model.sequences[i].clear();
          break;
        }
        // In a third of the steps someone else takes most of the pool, so that this may fail.
        std::vector<std::int32_t> taken;
        if (below(3) == 0) {
          std::int64_t const left = below(6);
          while (pages.pool().free_pages() > left) taken.push_back(pages.pool().take());
        }
        PagedSnapshot const before(pages);
        bool failed = false;
        ha::PageStep paged;
        try {
          paged = pages.append(counts);
        } catch (ha::CapacityError const&) {
          failed = true;
        }
        if (failed) {
          ++failures;
          REQUIRE(PagedSnapshot(pages) == before);
        }
        REQUIRE(accounts_balance(pages, static_cast<std::int64_t>(taken.size())));
        for (std::int32_t const page : taken) pages.pool().release(page);
        if (failed) break;
        copies += static_cast<int>(paged.copies.size());
        model.append(counts);
        std::int64_t const most = *std::max_element(counts.begin(), counts.end());
        write(paged, NewTokens<T>(model, counts, layout(most, key_dim), layout(most, value_dim)));
      }
    }
    REQUIRE(accounts_balance(pages));
    for (std::int32_t s = 0; s < batch; ++s) REQUIRE(pages.length(s) == model.length(s));
    REQUIRE(check(below(batch)) == "");
  }
  // The walk went where it should.
  REQUIRE(compressions > 0);
  REQUIRE(refusals > 0);
  REQUIRE(failures > 0);
  REQUIRE((copies > 0 || pages.shape().page_size == 1));  // pages of one token are never written on
  for (std::int32_t s = 0; s < batch; ++s) {
    REQUIRE(check(s) == "");
    pages.release(s);
  }
  REQUIRE(pages.pool().free_pages() == pages.pool().num_pages());
}

}  // namespace headaware_test
