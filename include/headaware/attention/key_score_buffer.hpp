#pragma once

/// @file
/// Scores of the rows of a cache, and how those that several queries give become one.

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief How the probabilities that a row gets from several queries become one score. 0 is neutral to both.
enum class KeyScoreReduction : std::uint8_t { max, sum };

/// @brief Scores of rows: row r of KV head h of sequence s has `data[(s * num_kv_heads + h) * stride + r]`.
struct KeyScores {
  float* data = nullptr;    ///< host or device, as the cache
  std::int64_t stride = 0;  ///< elements from one KV head to the next: at least the rows that any holds
};

HEADAWARE_NAMESPACE_END
