#pragma once

// Rotary embedding in double, by its definition, and how far a rounded result may be from it.

#include "support/catch.hpp"

#include <headaware/cache/rotation.hpp>
#include <headaware/element.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace headaware_test {

/// A rotary embedding as a model's author writes it down.
struct Rotary {
  headaware::RotaryPairing pairing;
  std::vector<double> frequencies;  ///< radians a position, a pair each

  static Rotary of_base(headaware::RotaryPairing pairing, std::int32_t rotary_dim, double base) {
    Rotary result{pairing, {}};
    for (std::int32_t i = 0; i < rotary_dim / 2; ++i) {
      result.frequencies.push_back(1.0 / std::pow(base, 2.0 * i / rotary_dim));
    }
    return result;
  }

  /// The key of one position as that of another, `positions` later (negative: earlier).
  void turn(std::vector<double>& key, double positions) const {
    std::size_t const pairs = frequencies.size();
    for (std::size_t i = 0; i < pairs; ++i) {
      bool const neox = pairing == headaware::RotaryPairing::neox;
      double& a = key[neox ? i : 2 * i];
      double& b = key[neox ? i + pairs : 2 * i + 1];
      double const angle = positions * frequencies[i];
      double const x = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = x;
    }
  }

  /// Tables of cosines and sines, [positions, pairs].
  struct Tables {
    std::vector<float> cosines;
    std::vector<float> sines;
  };
  [[nodiscard]] Tables tables(std::int64_t positions) const {
    Tables result;
    for (std::int64_t p = 0; p < positions; ++p) {
      for (double const f : frequencies) {
        result.cosines.push_back(static_cast<float>(std::cos(static_cast<double>(p) * f)));
        result.sines.push_back(static_cast<float>(std::sin(static_cast<double>(p) * f)));
      }
    }
    return result;
  }
};

/// Half a unit in the last place of `T` at `value`, where the format's rounding alone takes a right result.
template <class T>
double half_unit(double value) {
  int const fraction_bits = std::is_same_v<T, float> ? 23 : std::is_same_v<T, headaware::float16> ? 10 : 7;
  int const min_exponent = std::is_same_v<T, headaware::float16> ? -14 : -126;
  int const exponent = value == 0 ? min_exponent : std::max(std::ilogb(value), min_exponent);
  return std::ldexp(0.5, exponent - fraction_bits);
}

/// Whether `got` is `expected` computed in float and rounded once; inputs have magnitudes of about 1.
template <class T>
bool close_to(T got, double expected) {
  constexpr double float_error = 2e-6;
  double const value = double(headaware::to_float(got));
  return std::abs(value - expected) <= half_unit<T>(std::max(std::abs(expected), std::abs(value))) + float_error;
}

}  // namespace headaware_test
