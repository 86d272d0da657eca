#pragma once

// Comparisons that name the first difference, rather than only that there is one:
//   REQUIRE(first_difference(got, expected) == "");

#include "support/catch.hpp"

#include <cstddef>
#include <cstring>
#include <ios>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace headaware_test {

/// Writes a number, and the bytes (the lowest last) of what is no integer: NaNs and elements of 16 bits differ in them.
template <class T>
void write_value(std::ostream& out, T const& value) {
  if constexpr (std::is_integral_v<T>) {
    out << +value;
  } else {
    if constexpr (std::is_floating_point_v<T>) out << value << ' ';
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out << "0x" << std::hex;
    for (std::size_t i = sizeof(T); i-- > 0;) out << (bytes[i] < 16 ? "0" : "") << +bytes[i];
    out << std::dec;
  }
}

/// Many comparisons, of which the first that fails is named; those that hold cost no text.
class FirstDifference {
 public:
  /// @param where  pieces of the place's name, such as "row ", row
  template <class A, class B, class... Where>
  void expect(A const& got, B const& expected, Where const&... where) {
    expect_that(got == expected, got, expected, where...);
  }
  /// The same where `holds` says whether they are close enough.
  template <class A, class B, class... Where>
  void expect_that(bool holds, A const& got, B const& expected, Where const&... where) {
    if (holds || !text_.empty()) return;
    std::ostringstream out;
    (out << ... << where) << ": expected ";
    write_value(out, expected);
    out << ", got ";
    write_value(out, got);
    text_ = out.str();
  }
  /// Notes what another comparison found; empty: nothing.
  void note(std::string const& text) {
    if (text_.empty()) text_ = text;
  }
  /// Empty where all held.
  [[nodiscard]] std::string const& text() const { return text_; }

 private:
  std::string text_;
};

/// @brief The first difference of two vectors, by the bytes of their elements; empty where there is none.
/// @param describe  index to the name of its place
template <class T, class Describe>
std::string first_difference(std::vector<T> const& got, std::vector<T> const& expected, Describe const& describe) {
  FirstDifference difference;
  difference.expect(got.size(), expected.size(), "size");
  if (difference.text().empty() && !got.empty() &&
      std::memcmp(got.data(), expected.data(), got.size() * sizeof(T)) != 0) {
    std::size_t i = 0;
    while (std::memcmp(&got[i], &expected[i], sizeof(T)) == 0) ++i;
    difference.expect_that(false, got[i], expected[i], describe(i));
  }
  return difference.text();
}
template <class T>
std::string first_difference(std::vector<T> const& got, std::vector<T> const& expected) {
  return first_difference(got, expected, [](std::size_t i) { return "element " + std::to_string(i); });
}

}  // namespace headaware_test
