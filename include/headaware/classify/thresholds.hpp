#pragma once

/// @file
/// Thresholds of the classifier.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cmath>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Limits between head types, and the windows recommended to them. All comparisons are strict.
/// The defaults are those under which the reference wrote its files.
struct ClassifierThresholds {
  double low_entropy = 1.5;        ///< nats; below it a head is focused
  double high_entropy = 3.0;       ///< nats; above it a head gathers
  double high_local = 0.6;         ///< share of attention; above it a focused head is positional
  double high_sink = 0.3;          ///< share of attention; above it a head needs its sinks
  double dead_uniformity = 0.1;    ///< nats; below it a head is as good as uniform, hence dead
  double coverage = 0.8;           ///< share of attention that the window of a positional head has to exceed
  std::int32_t small_window = 8;   ///< tokens; for focused heads
  std::int32_t large_window = 16;  ///< tokens; for positional heads not covered sooner; the least for mixed ones
  std::int32_t sink_size = 4;      ///< tokens

  friend constexpr bool operator==(ClassifierThresholds const&, ClassifierThresholds const&) = default;

  /// @throws ArgumentError if a threshold is negative or not finite, the entropies are swapped, or a window is empty
  void validate() const {
    constexpr auto where = "ClassifierThresholds";
    auto share = [&](double value, char const* what) {
      require(std::isfinite(value) && value >= 0, what, "finite, >= 0", value, where);
    };
    share(low_entropy, "low_entropy");
    share(high_entropy, "high_entropy");
    share(high_local, "high_local");
    share(high_sink, "high_sink");
    share(dead_uniformity, "dead_uniformity");
    share(coverage, "coverage");
    require(low_entropy <= high_entropy, "low_entropy", "at most high_entropy", low_entropy, where);
    require(small_window > 0, "small_window", "> 0", small_window, where);
    require(large_window > 0 && large_window <= (1 << 29), "large_window", "in [1, 2^29]", large_window, where);
    require(sink_size >= 0, "sink_size", ">= 0", sink_size, where);
  }
};

HEADAWARE_NAMESPACE_END
