#pragma once

/// @file
/// The output projection as a metric: size of an error of a head's output after W_O.

#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief For every query head a triangular factor R of its share of `W_OᵀW_O`: |W_O x| = |R x| for a head's
/// output x, at the cost of value_dim² instead of hidden_size · value_dim.
class OutputMetric {
 public:
  OutputMetric() = default;

  /// @param projection  host, [hidden_size, num_query_heads * value_dim], row-major: `o_proj.weight` of Hugging Face
  /// @throws ArgumentError on sizes that are not positive, a null pointer, or weights that are not finite
  /// @par Cost  hidden_size · num_query_heads · value_dim² / 2
  OutputMetric(float const* projection, std::int64_t hidden_size, std::int32_t num_query_heads, std::int64_t value_dim)
      : query_heads_(num_query_heads), value_dim_(value_dim) {
    constexpr auto where = "OutputMetric";
    require(hidden_size > 0, "hidden_size", "> 0", hidden_size, where);
    require(num_query_heads > 0, "query heads", "> 0", num_query_heads, where);
    require(value_dim > 0, "value_dim", "> 0", value_dim, where);
    require(projection != nullptr, "output projection", "a pointer", "nullptr", where);
    factors_.resize(static_cast<std::size_t>(num_query_heads * value_dim * value_dim));
    detail::parallel_for(num_query_heads, 1, [&](std::int64_t head) { factorise(projection, hidden_size, head); });
    bool const finite = std::all_of(factors_.begin(), factors_.end(), [](float x) { return std::isfinite(x); });
    require(finite, "output projection", "finite weights", "NaN or infinity", where);
  }

  [[nodiscard]] std::int32_t num_query_heads() const { return query_heads_; }
  [[nodiscard]] std::int64_t value_dim() const { return value_dim_; }
  /// [num_query_heads, value_dim, value_dim], row-major, upper triangular; nullptr if there is no metric.
  [[nodiscard]] float const* factors() const { return factors_.empty() ? nullptr : factors_.data(); }

 private:
  /// Cholesky's R of one head, in double. A pivot that rounding alone makes positive counts as zero: W_O may
  /// lack rank.
  void factorise(float const* projection, std::int64_t hidden_size, std::int64_t head) {
    auto const n = static_cast<std::size_t>(value_dim_);
    std::vector<double> gram(n * n);
    for (std::int64_t row = 0; row < hidden_size; ++row) {
      float const* const w = projection + (row * query_heads_ + head) * value_dim_;
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = i; j < n; ++j) gram[i * n + j] += static_cast<double>(w[i]) * w[j];
      }
    }
    double largest = 0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, gram[i * n + i]);
    float* const factor = factors_.data() + static_cast<std::size_t>(head) * n * n;
    for (std::size_t i = 0; i < n; ++i) {
      double const pivot = gram[i * n + i];
      bool const none = std::isfinite(largest) && pivot <= 1e-12 * largest;
      for (std::size_t j = i; j < n; ++j) gram[i * n + j] = none ? 0 : gram[i * n + j] / std::sqrt(pivot);
      for (std::size_t k = i + 1; k < n; ++k) {
        for (std::size_t j = k; j < n; ++j) gram[k * n + j] -= gram[i * n + k] * gram[i * n + j];
      }
      for (std::size_t j = i; j < n; ++j) factor[i * n + j] = static_cast<float>(gram[i * n + j]);
    }
  }

  std::int32_t query_heads_ = 0;
  std::int64_t value_dim_ = 0;
  std::vector<float> factors_;
};

HEADAWARE_NAMESPACE_END
