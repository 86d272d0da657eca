// The tests' own comparisons name the first difference.

#include "support/differences.hpp"

#include <headaware/element.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace headaware_test;

TEST_CASE("comparisons name the first difference: where, what was expected, what came", "[support]") {
  std::vector<std::int32_t> const expected{1, 2, 3, 4};
  CHECK(first_difference(expected, expected) == "");
  CHECK(first_difference({1, 2, 5, 6}, expected) == "element 2: expected 3, got 5");
  CHECK(first_difference({1, 2}, expected) == "size: expected 4, got 2");
  CHECK(first_difference({1, 2, 3, 9}, expected, [](std::size_t i) { return "row " + std::to_string(i / 2); }) ==
        "row 1: expected 4, got 9");
  // By their bytes: zeros of two signs differ, the same NaN does not.
  float const nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(first_difference<float>({nan, 0.0F}, {nan, 0.0F}) == "");
  CHECK(first_difference<float>({nan, -0.0F}, {nan, 0.0F}) == "element 1: expected 0 0x00000000, got -0 0x80000000");
  CHECK(first_difference<headaware::float16>({{1}}, {{0x7e12}}) == "element 0: expected 0x7e12, got 0x0001");

  FirstDifference several;
  several.expect(3, 3, "layer ", 0);
  CHECK(several.text() == "");
  several.expect(std::int8_t{4}, 3, "layer ", 1, ", channel ", 7);
  several.expect(5, 3, "layer ", 2);
  CHECK(several.text() == "layer 1, channel 7: expected 3, got 4");
  several.note("later");
  CHECK(several.text() == "layer 1, channel 7: expected 3, got 4");
}
