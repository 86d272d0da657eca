#pragma once

/// @file
/// Classifies query heads by their attention statistics.

#include <headaware/classify/head_type.hpp>
#include <headaware/classify/thresholds.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/field_checker.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/stats/head_statistics.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// @throws ArgumentError if a statistic is NaN or infinite
inline void require_finite(HeadStatistics const& s, Text const& function) {
  auto const where = [&] { return Text{function, ", layer ", s.layer_idx, ", head ", s.head_idx}.str(); };
  statistics_fields(FieldChecker(where), s);
}

/// The distance at which a positional head's attention is covered, with a slack of four tokens.
inline std::int32_t positional_window(std::span<double const> distances, ClassifierThresholds const& t) {
  double covered = 0;
  std::size_t const limit = std::min(distances.size(), static_cast<std::size_t>(t.large_window));
  for (std::size_t i = 0; i < limit; ++i) {
    covered += distances[i];
    if (covered > t.coverage) return std::max(t.small_window, static_cast<std::int32_t>(i) + 4);
  }
  return t.large_window;
}

/// `classify` without its checks.
inline HeadClassification classify_checked(HeadStatistics const& s, ClassifierThresholds const& t) {
  HeadClassification c;
  c.layer_idx = s.layer_idx;
  c.head_idx = s.head_idx;
  c.sink_size = t.sink_size;
  // Shares and divergences stray past their limits by rounding; a confidence may not.
  auto certain = [&](double value) { c.confidence = std::clamp(value, 0.0, 1.0); };
  auto limit_window = [&](std::int32_t window, CompressionStrategy strategy) {
    c.can_limit_window = true;
    c.recommended_window = window;
    c.compression_strategy = strategy;
    c.keep_sinks = strategy == CompressionStrategy::sink_window;
  };

  double const entropy = s.mean_entropy;
  double const local = s.position_preference.local;
  bool const sinks = s.sink_ratio > t.high_sink;
  if (s.uniformity_score < t.dead_uniformity) {
    c.head_type = HeadType::dead;
    certain(1.0 - s.uniformity_score / t.dead_uniformity);
    c.can_prune = true;
    c.compression_strategy = CompressionStrategy::prune;
  } else if (entropy < t.low_entropy && sinks) {
    c.head_type = HeadType::sink_positional;
    certain(s.sink_ratio);
    limit_window(t.small_window, CompressionStrategy::sink_window);
  } else if (entropy < t.low_entropy && local > t.high_local) {
    c.head_type = HeadType::true_positional;
    certain((1.0 - entropy / t.low_entropy) * (local / t.high_local));
    limit_window(positional_window(s.relative_position_dist, t), CompressionStrategy::window_only);
  } else if (entropy >= t.low_entropy && entropy < t.high_entropy && sinks) {
    double const ratio = (entropy - t.low_entropy) / (t.high_entropy - t.low_entropy);
    c.head_type = HeadType::sink_mixed;
    certain(s.sink_ratio * (1.0 - ratio));
    limit_window(static_cast<std::int32_t>(t.large_window + ratio * t.large_window), CompressionStrategy::sink_window);
  } else if (entropy > t.high_entropy) {
    c.head_type = HeadType::gathering;
    certain((entropy - t.high_entropy) / 2.0);
    c.use_full_cache = true;
    c.compression_strategy = CompressionStrategy::full;
  } else {
    c.head_type = HeadType::mixed;
    c.confidence = 0.5;
    c.use_full_cache = true;
    c.compression_strategy = CompressionStrategy::none;
  }
  return c;
}

}  // namespace detail

/// @brief Classifies one head; the first rule that fits decides:
/// near-uniform → `dead`; focused → `sink_positional`, `true_positional` or `mixed`; of medium entropy
/// with large sinks → `sink_mixed`; of high entropy → `gathering`; else `mixed`.
/// @param s  statistics over query rows of one head
/// @param t  limits between the types
/// @throws ArgumentError if a statistic is NaN or infinite, or a threshold is out of range
/// @note   Made for reading a model and for files of the reference. Windows planned by output error
///         keep more at the same size.
[[nodiscard]] inline HeadClassification classify(HeadStatistics const& s, ClassifierThresholds const& t = {}) {
  t.validate();
  detail::require_finite(s, "classify");
  return detail::classify_checked(s, t);
}

/// @brief Classifies all heads of a model; the result is by (layer, head).
/// @throws ArgumentError also if the heads are not exactly those that `model_info` counts
/// @par Cost  O(heads · distances)
[[nodiscard]] inline std::vector<HeadClassification> classify(ModelStatistics const& model,
                                                              ClassifierThresholds const& t = {}) {
  t.validate();
  detail::HeadCounts const heads = detail::query_head_counts(model.model_info);
  require_grid(std::span(model.heads), heads.view(), "classify");
  std::vector<HeadClassification> result(model.heads.size());
  for (auto const& head : model.heads) {
    detail::require_finite(head, "classify");
    result[grid_index(head, heads.view())] = detail::classify_checked(head, t);
  }
  return result;
}

HEADAWARE_NAMESPACE_END
