#pragma once

/// @file
/// The online softmax of one query row, shared by all back ends: states over parts of the keys merge,
/// so that one pass over the keys yields a row's entropy and maximum without holding its probabilities.

#include <headaware/config.hpp>

#include <cmath>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Softmax over some keys of a row, logits in base 2 (that is, times log2 e).
///
/// With logits s: `max` = max s, `sum` = Σ 2^(s - max), `weighted` = Σ 2^(s - max) · (s - max).
/// @par Source  Milakov and Gimelshein, online softmax, arXiv:1805.02867
struct RowState {
  float max = -INFINITY;
  double sum = 0;
  double weighted = 0;

  /// Adds the keys of another part of the row.
  HEADAWARE_HOST_DEVICE void merge(RowState const& other) {
    if (other.sum == 0) return;
    if (sum == 0) {
      *this = other;
      return;
    }
    float const top = max > other.max ? max : other.max;
    RowState a = *this;
    RowState b = other;
    a.rescale(top);
    b.rescale(top);
    *this = {top, a.sum + b.sum, a.weighted + b.weighted};
  }

  /// Expresses the sums relative to another maximum.
  HEADAWARE_HOST_DEVICE void rescale(float to) {
    if (sum == 0 || max == to) {
      max = to;
      return;
    }
    double const distance = static_cast<double>(max) - to;
    double const factor = exp2(distance);
    weighted = factor * (weighted + distance * sum);
    sum *= factor;
    max = to;
  }

  /// Shannon entropy in nats: log Z - E[s]. @pre sum > 0
  [[nodiscard]] HEADAWARE_HOST_DEVICE double entropy() const {
    constexpr double ln2 = 0.6931471805599453;
    return ln2 * (log2(sum) - weighted / sum);
  }

  /// The largest probability. @pre sum > 0
  [[nodiscard]] HEADAWARE_HOST_DEVICE double max_probability() const { return 1 / sum; }

  /// The probability of a key with logit `score`. @pre sum > 0
  [[nodiscard]] HEADAWARE_HOST_DEVICE double probability(float score) const {
    return exp2(static_cast<double>(score) - max) / sum;
  }
};

HEADAWARE_NAMESPACE_END
