#pragma once

/// @file
/// The shape of a model, as far as its KV cache is concerned.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Numbers of a model's configuration that determine the shape of its KV cache.
/// Field names are those of a Hugging Face `config.json`.
struct ModelConfig {
  std::int32_t num_hidden_layers = 0;
  std::int32_t num_attention_heads = 0;  ///< query heads per layer
  std::int32_t num_key_value_heads = 0;  ///< KV heads per layer
  std::int32_t head_dim = 0;             ///< channels per head; 0 if unused

  /// Query heads per KV head.
  [[nodiscard]] constexpr std::int32_t group() const { return num_attention_heads / num_key_value_heads; }

  friend constexpr bool operator==(ModelConfig const&, ModelConfig const&) = default;

  /// @throws ArgumentError if a count is not positive or the query heads do not divide evenly.
  void validate() const {
    constexpr auto where = "ModelConfig";
    require(num_hidden_layers > 0, "num_hidden_layers", "> 0", num_hidden_layers, where);
    require(num_attention_heads > 0, "num_attention_heads", "> 0", num_attention_heads, where);
    require(num_key_value_heads > 0, "num_key_value_heads", "> 0", num_key_value_heads, where);
    require(head_dim >= 0, "head_dim", ">= 0", head_dim, where);
    require(num_attention_heads % num_key_value_heads == 0, "num_attention_heads",
            {"a multiple of num_key_value_heads (", num_key_value_heads, ")"}, num_attention_heads, where);
  }
};

HEADAWARE_NAMESPACE_END
