#pragma once

// A text that tables of policies are tried on: passages to predict, and passages given twice whose second copies are.

#include "tools/llama/engine.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace llama_adapter {

/// Places of the pieces.
struct EvaluationPlace {
  std::int64_t context = 0;              ///< tokens of a piece, what the model wants before any text included; even
  std::vector<std::int64_t> passages{};  ///< where they begin, tokens of the text
  std::vector<std::int64_t> copies{};    ///< where passages of half the context begin that are given twice
};

/// Losses of tokens, nats, by what they tell.
struct EvaluationLosses {
  std::vector<double> passages{};           ///< of all passages
  std::vector<double> second_halves{};      ///< of tokens after the first half of their passage
  std::vector<double> copies{};             ///< of the tokens of second copies
  std::vector<double> second_half_means{};  ///< one per passage
  std::vector<double> copy_means{};         ///< one per passage given twice
};

class EvaluationText {
 public:
  /// @param tokens  of the text, without BOS @param where  names it in messages
  /// @throws ArgumentError if a piece reaches beyond the text
  EvaluationText(Model const& model, std::span<std::int32_t const> tokens, EvaluationPlace const& place,
                 char const* where);

  /// As the model reads them: passages first, then copies.
  [[nodiscard]] std::span<std::vector<std::int32_t> const> pieces() const { return pieces_; }

  /// @param losses  of each piece, in their order: −log p(token i + 1 | tokens 0 … i)
  [[nodiscard]] EvaluationLosses split(std::span<std::vector<double> const> losses) const;

 private:
  std::vector<std::vector<std::int32_t>> pieces_;
  std::size_t passages_;
  std::int64_t second_half_;  ///< first loss of a passage's second half
  std::int64_t second_copy_;  ///< likewise of a second copy
};

}  // namespace llama_adapter
