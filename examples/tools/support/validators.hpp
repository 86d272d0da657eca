#pragma once

// Checks of numbers on a command line. CLI11's own report the largest double instead of what they expect.

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>

namespace support {

/// Beyond it a double tells no two whole numbers apart, and CLI11 takes what 64 bits do not hold for their largest.
inline constexpr double largest_number = 9007199254740992.0;  // 2^53

/// Checks for a number that fits.
inline CLI::Validator number_check(std::string const& expected, std::string const& name, bool (*fits)(double)) {
  return {[expected, fits](std::string& text) {
            char* end = nullptr;
            double const value = std::strtod(text.c_str(), &end);
            bool const number = !text.empty() && *end == '\0';
            if (number && value > largest_number) return "expected at most 2^53, got " + text;
            return number && fits(value) ? std::string() : "expected " + expected + ", got " + text;
          },
          name};
}

inline CLI::Validator const positive = number_check("a number > 0", "POSITIVE", [](double x) { return x > 0; });
inline CLI::Validator const non_negative =
    number_check("a number >= 0", "NONNEGATIVE", [](double x) { return x >= 0; });
/// Neither nothing nor all.
inline CLI::Validator const proper_share =
    number_check("a number in (0, 1)", "in (0, 1)", [](double x) { return x > 0 && x < 1; });

/// More tokens than any model reads at once.
inline constexpr int most_tokens = 1 << 24;
inline CLI::Range const token_count(1, most_tokens);
inline CLI::Range const layer_index(0, 1 << 20);

/// Allows up to four threads per core: engines end on far more.
inline CLI::Range thread_range() {
  return {1, std::max(64, 4 * static_cast<int>(std::thread::hardware_concurrency()))};
}

}  // namespace support
