#pragma once

// The matrix after a layer's attention, read from the model's file.

#include "tools/llama/engine.hpp"

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

struct gguf_context;

namespace llama_adapter {

/// The output projection W_O of each layer, in single precision.
class OutputProjections {
 public:
  /// @param path  a GGUF file, best the one that the model is of @throws FormatError, FileError
  OutputProjections(std::filesystem::path path, ModelInfo info, headaware::ModelShape shape);

  /// Reads and converts one layer's. @return [hidden_size, num_query_heads · value_dim], rows without gaps
  /// @throws ArgumentError for a layer that the model lacks, FormatError if the file has no such matrix
  [[nodiscard]] std::vector<float> layer(std::int32_t index) const;

 private:
  /// A tensor's elements. @param sizes  as ggml has them, the fastest first
  [[nodiscard]] std::vector<float> matrix(gguf_context const* file, std::string const& name,
                                          std::array<std::int64_t, 3> const& sizes) const;

  std::filesystem::path path_;
  ModelInfo info_;
  headaware::ModelShape shape_;
};

}  // namespace llama_adapter
