#pragma once

// The online softmax: states over parts of a row's keys merge into the state over all of them. One type for attention
// and statistics, on both back ends (Milakov and Gimelshein, arXiv:1805.02867).

#include <headaware/config.hpp>
#include <headaware/detail/logit_map.hpp>

#include <cmath>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The larger; NaN wins, so that it reaches the output.
[[nodiscard]] HEADAWARE_HOST_DEVICE inline float larger_or_nan(float a, float b) { return a >= b || a != a ? a : b; }

/// 2^x in the precision of the argument.
struct Exp2 {
  HEADAWARE_HOST_DEVICE float operator()(float x) const { return exp2f(x); }
  HEADAWARE_HOST_DEVICE double operator()(double x) const { return exp2(x); }
};

/// @brief Softmax over some keys of a row with logits s in base 2: `max` = max s, `sum` = Σ 2^(s - max).
///
/// Weighted sums of values that go with it are relative to the same maximum.
/// @tparam Sum  float in attention, double where many rows are added up
template <class Sum>
struct OnlineSoftmax {
  float max = -INFINITY;
  Sum sum = 0;

  /// The state of keys with this log-sum-exp (natural), relative to `origin`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE static OnlineSoftmax of_lse(float lse, float origin) {
    if (lse == -INFINITY) return {};
    return {(lse - origin) * log2_e, 1};
  }
  /// The state of one key with this logit (natural), which brings no value: a learned sink. -inf: none; NaN, which
  /// +inf makes as well, stays.
  [[nodiscard]] HEADAWARE_HOST_DEVICE static OnlineSoftmax of_sink(float logit) {
    if (logit == -INFINITY) return {};
    return {logit * log2_e, 1 + (logit - logit)};
  }
  /// Factor that rescales the sums to the maximum `to`; 0 where there are no keys.
  [[nodiscard]] HEADAWARE_HOST_DEVICE Sum factor(float to) const {
    return sum == 0 ? Sum{0} : Exp2{}(static_cast<Sum>(max) - static_cast<Sum>(to));
  }
  /// Rescales the sums to the maximum `to`. @return their factor
  HEADAWARE_HOST_DEVICE Sum rescale(float to) {
    Sum const by = factor(to);
    sum *= by;
    max = to;
    return by;
  }
  /// 1 / Σ; 0 without keys, NaN stays.
  [[nodiscard]] HEADAWARE_HOST_DEVICE Sum inverse() const { return sum == 0 ? Sum{0} : 1 / sum; }
  /// Natural logarithm of Σ exp(logit); -inf without keys.
  [[nodiscard]] HEADAWARE_HOST_DEVICE float lse() const {
    return sum == 0 ? -INFINITY : ln_2 * (max + log2f(static_cast<float>(sum)));
  }
};

/// @brief The same with the mean of the logits, which gives the entropy: `weighted` = Σ 2^(s - max) · (s - max).
template <class Sum>
struct EntropySoftmax : OnlineSoftmax<Sum> {
  Sum weighted = 0;

  /// Rescales the sums to the maximum `to`, keys or none. @return their factor
  template <class Exponential>
  HEADAWARE_HOST_DEVICE Sum rescale(float to, Exponential const& exponential) {
    Sum const distance = static_cast<Sum>(this->max) - static_cast<Sum>(to);
    Sum const by = exponential(distance);
    weighted = by * (weighted + distance * this->sum);
    this->sum *= by;
    this->max = to;
    return by;
  }
  HEADAWARE_HOST_DEVICE void rescale(float to) {
    if (this->sum == 0 || this->max == to) {
      this->max = to;
    } else {
      rescale(to, Exp2{});
    }
  }
  /// Adds the keys of another part of the row.
  HEADAWARE_HOST_DEVICE void merge(EntropySoftmax other) {
    if (other.sum == 0) return;
    if (this->sum == 0) {
      *this = other;
      return;
    }
    float const largest = larger_or_nan(this->max, other.max);
    rescale(largest);
    other.rescale(largest);
    this->sum += other.sum;
    weighted += other.weighted;
  }

  /// Shannon entropy in nats: log Z - E[s]. @pre sum > 0
  [[nodiscard]] HEADAWARE_HOST_DEVICE Sum entropy() const {
    constexpr Sum ln2 = static_cast<Sum>(0.6931471805599453);
    return ln2 * (log2(this->sum) - weighted / this->sum);
  }
  /// The largest probability. @pre sum > 0
  [[nodiscard]] HEADAWARE_HOST_DEVICE Sum max_probability() const { return 1 / this->sum; }
  /// The probability of a key with logit `score`. @pre sum > 0
  [[nodiscard]] HEADAWARE_HOST_DEVICE Sum probability(float score) const {
    return Exp2{}(static_cast<Sum>(score) - static_cast<Sum>(this->max)) / this->sum;
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
