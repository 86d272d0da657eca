#pragma once

// Key-value lookup: lists of words with numbers, and questions after numbers of some. Made from a seed; no data set.

#include "tools/llama/engine.hpp"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

/// One list and its questions.
struct LookupText {
  std::vector<std::int32_t> list;       ///< "word: 1234", line by line, after what the model wants before any text
  std::vector<std::int32_t> questions;  ///< lines of the list again, in another order
  std::vector<std::int64_t> digits;     ///< of the numbers in `questions`, tokens of it
};

/// The words and numbers of a list, the same for the same seed on every machine. @pre count <= lookup_words()
[[nodiscard]] std::vector<std::pair<std::string, std::string>> lookup_pairs(std::int64_t count, std::uint32_t seed);
/// How many words there are.
[[nodiscard]] std::int64_t lookup_words();

/// @brief Makes a list of as many pairs as fit into `tokens`, and questions after some of them.
/// @throws ArgumentError if so many tokens have no room for so many pairs as are asked for
[[nodiscard]] LookupText lookup_text(Model const& model, std::int64_t tokens, std::int64_t questions,
                                     std::uint32_t seed);

}  // namespace llama_adapter
