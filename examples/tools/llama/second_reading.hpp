#pragma once

// What a model looks at of a text that it reads a second time.

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/engine.hpp"

#include <headaware/cache/rotation.hpp>
#include <headaware/model_shape.hpp>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

/// One layer's rows of the first reading. Borrowed, valid during the call.
struct ReadLayer {
  std::int32_t layer = 0;
  std::span<float const> features;  ///< [tokens, features], `headaware::ScoreFeatures` of the layer
  /// [num_kv_heads, tokens]: the largest attention probability that each row gets from the queries of the second
  /// reading, over the query heads of its group
  std::span<float const> probabilities;
};

/// Reads a piece, an instruction to repeat it, and the piece again, all in one context.
/// @par Source  reconstruction scores of KVzip, arXiv:2505.23416
class SecondReading {
 public:
  using Handler = std::function<void(ReadLayer const&)>;

  /// @param model        borrowed
  /// @param instruction  text between the readings
  /// @param tokens       of a piece, the BOS token that the model may want before it included
  /// @throws ArgumentError if such a context is longer than the model's, Error as `AttentionTap` and `key_rotations`
  SecondReading(Model const& model, std::string const& instruction, std::int64_t tokens, std::int32_t threads);

  /// @param piece    as many tokens as the constructor was told; begins with the BOS token if the model wants one,
  /// which
  ///                 is not read twice
  /// @param handler  takes every layer that has a cache, in their order
  void read(std::span<std::int32_t const> piece, Handler const& handler);

  /// Tokens that the model reads for a piece.
  [[nodiscard]] std::int64_t tokens_read() const { return 2 * tokens_ + std::ssize(instruction_) - bos_; }

 private:
  void score(TappedAttention const& attention);

  Model const* model_;
  std::int64_t tokens_;
  std::int64_t bos_;  ///< tokens of a piece that are not read twice
  std::vector<std::int32_t> instruction_;
  std::vector<headaware::KeyRotation> rotations_;
  AttentionTap tap_;
  Context context_;
  Handler const* handler_ = nullptr;
  std::vector<float> all_;     ///< [num_kv_heads, rows]
  std::vector<float> scores_;  ///< [num_kv_heads, tokens]
  std::vector<float> features_;
};

}  // namespace llama_adapter
