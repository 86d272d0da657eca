#pragma once

/// @file
/// The definition of an engine's attention: scale, soft cap and sliding window.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cmath>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The engine's logits: causal, `scale · q·k`, then soft cap and sliding window.
struct AttentionScore {
  float scale = 0;                  ///< 0: 1 / sqrt(head_dim), as in `attend`
  float soft_cap = 0;               ///< logits become soft_cap · tanh(logit / soft_cap); 0: none
  std::int32_t sliding_window = 0;  ///< keys that a query sees, its own included; 0: all before it

  /// @throws ArgumentError on a negative scale, cap or window, or one that is not finite
  void validate() const {
    constexpr auto where = "AttentionScore";
    require(scale >= 0 && std::isfinite(scale), "scale", "finite and >= 0", scale, where);
    require(soft_cap >= 0 && std::isfinite(soft_cap), "soft_cap", "finite and >= 0", soft_cap, where);
    require(sliding_window >= 0, "sliding_window", ">= 0", sliding_window, where);
  }
};

HEADAWARE_NAMESPACE_END
