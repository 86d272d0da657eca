// Long random walks over pages of single heads: appending, taking back, forking, freeing, and a pool that others empty.

#include "support/paged_walk.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// @param page_sizes  of both layers, or of one layer each
template <class T>
void walk(unsigned seed, int steps, std::vector<std::int32_t> const& page_sizes, std::int32_t slack,
          std::int32_t num_pages) {
  constexpr std::int64_t key_dim = 3;
  constexpr std::int64_t value_dim = 2;
  constexpr std::int64_t max_tokens = 80;
  ha::PolicyTable const table = mixed_table();
  bool const alike = page_sizes.size() == 1;
  ha::PagedHeads pages(table, {.num_sequences = 4,
                               .page_size = page_sizes[0],
                               .num_pages = num_pages,
                               .limits = {.max_tokens = max_tokens, .slack = slack},
                               .page_sizes = alike ? std::vector<std::int32_t>{} : page_sizes});
  std::int64_t const page = *std::max_element(page_sizes.begin(), page_sizes.end()) * key_dim;
  TokenModel model(table, 4);
  std::vector<T> keys(static_cast<std::size_t>(num_pages * page));
  std::vector<T> values(static_cast<std::size_t>(num_pages * page));
  ha::PageStorage<T> const storage{keys.data(), values.data(), key_dim, value_dim, alike ? 0 : page};
  paged_walk<T>(
      model, pages, seed, steps, max_tokens, key_dim, value_dim,
      [&](ha::PageStep const& step, NewTokens<T> const& news) {
        ha::append(pages, step, news.layers(), news.layout(), storage);
      },
      [&](std::int32_t b) {
        return pages_difference(model, pages, b, keys.data(), key_dim, values.data(), value_dim, storage.page_stride);
      });
}

}  // namespace

TEST_CASE("pages of single heads through 10,000 random steps, pages of 4", "[cache]") {
  walk<float>(631, 10000, {4}, 3, 260);
}
TEST_CASE("pages of single heads through random steps, pages of 16, no slack", "[cache]") {
  walk<std::uint16_t>(632, 4000, {16}, 0, 90);
}
TEST_CASE("pages of single heads through random steps, pages of 1 and 5", "[cache]") {
  walk<std::uint8_t>(633, 1500, {1}, 9, 900);
  walk<std::uint8_t>(634, 1500, {5}, 11, 260);
}
TEST_CASE("pages of single heads through random steps, a page size per layer", "[cache]") {
  walk<float>(635, 1500, {4, 9}, 3, 220);
  walk<std::uint8_t>(636, 1500, {16, 3}, 5, 240);
}
