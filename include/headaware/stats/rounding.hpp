#pragma once

/// @file
/// Statistics of rounding: error of a head whose keys or values are held in a format of fewer bits.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One query head: sums over a sample of its query rows, in double; plain sums, so they merge.
///
/// For a row with output o, Δ is o of the same keys and values less o of keys (or of values) that went through a format
/// and back, every one of them. Errors of keys and of values add up, near enough, as do those of rows that are dropped.
struct RoundingSums {
  std::int64_t rows = 0;         ///< rows sampled
  std::int64_t metric_rows = 0;  ///< rows with a metric W_O
  /// [formats] of `RetentionInfo::formats`: Σ |Δ|²
  std::vector<double> key_error_squared;
  std::vector<double> value_error_squared;
  /// [formats] Σ |W_O Δ|²; without a metric 0
  std::vector<double> key_metric_error_squared;
  std::vector<double> value_metric_error_squared;

  RoundingSums() = default;
  explicit RoundingSums(std::size_t formats)
      : key_error_squared(formats),
        value_error_squared(formats),
        key_metric_error_squared(formats),
        value_metric_error_squared(formats) {}

  [[nodiscard]] std::size_t formats() const { return key_error_squared.size(); }

  friend bool operator==(RoundingSums const&, RoundingSums const&) = default;

  /// @throws ArgumentError if the numbers of formats differ
  void merge(RoundingSums const& other) {
    require(formats() == other.formats(), "formats", formats(), other.formats(), "RoundingSums::merge");
    rows += other.rows;
    metric_rows += other.metric_rows;
    for (auto const sums : {&RoundingSums::key_error_squared, &RoundingSums::value_error_squared,
                            &RoundingSums::key_metric_error_squared, &RoundingSums::value_metric_error_squared}) {
      for (std::size_t i = 0; i < formats(); ++i) (this->*sums)[i] += (other.*sums)[i];
    }
  }
};

HEADAWARE_NAMESPACE_END
