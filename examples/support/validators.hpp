#pragma once

// What numbers on a command line may be. CLI11's own checks tell the largest double instead of what they expect.

#include <CLI/CLI.hpp>

#include <string>

namespace support {

namespace detail {

inline CLI::Validator number_check(std::string const& expected, std::string const& name, bool zero) {
  return {[expected, zero](std::string& text) {
            double value = 0;
            bool const fits = CLI::detail::lexical_cast(text, value) && (value > 0 || (zero && value == 0));
            return fits ? std::string() : "expected " + expected + ", got " + text;
          },
          name};
}

}  // namespace detail

inline CLI::Validator const positive = detail::number_check("a number > 0", "POSITIVE", false);
inline CLI::Validator const non_negative = detail::number_check("a number >= 0", "NONNEGATIVE", true);

}  // namespace support
