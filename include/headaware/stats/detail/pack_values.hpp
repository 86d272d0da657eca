#pragma once

// Values, and the metric of their errors, as the passes of statistics read them.

#include <headaware/config.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Largest value that counts as finite: squares, summed over channels, must stay finite.
inline constexpr float largest_value = 1e15F;

[[nodiscard]] inline bool usable_values(float const* values, std::int64_t count) {
  return std::all_of(values, values + count, [](float x) { return std::abs(x) <= largest_value; });
}

/// Keys whose values are not finite: rows that see them are invalid, others must not be affected.
class SpoiledKeys {
 public:
  void clear() { keys_.clear(); }
  /// Notes a key. @pre  none after it has been noted
  void add(std::int64_t key) {
    if (keys_.empty() || keys_.back() < key) keys_.push_back(key);
  }
  /// Whether one lies in [oldest, q].
  [[nodiscard]] bool any(std::int64_t oldest, std::int64_t q) const {
    auto const first = std::lower_bound(keys_.begin(), keys_.end(), oldest);
    return first != keys_.end() && *first <= q;
  }

 private:
  std::vector<std::int64_t> keys_;  ///< ascending
};

/// A head's factor R with RᵀR = W_OᵀW_O, transposed: row d is what channel d of a value adds to R·v.
/// @param to  [value_dim, part], channels from `value_dim` on zero
template <class Layer>
void pack_metric(Layer const& layer, std::int32_t head, std::int64_t value_dim, std::int64_t part, float* to) {
  float const* const factor = layer.output_factors + head * value_dim * value_dim;
  for (std::int64_t d = 0; d < value_dim; ++d) {
    for (std::int64_t c = 0; c < part; ++c) to[d * part + c] = c < value_dim ? factor[c * value_dim + d] : 0;
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
