#pragma once

// Values, and the metric of their errors, as the passes of statistics read them.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/detail/weighted_sums.hpp>
#include <headaware/element.hpp>

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

/// Reads the value of a key, filled up with zeros; one that is not finite becomes zero.
/// @param to  [padded] @return whether it is finite
template <class Layer>
[[nodiscard]] bool read_value(Layer const& layer, std::int32_t kv_head, std::int64_t key, std::int64_t value_dim,
                              std::int64_t padded, float* to) {
  std::int64_t const token = first_token(layer) + key;
  for (std::int64_t d = 0; d < value_dim; ++d) {
    to[d] = to_float(layer.values[layer.value_layout.offset(layer.sequence, kv_head, token, d)]);
  }
  std::fill(to + value_dim, to + padded, 0.0F);
  if (usable_values(to, value_dim)) return true;
  std::fill_n(to, value_dim, 0.0F);
  return false;
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

/// What rows of errors are after a head's metric. @param errors  [rows, part], rows a multiple of `ScoreBlocking::rows`
/// @param metric  of `pack_metric` @param moved  [rows, part]
inline void move_by_metric(float const* errors, std::int64_t rows, float const* metric, std::int64_t value_dim,
                           std::int64_t part, float* moved) {
  std::fill_n(moved, rows * part, 0.0F);
  for (std::int64_t r = 0; r < rows; r += ScoreBlocking::rows) {
    add_weighted(errors + r * part, part, metric, value_dim, part, moved + r * part, part);
  }
}

/// Σ x² of what `at(c)` gives lane by lane, in [begin, end).
template <class At>
[[nodiscard]] double sum_of_squares(std::int64_t begin, std::int64_t end, At const& at) {
  simd::Floats squares{};
  for (std::int64_t c = begin; c < end; c += simd::lanes) {
    simd::Floats const x = at(c);
    squares += x * x;
  }
  return static_cast<double>(simd::sum(squares));
}
/// The same of `part` floats.
[[nodiscard]] inline double sum_of_squares(float const* x, std::int64_t part) {
  return sum_of_squares(0, part, [&](std::int64_t c) { return simd::load(x + c); });
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
