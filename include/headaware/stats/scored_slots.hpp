#pragma once

/// @file
/// Statistics of scored slots: error of a head that keeps sinks, a window, and of the tokens between them those of the
/// highest scores.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The (window, slots) pairs that are measured, beside the same sinks. Both ascend strictly.
struct ScoredGrid {
  std::int32_t sink = 4;
  std::vector<std::int32_t> windows{16, 32, 64, 128, 256, 512};
  std::vector<std::int32_t> slots{8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768};

  /// @brief Windows that double from 16 on, up to a quarter of `tokens`, and slots of 8, 16, 32, 64, 96, 128, 192, …,
  /// up to half of them.
  [[nodiscard]] static ScoredGrid up_to(std::int64_t tokens) {
    ScoredGrid grid{.windows = {16}, .slots = {8, 16, 32}};
    for (std::int64_t window = 32; window <= tokens / 4 && window < max_tokens; window *= 2) {
      grid.windows.push_back(static_cast<std::int32_t>(window));
    }
    for (std::int64_t slots = 64; slots <= tokens / 2 && slots < max_tokens; slots *= 2) {
      grid.slots.push_back(static_cast<std::int32_t>(slots));
      if (slots + slots / 2 <= tokens / 2) grid.slots.push_back(static_cast<std::int32_t>(slots + slots / 2));
    }
    return grid;
  }

  friend bool operator==(ScoredGrid const&, ScoredGrid const&) = default;

  static constexpr std::int32_t max_tokens = std::int32_t{1} << 24;
  static constexpr std::size_t max_cells = 4096;

  [[nodiscard]] std::size_t size() const { return windows.size() * slots.size(); }
  /// Cells are numbered window by window.
  [[nodiscard]] std::size_t cell(std::size_t window, std::size_t slot) const { return window * slots.size() + slot; }

  /// @throws ArgumentError unless sinks are >= 0, windows and slots > 0, at most 2^24, and ascend strictly
  void validate(Text const& where = "ScoredGrid") const {
    require(sink >= 0 && sink <= max_tokens, "sinks", {"in [0, ", max_tokens, "]"}, sink, where);
    auto const ascends = [&](std::vector<std::int32_t> const& values, char const* what) {
      require(!values.empty(), what, "at least one", "none", where);
      for (std::size_t i = 0; i < values.size(); ++i) {
        std::int64_t const least = i == 0 ? 1 : std::int64_t{values[i - 1]} + 1;
        require(values[i] >= least, what, {">= ", least}, values[i], where);
      }
      require(values.back() <= max_tokens, what, {"<= ", max_tokens}, values.back(), where);
    };
    ascends(windows, "windows");
    ascends(slots, "slots");
    require(size() <= max_cells, "windows times slots", {"at most ", max_cells}, size(), where);
  }
};

/// @brief One query head: sums over a sample of its query rows, in double; plain sums, so they merge.
///
/// For a row with output o, Δ is the output over the tokens that a cache of the policy then shows, less o.
struct ScoredSums {
  std::int64_t rows = 0;                     ///< rows sampled
  std::int64_t metric_rows = 0;              ///< rows with a metric W_O
  std::vector<double> error_squared;         ///< [grid] Σ |Δ|²
  std::vector<double> metric_error_squared;  ///< [grid] Σ |W_O Δ|²; without a metric 0

  ScoredSums() = default;
  explicit ScoredSums(ScoredGrid const& grid) : error_squared(grid.size()), metric_error_squared(grid.size()) {}

  [[nodiscard]] std::size_t size() const { return error_squared.size(); }

  friend bool operator==(ScoredSums const&, ScoredSums const&) = default;

  /// @throws ArgumentError if the grids are of different sizes
  void merge(ScoredSums const& other) {
    require(size() == other.size(), "grid of scored slots", size(), other.size(), "ScoredSums::merge");
    rows += other.rows;
    metric_rows += other.metric_rows;
    for (std::size_t i = 0; i < size(); ++i) {
      error_squared[i] += other.error_squared[i];
      metric_error_squared[i] += other.metric_error_squared[i];
    }
  }
};

HEADAWARE_NAMESPACE_END
