#pragma once

// What numbers on a command line may be. CLI11's own checks tell the largest double instead of what they expect.

#include <CLI/CLI.hpp>

#include <algorithm>
#include <string>
#include <thread>

namespace support {

namespace detail {

/// Beyond it a double tells no two whole numbers apart, and CLI11 takes what 64 bits do not hold for their largest.
inline constexpr double largest_number = 9007199254740992.0;  // 2^53

inline CLI::Validator number_check(std::string const& expected, std::string const& name, bool zero) {
  return {[expected, zero](std::string& text) {
            double value = 0;
            bool const number = CLI::detail::lexical_cast(text, value);
            if (number && value > largest_number) return "expected at most 2^53, got " + text;
            bool const fits = number && (value > 0 || (zero && value == 0));
            return fits ? std::string() : "expected " + expected + ", got " + text;
          },
          name};
}

}  // namespace detail

inline CLI::Validator const positive = detail::number_check("a number > 0", "POSITIVE", false);
inline CLI::Validator const non_negative = detail::number_check("a number >= 0", "NONNEGATIVE", true);

/// More tokens than any model reads at once.
inline constexpr int most_tokens = 1 << 24;
inline CLI::Range const token_count(1, most_tokens);

/// Far more threads than there are cores are a mistake, at which engines end.
inline CLI::Range thread_range() {
  return {1, std::max(64, 4 * static_cast<int>(std::thread::hardware_concurrency()))};
}

}  // namespace support
