// Half-precision numbers: every pattern there and back, rounding against a decimal-free definition in double.

#include "support/catch.hpp"

#include <headaware/element.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>

namespace ha = headaware;

namespace {

/// A binary format of 16 bits, by its definition.
struct Format {
  int fraction_bits;
  int min_exponent;  ///< of normal numbers
  int max_exponent;
};
constexpr Format half{10, -14, 15};
constexpr Format brain{7, -126, 127};

float float_of(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// The number that a pattern stands for, in double.
double decoded(Format const& format, std::uint16_t bits) {
  double const sign = (bits & 0x8000) != 0 ? -1 : 1;
  int const exponent_bits = 15 - format.fraction_bits;
  int const exponent = (bits & 0x7fff) >> format.fraction_bits;
  int const fraction = bits & ((1 << format.fraction_bits) - 1);
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  double const significand = fraction + (exponent != 0 ? std::ldexp(1.0, format.fraction_bits) : 0.0);
  return sign *
         std::ldexp(significand, (exponent != 0 ? exponent - 1 : 0) + format.min_exponent - format.fraction_bits);
}

/// A number rounded to a format: to a whole multiple of the last place, ties to even, infinite beyond the largest.
double rounded(Format const& format, double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  int const exponent = std::max(std::ilogb(value), format.min_exponent);
  double const unit = std::ldexp(1.0, exponent - format.fraction_bits);
  double const result = std::nearbyint(value / unit) * unit;  // the default rounding mode is to nearest, ties to even
  if (std::abs(result) >= std::ldexp(1.0, format.max_exponent + 1)) {
    return std::copysign(std::numeric_limits<double>::infinity(), value);
  }
  return result;
}

template <class T>
bool rounds_right(Format const& format, float value) {
  T const converted = ha::from_float<T>(value);
  double const back = decoded(format, converted.bits);
  if (std::isnan(value)) return std::isnan(back) && ((converted.bits & 0x8000) != 0) == std::signbit(value);
  double const expected = rounded(format, double(value));
  return back == expected && std::signbit(back) == std::signbit(value);
}

template <class T>
void check_format(Format const& format) {
  // Every pattern.
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    T const value{static_cast<std::uint16_t>(bits)};
    double const number = decoded(format, value.bits);
    float const wide = ha::to_float(value);
    bool right = std::signbit(wide) == (bits >= 0x8000);
    if (std::isnan(number)) {
      right = right && std::isnan(wide) && std::isnan(ha::to_float(ha::from_float<T>(wide)));
    } else {
      right = right && double(wide) == number && ha::from_float<T>(wide) == value;
    }
    if (!right) FAIL("pattern " << bits);
  }
  // Around every boundary between two neighbours: the middle and the floats next to it.
  std::uint32_t const infinite = ((1U << (15 - format.fraction_bits)) - 1) << format.fraction_bits;
  for (std::uint32_t bits = 0; bits < infinite; ++bits) {
    double const low = decoded(format, static_cast<std::uint16_t>(bits));
    double const unit = bits + 1 == infinite ? std::ldexp(1.0, format.max_exponent - format.fraction_bits)
                                             : decoded(format, static_cast<std::uint16_t>(bits + 1)) - low;
    auto const middle = static_cast<float>(low + unit / 2);
    for (float const value : {middle, std::nextafter(middle, 0.0F), std::nextafter(middle, HUGE_VALF)}) {
      if (!rounds_right<T>(format, value) || !rounds_right<T>(format, -value)) FAIL("near pattern " << bits);
    }
  }
  // Random patterns of float, all exponents alike.
  constexpr unsigned seed = 6;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 1000000; ++i) {
    auto const bits = static_cast<std::uint32_t>(random());
    if (!rounds_right<T>(format, float_of(bits))) FAIL("float pattern " << bits);
  }
  // The ends, each sign: zero, subnormal floats, the largest, infinity, NaNs quiet, signalling, of all bits.
  for (std::uint32_t const bits :
       {0x0U, 0x1U, 0x7fffffU, 0x800000U, 0x477fefffU, 0x477ff000U, 0x33000000U, 0x33000001U, 0x38800000U, 0x387fffffU,
        0x7f7f7fffU, 0x7f7f8000U, 0x7f7fffffU, 0x7f800000U, 0x7f800001U, 0x7f80ffffU, 0x7fc00000U, 0x7fffffffU}) {
    INFO("float pattern " << bits);
    CHECK(rounds_right<T>(format, float_of(bits)));
    CHECK(rounds_right<T>(format, float_of(bits | 0x80000000U)));
  }
}

}  // namespace

TEST_CASE("float16 converts and rounds as IEEE 754 says", "[element]") {
  check_format<ha::float16>(half);
  REQUIRE(ha::from_float<ha::float16>(65504).bits == 0x7bff);
  REQUIRE(ha::from_float<ha::float16>(65519.996F).bits == 0x7bff);
  REQUIRE(ha::from_float<ha::float16>(65520).bits == 0x7c00);
  static_assert(ha::to_float(ha::float16{0x3c00}) == 1.0F && ha::from_float<ha::float16>(-2.0F).bits == 0xc000);
}

TEST_CASE("bfloat16 converts and rounds to the upper half of a float", "[element]") {
  check_format<ha::bfloat16>(brain);
  static_assert(ha::to_float(ha::bfloat16{0x3f80}) == 1.0F && ha::from_float<ha::bfloat16>(-2.0F).bits == 0xc000);
}

TEST_CASE("elements are bytes of the sizes that caches hold", "[element]") {
  static_assert(sizeof(ha::float16) == 2 && alignof(ha::float16) == 2);
  static_assert(sizeof(ha::bfloat16) == 2 && alignof(ha::bfloat16) == 2);
  static_assert(sizeof(ha::int4x2) == 1 && alignof(ha::int4x2) == 1);
  REQUIRE(ha::from_float<float>(0.1F) == 0.1F);
  REQUIRE(ha::to_float(0.1F) == 0.1F);
}

TEST_CASE("half-precision numbers", "[element]") {
  auto const bits_of = [](float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
  };
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    auto const half = ha::float16{static_cast<std::uint16_t>(bits)};
    int const exponent = static_cast<int>(bits >> 10 & 31);
    double const fraction = (bits & 1023) / 1024.0;
    double const magnitude = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
    float const value = ha::to_float(half);
    if (exponent == 31) {
      REQUIRE(((bits & 1023) != 0 ? std::isnan(value) : std::isinf(value)));
    } else {
      REQUIRE(std::abs(double(value)) == magnitude);
    }
    REQUIRE(std::signbit(value) == (bits >= 32768));
    if (!std::isnan(value)) REQUIRE(ha::from_float<ha::float16>(value) == half);
    float const wide = ha::to_float(ha::bfloat16{static_cast<std::uint16_t>(bits)});
    REQUIRE(bits_of(wide) == bits << 16);
    if (!std::isnan(wide)) REQUIRE(ha::from_float<ha::bfloat16>(wide).bits == bits);
  }
  // Rounding to nearest, ties to even, between neighbours.
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    float const low = ha::to_float(ha::float16{static_cast<std::uint16_t>(bits)});
    float const high = ha::to_float(ha::float16{static_cast<std::uint16_t>(bits + 1)});
    float const middle = low + (high - low) / 2;
    REQUIRE(ha::from_float<ha::float16>(middle).bits == (bits % 2 == 0 ? bits : bits + 1));
    REQUIRE(ha::from_float<ha::float16>(std::nextafter(middle, high)).bits == bits + 1);
    REQUIRE(ha::from_float<ha::float16>(std::nextafter(middle, low)).bits == bits);
  }
  REQUIRE(ha::from_float<ha::float16>(65520.0F).bits == 0x7c00);
  REQUIRE(ha::from_float<ha::float16>(65519.0F).bits == 0x7bff);
  REQUIRE(std::isnan(ha::to_float(ha::from_float<ha::float16>(std::nanf("")))));
  REQUIRE(ha::from_float<ha::bfloat16>(1.00390625F).bits == 0x3f80);
  REQUIRE(ha::from_float<ha::bfloat16>(1.01171875F).bits == 0x3f82);
}
