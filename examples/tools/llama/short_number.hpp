#pragma once

// Numbers in names: of blends, of weights, of configurations.

#include <cstdio>
#include <string>

namespace llama_adapter {

/// As short as six digits allow: 0.25, 1.
inline std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

}  // namespace llama_adapter
