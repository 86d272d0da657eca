#pragma once

// Checks that there is memory for what options ask for.

#include <headaware/error.hpp>

#include <unistd.h>

#include <cstdio>
#include <string>

namespace support {

/// Refuses sizes by name instead of filling the machine's memory with them.
/// @param bytes  about; a double, since products of sizes from a command line overflow anything else
/// @throws ArgumentError if that is more than the machine's memory
inline void require_memory(double bytes, char const* what, char const* options) {
  double const memory = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  if (bytes <= memory) return;
  auto const gibibytes = [](double size) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.4g GiB", size / (1 << 30));
    return std::string(text);
  };
  throw headaware::ArgumentError(
      {what, "at most the machine's memory, " + gibibytes(memory), gibibytes(bytes), options});
}

}  // namespace support
