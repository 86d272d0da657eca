#pragma once

// A cache in pages of single heads, its pool in host memory, and what its sequences must hold.

#include "support/paged_walk.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

/// A cache with its pool in host memory.
struct Paged {
  static constexpr std::int64_t dim = 2;

  TokenModel model;
  ha::PagedHeads pages;
  std::vector<float> keys;
  std::vector<float> values;

  Paged(ha::PolicyTable const& table, ha::PagedHeadsShape const& shape)
      : model(table, shape.num_sequences),
        pages(table, shape),
        keys(static_cast<std::size_t>(shape.num_pages * shape.page_size * dim)),
        values(keys) {}
  [[nodiscard]] ha::PageStorage<float> storage() { return {keys.data(), values.data(), dim, dim}; }
  ha::PageStep append(std::vector<std::int32_t> const& counts) {
    ha::PageStep const step = pages.append(counts);
    model.append(counts);
    auto const layout =
        ha::strided_bshd(static_cast<std::int64_t>(counts.size()), step.max_count, model.table.num_kv_heads(), dim);
    NewTokens<float> const news(model, counts, layout, layout);
    ha::append(pages, step, news.layers(), layout, storage());
    return step;
  }
  void rollback(std::int32_t b, std::int64_t tokens) {
    pages.rollback(b, tokens);
    model.sequences[static_cast<std::size_t>(b)].resize(static_cast<std::size_t>(pages.length(b)));
  }
  void set_policies(ha::PolicyTable const& table) {
    pages.set_policies(table);
    model.table = table;
  }
  void fork(std::int32_t from, std::int32_t to) {
    pages.fork(from, to);
    model.sequences[static_cast<std::size_t>(to)] = model.sequences[static_cast<std::size_t>(from)];
  }
  void release(std::int32_t b) {
    pages.release(b);
    model.sequences[static_cast<std::size_t>(b)].clear();
  }
  /// The first difference between all sequences' pages and what the policies keep; empty: none.
  [[nodiscard]] std::string difference() const {
    FirstDifference result;
    for (std::int32_t b = 0; b < pages.shape().num_sequences; ++b) {
      result.note(pages_difference(model, pages, b, keys.data(), dim, values.data(), dim));
    }
    result.expect(accounts_balance(pages), true, "every page has as many owners as references");
    return result.text();
  }
  [[nodiscard]] std::int64_t in_use() const { return pages.pool().num_pages() - pages.pool().free_pages(); }
};

}  // namespace headaware_test
