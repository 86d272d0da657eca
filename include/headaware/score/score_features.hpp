#pragma once

/// @file
/// The features of a token that linear scores are made of.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The features of one token in one layer, in this order: queries `[num_query_heads, head_dim]` and keys
/// `[num_kv_heads, head_dim]`, both before rotary embedding; values `[num_kv_heads, value_dim]`; ln‖key‖, then
/// ln‖value‖, of each KV head; 1. Norms: `least_squared_norm`.
/// @par Source  the rows that a layer has at hand, in place of its hidden state: KVzap, arXiv:2601.07891
struct ScoreFeatures {
  std::int32_t num_query_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;

  /// Of a layer of a model. @tparam Layer  `LayerShape`
  template <class Layer>
  [[nodiscard]] static constexpr ScoreFeatures of(Layer const& layer) {
    return {layer.num_query_heads, layer.num_kv_heads, layer.head_dim, layer.value_dim};
  }

  // Where each kind begins.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t keys() const { return num_query_heads * head_dim; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t values() const { return keys() + num_kv_heads * head_dim; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t key_norms() const {
    return values() + num_kv_heads * value_dim;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t value_norms() const { return key_norms() + num_kv_heads; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t constant() const { return value_norms() + num_kv_heads; }
  /// All of them.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t count() const { return constant() + 1; }

  /// @throws ArgumentError on counts that are not positive, or too large
  void validate(Text const& where) const {
    require(num_query_heads > 0, "query heads", "> 0", num_query_heads, where);
    require(num_kv_heads > 0, "KV heads", "> 0", num_kv_heads, where);
    constexpr std::int64_t most = std::int64_t{1} << 20;
    require(head_dim > 0 && head_dim <= most, "head_dim", "in [1, 2^20]", head_dim, where);
    require(value_dim > 0 && value_dim <= most, "value_dim", "in [1, 2^20]", value_dim, where);
    (void)detail::elements("ScoreFeatures", {num_kv_heads, count(), sizeof(float)});
  }

  friend constexpr bool operator==(ScoreFeatures const&, ScoreFeatures const&) = default;
};

/// @brief What a call scores: the same number of tokens of every sequence.
struct ScoreBatch {
  std::int64_t num_sequences = 1;
  std::int64_t tokens = 0;
};

/// @brief Added to the square of a norm before its logarithm is taken, so that a row of zeros has one.
inline constexpr float least_squared_norm = 1e-12F;

HEADAWARE_NAMESPACE_END
