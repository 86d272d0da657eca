#pragma once

// A text as the pieces that a model is run over.

#include "tools/llama/engine.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llama_adapter {

/// Pieces of fewer tokens are left out.
inline constexpr std::size_t shortest_chunk = 10;

/// The text in pieces of `chunk_size` tokens, each with a BOS token of its own where the model wants one.
/// @param chunk_size  0: one piece @param max_tokens  of the text; 0: all @param where  names the text in errors
/// @throws ArgumentError if there is no piece of `shortest_chunk` tokens
inline std::vector<std::vector<std::int32_t>> chunks_of(Model const& model, std::string_view text,
                                                        std::int64_t chunk_size, std::int64_t max_tokens,
                                                        std::string const& where) {
  if (chunk_size > 0 && chunk_size < static_cast<std::int64_t>(shortest_chunk)) {
    throw headaware::ArgumentError({"chunk_size", "0 or at least " + std::to_string(shortest_chunk) + " tokens",
                                    std::to_string(chunk_size), where});
  }
  auto tokens = model.tokenize(text, false);
  if (max_tokens > 0) tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(max_tokens)));
  std::size_t const specials = model.begins_with_bos() ? 1 : 0;
  std::size_t const most = chunk_size > 0 ? static_cast<std::size_t>(chunk_size) - specials : tokens.size();
  std::vector<std::vector<std::int32_t>> chunks;
  for (std::size_t begin = 0; begin < tokens.size(); begin += most) {
    auto const first = tokens.begin() + static_cast<std::ptrdiff_t>(begin);
    std::size_t const count = std::min(most, tokens.size() - begin);
    if (count + specials < shortest_chunk) break;
    chunks.emplace_back(specials, model.bos());
    chunks.back().insert(chunks.back().end(), first, first + static_cast<std::ptrdiff_t>(count));
  }
  if (chunks.empty()) {
    throw headaware::ArgumentError(
        {"text", "at least " + std::to_string(shortest_chunk) + " tokens", std::to_string(tokens.size()), where});
  }
  return chunks;
}

}  // namespace llama_adapter
