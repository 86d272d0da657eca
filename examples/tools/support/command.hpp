#pragma once

// What every command does with an error.

#include <cstdio>
#include <exception>
#include <new>

namespace support {

/// Runs a command; what ends it is said on stderr. @return its exit code, 1 on an exception
template <class Work>
int run_command(char const* name, Work const& work) {
  try {
    return work();
  } catch (std::bad_alloc const&) {
    std::fprintf(stderr, "%s: not enough memory for what the options ask for\n", name);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
  }
  return 1;
}

}  // namespace support
