#pragma once

// Weights in single precision: with quantised ones the engine rounds activations to 8 bits, and the smallest
// difference, such as another order of additions, then grows into one that can be seen in the perplexity.

#include <filesystem>

namespace llama_adapter {

/// @brief A copy of a GGUF model with all weights in single precision, made the first time it is asked for.
/// @param folder  made if it is not there; a copy is found again by the model's name, size and time of change
/// @throws ArgumentError if `model` is no file, FileError if the copy cannot be written
/// @return the copy's path
[[nodiscard]] std::filesystem::path exact_copy(std::filesystem::path const& model, std::filesystem::path const& folder);

}  // namespace llama_adapter
