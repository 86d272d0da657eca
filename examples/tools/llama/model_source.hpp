#pragma once

// Attention of a GGUF model while llama.cpp runs it over a text.

#include "tools/analysis/attention_source.hpp"

#include <cstdint>
#include <filesystem>
#include <memory>

namespace llama_adapter {

struct ModelSourceOptions {
  std::filesystem::path model;      ///< GGUF file
  std::filesystem::path text;       ///< text file
  std::filesystem::path cache_dir;  ///< of copies in single precision
  std::int64_t chunk_size = 512;    ///< tokens of a piece; 0: the text is one
  std::int64_t max_tokens = 0;      ///< of the text; 0: all
  std::int32_t threads = 1;
  bool exact = false;  ///< run a copy with weights in single precision
};

/// @throws ArgumentError, FileError, FormatError, Error if model or text cannot be had
[[nodiscard]] std::unique_ptr<analysis::AttentionSource> model_source(ModelSourceOptions const& options);

}  // namespace llama_adapter
