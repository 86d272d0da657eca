#pragma once

// The program's `operator new`, replaced in tests/host/allocations.cpp: counts, and fails on request.

#include <atomic>
#include <cstdint>

namespace headaware_test {

/// Allocations of this thread until one fails; 0: none does.
inline thread_local std::int64_t allocations_left = 0;

/// Allocations of all threads since the program began.
inline std::atomic<std::int64_t> allocations = 0;

/// Allocations of `step` once it has run twice.
template <class Step>
std::int64_t allocations_of(Step const& step) {
  step();
  step();
  std::int64_t const before = allocations;
  step();
  return allocations - before;
}

}  // namespace headaware_test
