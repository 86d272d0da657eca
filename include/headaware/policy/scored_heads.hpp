#pragma once

/// @file
/// Heads of a table that keep tokens by scores, and what caches hold of these beside rows.

#include <headaware/config.hpp>
#include <headaware/policy/sink_window_scored.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Whether a table has heads that keep tokens by their scores, so that a cache of it takes scores.
template <class = void>
[[nodiscard]] bool has_scored_heads(PolicyTable const& table) {
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t kv = 0; kv < table.num_kv_heads(layer); ++kv) {
      auto const& policy = table.at(layer, kv);
      if (policy.is<SinkWindowScored>() && policy.get<SinkWindowScored>().scored > 0) return true;
    }
  }
  return false;
}

/// @brief Bytes of scores and records that a cache of a table holds of a sequence beside the rows
/// (`SinkWindowScored::record_bytes`, without slack).
template <class = void>
[[nodiscard]] std::int64_t record_bytes(PolicyTable const& table) {
  std::int64_t bytes = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t kv = 0; kv < table.num_kv_heads(layer); ++kv) {
      auto const& policy = table.at(layer, kv);
      if (policy.is<SinkWindowScored>()) bytes += policy.get<SinkWindowScored>().record_bytes();
    }
  }
  return bytes;
}

HEADAWARE_NAMESPACE_END
