#pragma once

// The features of one token, gathered on the CPU.

#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/score/score_features.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Copies a row as floats.
template <class T, class L>
void copy_row(T const* data, L const& layout, std::int64_t sequence, std::int64_t head, std::int64_t token,
              std::int64_t channels, bool contiguous, float* to) {
  if (contiguous) {
    T const* const from = data + layout.offset(sequence, head, token, 0);
    for (std::int64_t c = 0; c < channels; ++c) to[c] = to_float(from[c]);
  } else {
    for (std::int64_t c = 0; c < channels; ++c) to[c] = to_float(data[layout.offset(sequence, head, token, c)]);
  }
}

/// ln of a row's norm.
inline float log_norm(float const* row, std::int64_t channels) {
  simd::Floats sums{};
  std::int64_t c = 0;
  for (; c + simd::lanes <= channels; c += simd::lanes) sums += simd::load(row + c) * simd::load(row + c);
  float sum = simd::sum(sums);
  for (; c < channels; ++c) sum += row[c] * row[c];
  return 0.5F * std::log(sum + least_squared_norm);
}

/// w·x, in an order that depends on nothing but the count.
inline float dot(float const* w, float const* x, std::int64_t count) {
  constexpr std::int64_t lanes = simd::lanes;
  simd::Floats a{};
  simd::Floats b{};
  simd::Floats c{};
  simd::Floats d{};
  std::int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    a += simd::load(w + i) * simd::load(x + i);
    b += simd::load(w + i + lanes) * simd::load(x + i + lanes);
    c += simd::load(w + i + 2 * lanes) * simd::load(x + i + 2 * lanes);
    d += simd::load(w + i + 3 * lanes) * simd::load(x + i + 3 * lanes);
  }
  for (; i + lanes <= count; i += lanes) a += simd::load(w + i) * simd::load(x + i);
  float sum = simd::sum((a + b) + (c + d));
  for (; i < count; ++i) sum += w[i] * x[i];
  return sum;
}

/// Gathers features token by token. @tparam Rotation  what queries and keys are turned back by, `KeepPositions`: by
/// nothing
template <class Rotation>
class TokenGatherer {
 public:
  TokenGatherer(ScoreFeatures const& features, Rotation const& rotation) : features_(features), rotation_(rotation) {
    if constexpr (turns) {
      auto const pairs = static_cast<std::size_t>(rotation.rotary_dim() / 2);
      cosines_.resize(pairs);
      sines_.resize(pairs);
    }
  }

  /// @param to  [features.count()]
  template <class Rows>
  void gather(Rows const& rows, std::int64_t sequence, std::int64_t token, float* to) {
    ScoreFeatures const& f = features_;
    auto const keys = keys_of(rows.layout);
    auto const values = values_of(rows.layout);
    bool const keys_side_by_side = rows_contiguous(keys, f.head_dim);
    bool const values_side_by_side = rows_contiguous(values, f.value_dim);
    bool const queries_side_by_side = rows_contiguous(rows.query_layout, f.head_dim);
    for (std::int64_t h = 0; h < f.num_query_heads; ++h) {
      copy_row(rows.queries, rows.query_layout, sequence, h, token, f.head_dim, queries_side_by_side,
               to + h * f.head_dim);
    }
    for (std::int64_t h = 0; h < f.num_kv_heads; ++h) {
      float* const key = to + f.keys() + h * f.head_dim;
      float* const value = to + f.values() + h * f.value_dim;
      copy_row(rows.keys, keys, sequence, h, token, f.head_dim, keys_side_by_side, key);
      copy_row(rows.values, values, sequence, h, token, f.value_dim, values_side_by_side, value);
      to[f.key_norms() + h] = log_norm(key, f.head_dim);
      to[f.value_norms() + h] = log_norm(value, f.value_dim);
    }
    to[f.constant()] = 1;
    if constexpr (turns) turn_back(sequence, token, to);
  }

 private:
  static constexpr bool turns = std::is_same_v<Rotation, KeyRotation>;

  /// Queries and keys lie side by side, and a token's turn by the same angles.
  void turn_back(std::int64_t sequence, std::int64_t token, float* to) {
    std::int64_t const first = rotation_.distance(sequence, token, 0);
    std::int32_t const pairs = rotation_.rotary_dim() / 2;
    for (std::int32_t i = 0; i < pairs; ++i) {
      float cosine = 1;
      float sine = 0;  // of the angle back
      rotation_.turn_back(rotation_.distance_of_pair(first, sequence, token, 0, i), i, cosine, sine);
      cosines_[static_cast<std::size_t>(i)] = cosine;
      sines_[static_cast<std::size_t>(i)] = sine;
    }
    bool const neox = rotation_.pairing() == RotaryPairing::neox;
    float const* const cosines = cosines_.data();
    float const* const sines = sines_.data();
    for (std::int64_t h = 0; h < features_.num_query_heads + features_.num_kv_heads; ++h) {
      float* const row = to + h * features_.head_dim;
      for (std::int32_t i = 0; i < pairs; ++i) {
        float& a = neox ? row[i] : row[2 * i];
        float& b = neox ? row[i + pairs] : row[2 * i + 1];
        float const x = a;
        a = x * cosines[i] - b * sines[i];
        b = x * sines[i] + b * cosines[i];
      }
    }
  }

  ScoreFeatures features_;
  Rotation rotation_;
  std::vector<float> cosines_;
  std::vector<float> sines_;
};

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
