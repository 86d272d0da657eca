#pragma once

// One include for both major versions of Catch2.

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <string>

namespace headaware_test {

/// Tells the main function why the running case ends early.
void note_skip(std::string const& reason);

}  // namespace headaware_test

/// Leaves a test case that cannot run here, saying why. Catch2 before 3.3 does not know skipped cases.
#if defined(SKIP)
#define HEADAWARE_SKIP(reason)         \
  do {                                 \
    headaware_test::note_skip(reason); \
    SKIP(reason);                      \
  } while (false)
#else
#define HEADAWARE_SKIP(reason)                \
  do {                                        \
    headaware_test::note_skip(reason);        \
    WARN("skipped: " << std::string(reason)); \
    return;                                   \
  } while (false)
#endif
