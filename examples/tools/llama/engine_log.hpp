#pragma once

// Keeps llama.cpp's log for error messages instead of printing it.

#include <string>

namespace llama_adapter {

/// From now on the engine prints nothing; its errors are kept.
void keep_engine_log();

/// The errors since this was last asked, in one line.
[[nodiscard]] std::string engine_errors();

}  // namespace llama_adapter
