#pragma once

/// @file
/// Retention statistics: error of a head that keeps only its sinks and a window.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/stats/rounding.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The (sink, window) pairs that are measured. Both ascend strictly.
struct RetentionGrid {
  std::vector<std::int32_t> sinks{0, 1, 4, 16, 64};
  std::vector<std::int32_t> windows{8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048};

  /// @brief The default sinks, and windows that grow by a half and a third in turn: 8, 16, 24, 32, 48, 64, 96, …,
  /// as far as they are shorter than `tokens`; the default windows for 2,049 to 3,072 tokens.
  [[nodiscard]] static RetentionGrid up_to(std::int64_t tokens) {
    RetentionGrid grid;
    grid.windows = {8};
    for (std::int64_t power = 16; power < tokens && power < (std::int64_t{1} << 30); power *= 2) {
      grid.windows.push_back(static_cast<std::int32_t>(power));
      if (power + power / 2 < tokens) grid.windows.push_back(static_cast<std::int32_t>(power + power / 2));
    }
    return grid;
  }

  friend bool operator==(RetentionGrid const&, RetentionGrid const&) = default;

  static constexpr std::int32_t max_sinks = 65536;
  static constexpr std::size_t max_cells = std::size_t{1} << 20;

  [[nodiscard]] std::size_t size() const { return sinks.size() * windows.size(); }
  /// Cells are numbered sink by sink.
  [[nodiscard]] std::size_t cell(std::size_t sink, std::size_t window) const { return sink * windows.size() + window; }

  /// @throws ArgumentError unless sinks are >= 0, windows > 0 and both ascend strictly
  void validate() const {
    constexpr auto where = "RetentionGrid";
    auto const ascends = [&](std::vector<std::int32_t> const& values, std::int32_t least, char const* what) {
      require(!values.empty(), what, "at least one", "none", where);
      for (std::size_t i = 0; i < values.size(); ++i) {
        std::int32_t const low = i == 0 ? least : values[i - 1] + 1;
        require(values[i] >= low, what, {">= ", low}, values[i], where);
      }
    };
    ascends(sinks, 0, "sinks");
    ascends(windows, 1, "windows");
    require(sinks.back() <= max_sinks, "sinks", {"<= ", max_sinks}, sinks.back(), where);
    require(size() <= max_cells, "sinks times windows", "at most 2^20", size(), where);
  }
};

/// @brief One query head: sums over its query rows, in double; plain sums, so they merge.
///
/// For a row with probabilities p, values v and output o = Σ p v, keeping `sink` and `window` drops the
/// set D with m = Σ_D p and u = Σ_D p v; renormalised, the output moves by Δ = (m·o - u) / (1 - m).
struct RetentionSums {
  std::int64_t rows = 0;
  std::int64_t value_rows = 0;               ///< rows with values: those that count in errors
  std::int64_t metric_rows = 0;              ///< rows with a metric W_O
  double output_squared = 0;                 ///< Σ |o|²
  double output_metric_squared = 0;          ///< Σ |W_O o|²; without a metric 0
  std::vector<double> mass;                  ///< [grid] Σ m
  std::vector<double> mass_squared;          ///< [grid] Σ m²
  std::vector<double> error_squared;         ///< [grid] Σ |Δ|²; in mass-only mode 0
  std::vector<double> metric_error_squared;  ///< [grid] Σ |W_O Δ|²; without a metric 0
  RoundingSums rounding;                     ///< of `RetentionInfo::formats`
  ScoredSums scored;                         ///< of `RetentionInfo::scored`; empty: none

  RetentionSums() = default;
  explicit RetentionSums(RetentionGrid const& grid, std::size_t formats = 0)
      : mass(grid.size()),
        mass_squared(grid.size()),
        error_squared(grid.size()),
        metric_error_squared(grid.size()),
        rounding(formats) {}

  friend bool operator==(RetentionSums const&, RetentionSums const&) = default;

  void merge(RetentionSums const& other) {
    require(mass.size() == other.mass.size(), "retention grid", mass.size(), other.mass.size(), "RetentionSums::merge");
    rows += other.rows;
    value_rows += other.value_rows;
    metric_rows += other.metric_rows;
    output_squared += other.output_squared;
    output_metric_squared += other.output_metric_squared;
    for (std::size_t i = 0; i < mass.size(); ++i) {
      mass[i] += other.mass[i];
      mass_squared[i] += other.mass_squared[i];
      error_squared[i] += other.error_squared[i];
      metric_error_squared[i] += other.metric_error_squared[i];
    }
    rounding.merge(other.rounding);
    scored.merge(other.scored);
  }
};

/// @brief Shape and parameters of a model's retention statistics.
struct RetentionInfo {
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;     ///< query heads per layer; where they differ, of the layer that has most
  std::int32_t num_kv_heads = 0;  ///< likewise
  std::int64_t first_query = 0;
  std::int64_t query_stride = 1;
  bool with_values = false;         ///< else masses alone
  bool with_output_metric = false;  ///< errors after W_O too
  RetentionGrid grid{};
  std::vector<std::string> formats{};  ///< names of row formats whose errors were observed; empty: none
  ModelShape layers{};                 ///< where they differ; empty: all alike
  /// Pairs of windows and scored slots whose errors were observed (`observe_scored`); nothing: none. Layers that slide
  /// have no rows of these.
  std::optional<ScoredGrid> scored{};
  std::string scores{};  ///< of these, the weights' hash of the scores (`SavedScores::weight_hash`)

  /// Every layer's, also where all are alike. @throws ArgumentError if a count is not positive
  [[nodiscard]] ModelShape shape() const { return detail::shape_of(*this); }
  /// Makes these of a model. Its numbers of heads and, where its layers differ, all of them.
  void set_shape(ModelShape const& shape) { detail::set_shape(*this, shape); }

  friend bool operator==(RetentionInfo const&, RetentionInfo const&) = default;
};

/// @brief One `retention_statistics.json`: every query head of every layer that attends, layer by layer. Input of the
/// planner.
struct RetentionStatistics {
  RetentionInfo info;
  std::vector<RetentionSums> heads;

  friend bool operator==(RetentionStatistics const&, RetentionStatistics const&) = default;
};

HEADAWARE_NAMESPACE_END
