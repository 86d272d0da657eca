#pragma once

/// @file
/// Types of attention heads, and the class of one query head.

#include <headaware/config.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Attention pattern of a query head. `positional` is the legacy type of older files, which did
/// not yet tell sinks from true position.
enum class HeadType : std::uint8_t { sink_positional, true_positional, sink_mixed, gathering, mixed, dead, positional };

inline constexpr std::size_t num_head_types = 7;

/// Names as they stand in files, in the enumeration's order.
inline constexpr std::array<std::string_view, num_head_types> head_type_names{
    "sink_positional", "true_positional", "sink_mixed", "gathering", "mixed", "dead", "positional"};

[[nodiscard]] constexpr std::string_view to_string(HeadType type) {
  return head_type_names[static_cast<std::size_t>(type)];
}

/// @brief Compression that a file asks for one head.
enum class CompressionStrategy : std::uint8_t { sink_window, window_only, full, none, prune };

inline constexpr std::size_t num_compression_strategies = 5;

/// Names as they stand in files, in the enumeration's order.
inline constexpr std::array<std::string_view, num_compression_strategies> compression_strategy_names{
    "sink_window", "window_only", "full", "none", "prune"};

[[nodiscard]] constexpr std::string_view to_string(CompressionStrategy strategy) {
  return compression_strategy_names[static_cast<std::size_t>(strategy)];
}

/// @brief The class of one query head, one entry of `head_classifications.json`.
struct HeadClassification {
  std::int32_t layer_idx = 0;
  std::int32_t head_idx = 0;  ///< query head
  HeadType head_type = HeadType::mixed;
  double confidence = 0;  ///< 0 … 1
  bool can_prune = false;
  bool can_limit_window = false;         ///< true exactly where a window is recommended
  std::int32_t recommended_window = -1;  ///< tokens; -1: none
  bool keep_sinks = false;
  std::int32_t sink_size = 4;  ///< tokens
  bool use_full_cache = false;
  CompressionStrategy compression_strategy = CompressionStrategy::none;

  friend constexpr bool operator==(HeadClassification const&, HeadClassification const&) = default;
};

HEADAWARE_NAMESPACE_END
