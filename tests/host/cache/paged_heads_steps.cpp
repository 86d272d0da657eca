// Steps of a cache in pages of single heads: written once a layer, for the tables that they were made by.

#include "support/errors.hpp"
#include "support/paged_cache.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t dim = Paged::dim;

}  // namespace

TEST_CASE("a step is not written once the tables have changed", "[cache]") {
  ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = 1, .window = 6});
  Paged cache(table, {.num_sequences = 2, .page_size = 4, .num_pages = 20, .limits = {.slack = 2}});
  cache.append({9, 0});
  std::vector<std::int32_t> const one{1, 0};
  auto const layout = ha::strided_bshd(2, 1, 1, dim);
  auto const stale = [&](auto const& change) {
    ha::PageStep const step = cache.pages.append(one);
    cache.model.append(one);
    NewTokens<float> const news(cache.model, one, layout, layout);
    auto const write = [&] { ha::append(cache.pages, step, news.layers(), layout, cache.storage()); };
    write();
    write();  // as often as there are layers
    change();
    auto const keys = cache.keys;
    check_error<ha::ArgumentError>(write, {"step", "the tables' last change, ", "change ", "append"});
    REQUIRE(cache.keys == keys);
    REQUIRE(cache.difference() == "");
  };
  stale([&] { cache.append(one); });
  stale([&] { cache.rollback(0, 1); });
  stale([&] { cache.fork(0, 1); });
  stale([&] { cache.set_policies(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 1, .window = 5})); });
  stale([&] { cache.release(0); });
  // Neither is one that no append has made.
  ha::PageStep none;
  none.lengths = none.high_water = none.counts = {0, 0};
  NewTokens<float> const news(cache.model, {0, 0}, layout, layout);
  check_error<ha::ArgumentError>([&] { ha::append(cache.pages, none, news.layers(), layout, cache.storage()); },
                                 {"step", "the tables' last change, ", "change 0", "append"});
}

TEST_CASE("pages are written layer by layer after a fork", "[cache]") {
  ha::PolicyTable const table(3, 1, ha::SinkWindow{.sink = 1, .window = 6});
  for (std::vector<std::size_t> const& parts : {std::vector<std::size_t>{1, 1, 1}, {1, 2}, {2, 1}}) {
    Paged cache(table, {.num_sequences = 2, .page_size = 4, .num_pages = 60, .limits = {}});
    cache.append({6, 0});
    cache.fork(0, 1);
    std::vector<std::int32_t> const counts{1, 1};
    ha::PageStep const step = cache.pages.append(counts);
    REQUIRE(step.copies.size() == 6);
    cache.model.append(counts);
    auto const layout = ha::strided_bshd(2, 1, 1, dim);
    NewTokens<float> const news(cache.model, counts, layout, layout);
    auto const layers = news.layers();
    std::size_t first = 0;
    for (std::size_t const count : parts) {
      std::vector const part(layers.begin() + static_cast<std::ptrdiff_t>(first),
                             layers.begin() + static_cast<std::ptrdiff_t>(first + count));
      ha::append(cache.pages, step, part, layout, cache.storage(), static_cast<std::int32_t>(first));
      first += count;
    }
    REQUIRE(cache.difference() == "");
  }
}

TEST_CASE("copies of a step, padded to a number that does not change", "[cache]") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 1, .window = 6});
  table.set(1, 0, ha::Prune{});
  ha::PagedHeads pages(table, {.num_sequences = 3, .page_size = 4, .num_pages = 60});
  REQUIRE(pages.max_copies() == 6);
  auto const padded = [&](std::vector<std::int32_t> const& counts, std::vector<int> const& in_layers) {
    ha::PageStep const step = pages.append(counts);
    std::vector<ha::PageCopy> const copies = pages.padded_copies(step);
    REQUIRE(copies.size() == 2 * 6);
    std::size_t found = 0;
    for (std::size_t i = 0; i < copies.size(); ++i) {
      bool const used = static_cast<int>(i % 6) < in_layers[i / 6];
      REQUIRE((copies[i].tokens > 0) == used);
      if (!used) continue;
      REQUIRE(copies[i].layer == static_cast<std::int32_t>(i / 6));
      REQUIRE(std::any_of(step.copies.begin(), step.copies.end(), [&](ha::PageCopy const& copy) {
        return copy.layer == copies[i].layer && copy.from == copies[i].from && copy.to == copies[i].to;
      }));
      ++found;
    }
    REQUIRE(found == step.copies.size());
    return step;
  };
  padded({6, 0, 0}, {0, 0});
  pages.fork(0, 1);
  pages.fork(0, 2);
  padded({0, 1, 0}, {2, 1});
  ha::PageStep const step = padded({1, 0, 1}, {4, 2});
  pages.release(2);
  check_error<ha::ArgumentError>([&] { (void)pages.padded_copies(step); },
                                 {"step", "the last append's", "another", "PagedHeads::padded_copies"});
  std::vector<ha::PageCopy> few(2 * 6 - 1);
  check_error<ha::ArgumentError>([&] { pages.padded_copies(pages.append(std::vector<std::int32_t>(3)), few); },
                                 {"copies", "12", "11", "PagedHeads::padded_copies"});
  REQUIRE(ha::PagedHeads(table, {.num_sequences = 0, .num_pages = 1}).max_copies() == 0);
}

TEST_CASE("a step of other tables is not written, however many changes both have seen", "[cache]") {
  ha::PolicyTable const table(1, 1, ha::Full{});
  ha::PagedHeadsShape const small{.num_sequences = 1, .page_size = 4, .num_pages = 2, .limits = {.max_tokens = 8}};
  Paged one(table, small);
  Paged other(table, {.num_sequences = 1, .page_size = 4, .num_pages = 20, .limits = {.max_tokens = 80}});
  ha::PageStep step = other.pages.append(std::vector<std::int32_t>{60});
  (void)one.pages.append(std::vector<std::int32_t>{1});
  auto const layout = ha::strided_bshd(1, 60, 1, dim);
  other.model.append({60});
  NewTokens<float> const news(other.model, {60}, layout, layout);
  auto const write = [&] { ha::append(one.pages, step, news.layers(), layout, one.storage()); };
  check_error<ha::ArgumentError>(write, {"step", "the tables' last change, ", "change ", "append"});
  REQUIRE(one.keys == std::vector<float>(one.keys.size()));
  ha::PagedHeads const copy = other.pages;  // the same tables, until one of them changes
  ha::append(copy, step, news.layers(), layout, other.storage());
  REQUIRE(other.difference() == "");
  // A step that has lost its counters.
  step.high_water.clear();
  check_error<ha::ArgumentError>([&] { ha::append(other.pages, step, news.layers(), layout, other.storage()); },
                                 {"step's sequences", "1", "0", "append"});

  ha::PagedHeads from = one.pages;
  ha::PagedHeads const moved = std::move(from);
  REQUIRE(moved.length(0) == 1);
  check_error<ha::ArgumentError>([&] { (void)from.append(std::vector<std::int32_t>{1}); }, {"", "", "", ""});
  check_error<ha::ArgumentError>([&] { from.release(0); }, {"sequence", "[0, 0)", "0", ""});
}
