#pragma once

/// @file
/// Layout of the running sums of a query head in a flat array of doubles, in which they are
/// added up on the device, reduced over processes and kept in files.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/stats/head_sums.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/rounding.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN

/// @brief All sums of one query head.
struct ObservedHead {
  HeadSums head;
  RetentionSums retention;  ///< empty unless a grid was asked for

  void merge(ObservedHead const& other) {
    head.merge(other.head);
    retention.merge(other.retention);
  }
};

/// @brief Places of the sums of one query head among doubles; two heads merge by adding their arrays,
/// entry by entry. Counts are exact up to 2^53.
struct SumsLayout {
  std::int32_t num_distances = 0;
  std::int32_t cells = 0;    ///< of the retention grid; 0: none
  std::int32_t formats = 0;  ///< whose errors are summed

  /// The single values, each at its own index.
  enum Field : std::int32_t {
    chunks,
    rows,
    invalid_rows,
    entropy,
    entropy_squared,
    max_attention,
    sink,
    recent,
    local,
    global,
    uniformity,
    retention_rows,
    retention_value_rows,
    retention_metric_rows,
    output_squared,         ///< Σ |o|²
    output_metric_squared,  ///< Σ |W_O o|²
    num_fields,
  };

  /// True of entries that are counts.
  [[nodiscard]] bool is_count(std::int64_t entry) const {
    return entry <= invalid_rows || (entry >= retention_rows && entry <= retention_metric_rows) ||
           (entry >= rounding_rows() && entry < key_errors());
  }

  SumsLayout() = default;
  explicit SumsLayout(ObserverParameters const& parameters)
      : num_distances(parameters.num_distances),
        cells(parameters.retention ? static_cast<std::int32_t>(parameters.retention->size()) : 0),
        formats(static_cast<std::int32_t>(parameters.num_formats())) {}

  friend bool operator==(SumsLayout const&, SumsLayout const&) = default;

  HEADAWARE_HOST_DEVICE std::int64_t distances() const { return num_fields; }                  ///< [num_distances]
  HEADAWARE_HOST_DEVICE std::int64_t mass() const { return distances() + num_distances; }      ///< [cells] Σ m
  HEADAWARE_HOST_DEVICE std::int64_t mass_squared() const { return mass() + cells; }           ///< [cells] Σ m²
  HEADAWARE_HOST_DEVICE std::int64_t error_squared() const { return mass_squared() + cells; }  ///< [cells] Σ |Δ|²
  /// [cells] Σ |W_O Δ|²
  HEADAWARE_HOST_DEVICE std::int64_t metric_error_squared() const { return error_squared() + cells; }
  /// Rows sampled and those with a metric; not there without formats, nor is what follows.
  HEADAWARE_HOST_DEVICE std::int64_t rounding_rows() const { return metric_error_squared() + cells; }
  HEADAWARE_HOST_DEVICE std::int64_t rounding_metric_rows() const { return rounding_rows() + 1; }
  /// [formats] Σ |Δ|² of keys rounded
  HEADAWARE_HOST_DEVICE std::int64_t key_errors() const { return rounding_rows() + (formats > 0 ? 2 : 0); }
  HEADAWARE_HOST_DEVICE std::int64_t value_errors() const { return key_errors() + formats; }  ///< of values
  /// The same after W_O.
  HEADAWARE_HOST_DEVICE std::int64_t key_metric_errors() const { return value_errors() + formats; }
  HEADAWARE_HOST_DEVICE std::int64_t value_metric_errors() const { return key_metric_errors() + formats; }
  HEADAWARE_HOST_DEVICE std::int64_t size() const { return value_metric_errors() + formats; }

  /// Adds `values` [size()] to `head`. @throws ArgumentError if either is of another layout
  void add(std::span<double const> values, ObservedHead& head) const {
    check(values.size(), head);
    HeadSums& sums = head.head;
    sums.chunks += static_cast<std::int64_t>(values[chunks]);
    sums.rows += static_cast<std::int64_t>(values[rows]);
    sums.invalid_rows += static_cast<std::int64_t>(values[invalid_rows]);
    sums.entropy += values[entropy];
    sums.entropy_squared += values[entropy_squared];
    sums.max_attention += values[max_attention];
    sums.sink += values[sink];
    sums.recent += values[recent];
    sums.local += values[local];
    sums.global += values[global];
    sums.uniformity += values[uniformity];
    head.retention.rows += static_cast<std::int64_t>(values[retention_rows]);
    head.retention.value_rows += static_cast<std::int64_t>(values[retention_value_rows]);
    head.retention.metric_rows += static_cast<std::int64_t>(values[retention_metric_rows]);
    head.retention.output_squared += values[output_squared];
    head.retention.output_metric_squared += values[output_metric_squared];
    if (formats > 0) {
      RoundingSums& rounding = head.retention.rounding;
      rounding.rows += static_cast<std::int64_t>(values[static_cast<std::size_t>(rounding_rows())]);
      rounding.metric_rows += static_cast<std::int64_t>(values[static_cast<std::size_t>(rounding_metric_rows())]);
    }
    each_array(head, [&](std::vector<double>& sum, std::int64_t first) {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += values[static_cast<std::size_t>(first) + i];
    });
  }

  /// Writes `head` to `values` [size()]. @throws ArgumentError if either is of another layout
  void store(ObservedHead const& head, std::span<double> values) const {
    check(values.size(), head);
    HeadSums const& sums = head.head;
    values[chunks] = static_cast<double>(sums.chunks);
    values[rows] = static_cast<double>(sums.rows);
    values[invalid_rows] = static_cast<double>(sums.invalid_rows);
    values[entropy] = sums.entropy;
    values[entropy_squared] = sums.entropy_squared;
    values[max_attention] = sums.max_attention;
    values[sink] = sums.sink;
    values[recent] = sums.recent;
    values[local] = sums.local;
    values[global] = sums.global;
    values[uniformity] = sums.uniformity;
    values[retention_rows] = static_cast<double>(head.retention.rows);
    values[retention_value_rows] = static_cast<double>(head.retention.value_rows);
    values[retention_metric_rows] = static_cast<double>(head.retention.metric_rows);
    values[output_squared] = head.retention.output_squared;
    values[output_metric_squared] = head.retention.output_metric_squared;
    if (formats > 0) {
      RoundingSums const& rounding = head.retention.rounding;
      values[static_cast<std::size_t>(rounding_rows())] = static_cast<double>(rounding.rows);
      values[static_cast<std::size_t>(rounding_metric_rows())] = static_cast<double>(rounding.metric_rows);
    }
    each_array(head, [&](std::vector<double> const& sum, std::int64_t first) {
      std::copy(sum.begin(), sum.end(), values.begin() + static_cast<std::ptrdiff_t>(first));
    });
  }

 private:
  void check(std::size_t given, ObservedHead const& head) const {
    constexpr auto where = "SumsLayout";
    require(static_cast<std::int64_t>(given) == size(), "doubles of a head", size(), given, where);
    require(static_cast<std::int64_t>(head.head.distances.size()) == num_distances, "relative positions", num_distances,
            head.head.distances.size(), where);
    require(static_cast<std::int64_t>(head.retention.mass.size()) == cells, "retention grid", cells,
            head.retention.mass.size(), where);
    require(static_cast<std::int64_t>(head.retention.rounding.formats()) == formats, "formats", formats,
            head.retention.rounding.formats(), where);
  }

  template <class Head, class F>
  void each_array(Head& head, F const& f) const {
    f(head.head.distances, distances());
    f(head.retention.mass, mass());
    f(head.retention.mass_squared, mass_squared());
    f(head.retention.error_squared, error_squared());
    f(head.retention.metric_error_squared, metric_error_squared());
    f(head.retention.rounding.key_error_squared, key_errors());
    f(head.retention.rounding.value_error_squared, value_errors());
    f(head.retention.rounding.key_metric_error_squared, key_metric_errors());
    f(head.retention.rounding.value_metric_error_squared, value_metric_errors());
  }
};

HEADAWARE_NAMESPACE_END
