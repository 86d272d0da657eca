// The division of attention's work among blocks: every tile once, evenly, and a place for every part.

#include "support/catch.hpp"

#include <headaware/attention/detail/stretches.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace ha = headaware;
using ha::detail::JobParts;
using ha::detail::Stretches;

namespace {

std::vector<std::int64_t> tiles_of(std::vector<std::int64_t> const& rows) {
  std::vector<std::int64_t> result;
  for (std::int64_t const held : rows) result.push_back(std::max<std::int64_t>(1, (held + 15) / 16));
  return result;
}

}  // namespace

TEST_CASE("stretches have every tile once, and parts of jobs have places of their own", "[attention]") {
  for (std::vector<std::int64_t> const& rows :
       {std::vector<std::int64_t>{32768, 64, 64, 64, 64, 64, 64, 64}, std::vector<std::int64_t>{0, 0, 0},
        std::vector<std::int64_t>{100, 7000, 3, 129, 128, 127, 2048}, std::vector<std::int64_t>(300, 40)}) {
    for (std::int64_t const blocks : {1, 2, 7, 32, 216, 512}) {
      std::vector<std::int64_t> const jobs = tiles_of(rows);
      std::int64_t all = 0;
      for (std::int64_t const tiles : jobs) all += tiles;
      auto const stretches = Stretches::of(all, blocks);
      REQUIRE(stretches.begin(0) == 0);
      REQUIRE(stretches.end(blocks - 1) == all);
      REQUIRE(stretches.length * blocks < all + std::max(blocks, Stretches::shortest * blocks));
      std::set<std::int64_t> places;
      std::int64_t first = 0;
      for (std::int64_t const tiles : jobs) {
        auto const parts = JobParts::of(stretches, first, first + tiles);
        std::int64_t seen = 0;
        for (std::int64_t i = 0; i < parts.count; ++i) {
          std::int64_t const block = parts.first_block + i;
          std::int64_t const part =
              std::min(stretches.end(block), first + tiles) - std::max(stretches.begin(block), first);
          REQUIRE(part > 0);
          seen += part;
          if (parts.count == 1) continue;
          REQUIRE(places.insert(parts.place(i)).second);
          REQUIRE(parts.place(i) / 2 == block);
          REQUIRE(block < blocks);
        }
        REQUIRE(seen == tiles);
        first += tiles;
      }
    }
  }
}

TEST_CASE("one long head beside short ones is even within a tenth", "[attention]") {
  std::int64_t all = 0;
  for (std::int64_t const tiles : tiles_of({32768, 64, 64, 64, 64, 64, 64, 64})) all += tiles;
  for (std::int64_t const blocks : {132, 216, 264, 296, 340}) {  // one or two on the multiprocessors of some devices
    auto const stretches = Stretches::of(all, blocks);
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < blocks; ++b) most = std::max(most, stretches.end(b) - stretches.begin(b));
    INFO(blocks << " blocks");
    if (all >= Stretches::shortest * blocks) {
      CHECK(static_cast<double>(most * blocks) <= 1.1 * static_cast<double>(all));
    } else {
      CHECK(most == Stretches::shortest);  // as even, over fewer blocks
    }
  }
}

TEST_CASE("stretches are as long as a caller wants, over fewer blocks", "[attention]") {
  auto const stretches = Stretches::of(100, 50, 32);
  CHECK(stretches.length == 32);
  CHECK(stretches.end(2) == 96);
  CHECK(stretches.end(3) == 100);
  CHECK(stretches.begin(4) == 100);
  CHECK(Stretches::of(1000, 10, 32).length == 100);
}
