#pragma once

// Map from query · key to a logit in base 2, for every pass over attention.

#include <headaware/config.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr float log2_e = 1.44269504088896340736F;
inline constexpr float ln_2 = 0.69314718055994530942F;

/// The logit of a key that a query does not see: weighs nothing, and is finite, so that infinite ones are errors.
inline constexpr float hidden_logit = -std::numeric_limits<float>::max();

/// `outer · x`, or `outer · tanh(inner · x)` with a soft cap.
struct LogitMap {
  float inner = 0;  ///< 0: no soft cap
  float outer = 0;

  /// @param scale     0: 1 / sqrt(head_dim)
  /// @param head_dim  channels of a key; 0 where there are none: ready probabilities
  static LogitMap of(float scale, float soft_cap, std::int64_t head_dim) {
    if (scale == 0) scale = head_dim > 0 ? 1 / std::sqrt(static_cast<float>(head_dim)) : 1;
    if (soft_cap == 0) return {0, scale * log2_e};
    return {scale / soft_cap, soft_cap * log2_e};
  }
  /// Factor that may go into the queries beforehand: all of the map but the cap.
  [[nodiscard]] HEADAWARE_HOST_DEVICE float factor() const { return inner == 0 ? outer : inner; }
  [[nodiscard]] bool capped() const { return inner != 0; }
  /// Maps the product of a query that holds the factor already.
  [[nodiscard]] float cap(float x) const { return outer * std::tanh(x); }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
