#pragma once

// A fingerprint of data, to tell whether it has changed; not against an adversary.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

namespace support {

/// FNV-1a, 64 bits; `seed` goes on with an earlier one.
inline std::uint64_t fingerprint(void const* data, std::size_t bytes, std::uint64_t seed = 0xcbf29ce484222325U) {
  auto const* const at = static_cast<unsigned char const*>(data);
  for (std::size_t i = 0; i < bytes; ++i) seed = (seed ^ at[i]) * 0x100000001b3U;
  return seed;
}

inline std::string hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace support
