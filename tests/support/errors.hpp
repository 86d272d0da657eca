#pragma once

// Tells what an exception says.

#include "support/catch.hpp"

#include <headaware/error.hpp>

#include <string>
#include <string_view>
#include <typeinfo>

namespace headaware_test {

/// The text with its one occurrence of `from` replaced.
inline std::string replaced(std::string text, std::string_view from, std::string_view to) {
  auto const at = text.find(from);
  REQUIRE(at != std::string::npos);
  REQUIRE(text.find(from, at + 1) == std::string::npos);
  return text.replace(at, from.size(), to);
}

/// Checks that `f` throws exactly `Error`, and that each part of its message holds what is given.
template <class Error, class F>
void check_error(F&& f, headaware::ErrorDetail const& parts) {
  try {
    f();
  } catch (Error const& error) {
    INFO(error.what());
    auto const& detail = error.detail();
    auto holds = [](std::string const& whole, std::string const& part) {
      return whole.find(part) != std::string::npos;
    };
    CHECK(typeid(error) == typeid(Error));
    CHECK(holds(detail.what, parts.what));
    CHECK(holds(detail.expected, parts.expected));
    CHECK(holds(detail.got, parts.got));
    CHECK(holds(detail.where, parts.where));
    CHECK(holds(error.what(), detail.where));
    return;
  }
  FAIL_CHECK("no such error; expected one of " << parts.what << " at " << parts.where);
}

}  // namespace headaware_test
