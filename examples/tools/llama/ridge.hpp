#pragma once

// Ridge regression of several targets on the same features, in one pass over the samples: sums of products, then
// Eigen's Cholesky decomposition.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace llama_adapter {

class RidgeSums {
 public:
  /// @param features  of a sample, the last one 1 in every sample @param targets  of a sample
  RidgeSums(std::int64_t features, std::int64_t targets);
  RidgeSums(RidgeSums&&) noexcept;
  RidgeSums& operator=(RidgeSums&&) noexcept;
  ~RidgeSums();

  /// @param features  [samples, features] @param targets  [targets, samples]
  void add(std::span<float const> features, std::span<float const> targets);

  /// @brief Weights that predict the targets of the samples with the smallest squared error beside
  /// `penalty` · Σ (weight · deviation of its feature)² per variance of the target: features count as standardised.
  /// @return [targets, features]; a feature that never changes has none, but the constant
  /// @throws ArgumentError unless penalty > 0 and there is a sample
  [[nodiscard]] std::vector<float> solve(double penalty) const;

  /// All sums in a row, for a file; `restore` takes them back.
  [[nodiscard]] std::vector<double> state() const;
  [[nodiscard]] std::int64_t state_size() const;
  void restore(std::span<double const> state);

 private:
  struct Sums;
  std::unique_ptr<Sums> sums_;
};

}  // namespace llama_adapter
