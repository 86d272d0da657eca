// Keys whose positions have several coordinates turn pair by pair, each by its own.

#include "support/coordinates_problem.hpp"
#include "support/errors.hpp"

#include <headaware/cache/compact.hpp>

#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("keys of several coordinates turn each pair by its own", "[cache]") {
  for (bool const to_rows : {true, false}) {
    CoordinatesProblem problem(to_rows);
    std::vector<float> keys(static_cast<std::size_t>(problem.compaction.kept_total() * problem.dim));
    std::vector<float> values(keys);
    auto const rotation = problem.rotation(problem.from.data(), problem.to.data());
    ha::compress(problem.compaction,
                 ha::transfer(problem.cache.layers(), problem.layout,
                              ha::ragged(problem.compaction, keys.data(), values.data(), problem.dim))
                     .rotate_keys(rotation));
    CHECK(problem.difference(keys) == "");
    ha::compress_in_place(problem.compaction, problem.cache.layers(), problem.layout, rotation);
    FirstDifference difference;
    std::size_t at = 0;
    KeptTokens(problem.compaction.table(), problem.lengths).for_each_row([&](auto, auto b, auto h, auto row, auto) {
      for (std::int64_t c = 0; c < problem.dim; ++c, ++at) {
        difference.expect(problem.cache.key(0, b, h, row, c), keys[at], "in place, element ", at);
      }
    });
    CHECK(difference.text() == "");
  }
}

TEST_CASE("coordinates that make no sense are named", "[cache]") {
  CoordinatesProblem problem(false);
  auto const refused = [&](ha::RotaryPositions const& positions, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(
        [&] {
          ha::compress_in_place(
              problem.compaction, problem.cache.layers(), problem.layout,
              ha::KeyRotation::from_base(ha::RotaryPairing::neox, problem.dim, 10000).with_positions(positions));
        },
        parts);
  };
  ha::RotaryPositions const right{.from = problem.from.data(),
                                  .to = problem.to.data(),
                                  .stride = problem.stride,
                                  .coordinate_stride = problem.plane,
                                  .coordinate_of = problem.coordinates};
  auto wrong = right;
  wrong.coordinate_of = wrong.coordinate_of.subspan(1);
  refused(wrong, {"coordinates of pairs", "8", "7", "with_positions"});
  wrong = right;
  wrong.coordinate_stride = 2 * problem.stride - 1;
  refused(wrong, {"coordinate_stride", "at least 66", "65", "with_positions"});
  wrong = right;
  wrong.coordinate_stride = -1;
  refused(wrong, {"coordinate_stride", ">= 0", "-1", "with_positions"});
  std::vector<std::uint8_t> const many(8, 4);
  wrong = right;
  wrong.coordinate_of = many;
  refused(wrong, {"coordinate", "[0, 4)", "4", "pair 0"});
  problem.to[2 * problem.plane + problem.stride + 3] = -5;
  refused(right, {"position of a key", "[0, ", "-5", "sequence 1, token 3"});
  std::vector<std::int32_t> const pairs{1, 2, 1};
  CHECK(ha::RotaryPositions::sections(pairs) == std::vector<std::uint8_t>{0, 1, 1, 2});
}
