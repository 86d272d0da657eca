#pragma once

/// @file
/// Errors that a planner adds up, and the rule of their sum.

#include <headaware/config.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Error of a query head, as the mean over its rows.
enum class ErrorMeasure : std::uint8_t {
  mass,          ///< attention mass lost; plans no better than uniform windows, for comparison only
  output,        ///< ‖Δ‖², the change of the head's output
  output_metric  ///< ‖W_O Δ‖², the change of what the layer adds to the residual stream
};
inline constexpr std::array<std::string_view, 3> error_measure_names{"mass", "output", "output_metric"};
[[nodiscard]] constexpr std::string_view to_string(ErrorMeasure measure) {
  return error_measure_names[static_cast<std::size_t>(measure)];
}

/// @brief Combines the query heads that share a KV head.
enum class GroupFold : std::uint8_t { sum, maximum };
inline constexpr std::array<std::string_view, 2> group_fold_names{"sum", "maximum"};
[[nodiscard]] constexpr std::string_view to_string(GroupFold fold) {
  return group_fold_names[static_cast<std::size_t>(fold)];
}

HEADAWARE_NAMESPACE_END
