#include "tools/llama/ridge.hpp"

#include <headaware/error.hpp>

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <limits>

namespace llama_adapter {

namespace ha = headaware;

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;

struct RidgeSums::Sums {
  MatrixXd products;  ///< [features, features], lower triangle; the last row is n times the means
  MatrixXd targets;   ///< [features, targets]
};

RidgeSums::RidgeSums(std::int64_t features, std::int64_t targets) : sums_(std::make_unique<Sums>()) {
  ha::require(features > 0 && targets > 0, "features and targets", "> 0", features * targets, "RidgeSums");
  sums_->products = MatrixXd::Zero(features, features);
  sums_->targets = MatrixXd::Zero(features, targets);
}
RidgeSums::RidgeSums(RidgeSums&&) noexcept = default;
RidgeSums& RidgeSums::operator=(RidgeSums&&) noexcept = default;
RidgeSums::~RidgeSums() = default;

void RidgeSums::add(std::span<float const> features, std::span<float const> targets) {
  Index const width = sums_->products.rows();
  Index const count = static_cast<Index>(features.size()) / width;
  ha::require(std::ssize(features) == count * width, "features", "whole samples", features.size(), "RidgeSums::add");
  ha::require(std::ssize(targets) == count * sums_->targets.cols(), "targets", count * sums_->targets.cols(),
              targets.size(), "RidgeSums::add");
  // Samples in rows are features in columns, as Eigen stores matrices.
  MatrixXd const x = Eigen::Map<Eigen::MatrixXf const>(features.data(), width, count).cast<double>();
  MatrixXd const y = Eigen::Map<Eigen::MatrixXf const>(targets.data(), count, sums_->targets.cols()).cast<double>();
  sums_->products.selfadjointView<Eigen::Lower>().rankUpdate(x);
  sums_->targets.noalias() += x * y;
}

std::vector<float> RidgeSums::solve(double penalty) const {
  MatrixXd const& products = sums_->products;
  Index const constant = products.rows() - 1;
  double const samples = products(constant, constant);
  ha::require(penalty > 0 && std::isfinite(penalty), "penalty", "> 0", penalty, "RidgeSums::solve");
  ha::require(samples > 0, "samples", "> 0", samples, "RidgeSums::solve");
  VectorXd const means = products.row(constant).head(constant).transpose() / samples;
  MatrixXd covariance = products.topLeftCorner(constant, constant) / samples;
  covariance.selfadjointView<Eigen::Lower>().rankUpdate(means, -1);
  // What rounding leaves of the variance of a feature that never changes is no variance.
  VectorXd scales(constant);
  for (Index i = 0; i < constant; ++i) {
    double const noise = 1e-12 * (products(i, i) / samples) + std::numeric_limits<double>::min();
    scales(i) = covariance(i, i) > noise ? 1 / std::sqrt(covariance(i, i)) : 0;
  }
  covariance = scales.asDiagonal() * covariance * scales.asDiagonal();
  covariance.diagonal().array() += penalty;
  auto const target_means = sums_->targets.row(constant) / samples;
  MatrixXd const right =
      scales.asDiagonal() * (sums_->targets.topRows(constant) / samples - means * target_means).eval();
  Eigen::LLT<Eigen::Ref<MatrixXd>> const decomposition(covariance);
  ha::require(decomposition.info() == Eigen::Success, "features' covariance", "positive definite with the penalty",
              "another", "RidgeSums::solve");
  MatrixXd const weights = scales.asDiagonal() * decomposition.solve(right);
  std::vector<float> result;
  for (Index target = 0; target < weights.cols(); ++target) {
    for (Index i = 0; i < constant; ++i) result.push_back(static_cast<float>(weights(i, target)));
    result.push_back(static_cast<float>(target_means(target) - weights.col(target).dot(means)));
  }
  return result;
}

std::int64_t RidgeSums::state_size() const {
  Index const width = sums_->products.rows();
  return width * (width + 1) / 2 + sums_->targets.size();
}

std::vector<double> RidgeSums::state() const {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(state_size()));
  Index const width = sums_->products.rows();
  for (Index column = 0; column < width; ++column) {
    double const* const first = sums_->products.data() + column * width;
    result.insert(result.end(), first + column, first + width);
  }
  result.insert(result.end(), sums_->targets.data(), sums_->targets.data() + sums_->targets.size());
  return result;
}

void RidgeSums::restore(std::span<double const> state) {
  ha::require(std::ssize(state) == state_size(), "saved sums", state_size(), state.size(), "RidgeSums::restore");
  Index const width = sums_->products.rows();
  double const* from = state.data();
  for (Index column = 0; column < width; ++column) {
    double* const first = sums_->products.data() + column * width;
    std::copy_n(from, width - column, first + column);
    from += width - column;
  }
  std::copy_n(from, sums_->targets.size(), sums_->targets.data());
}

}  // namespace llama_adapter
