#pragma once

// Queries and keys of any layout and type, as the score kernel reads them.

#include <headaware/config.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Packs queries q, q + stride, … of a head, each times `factor`; rows from `count` on are zero.
/// @param to  [rows, head_dim]
template <class Layer>
void pack_queries(Layer const& layer, std::int32_t head, std::int64_t q, std::int64_t stride, std::int64_t count,
                  std::int64_t rows, float factor, float* to) {
  for (std::int64_t r = 0; r < rows; ++r) {
    std::int64_t const token = layer.first_token + q + r * stride;
    for (std::int64_t d = 0; d < layer.head_dim; ++d) {
      to[r * layer.head_dim + d] =
          r < count ? to_float(layer.queries[layer.query_layout.offset(layer.sequence, head, token, d)]) * factor : 0;
    }
  }
}

/// Packs keys [first, first + count) of a KV head into strips, filled up with zeros.
/// @param to  [strips, head_dim, strip]
template <class Layer>
void pack_keys(Layer const& layer, std::int32_t kv_head, std::int64_t first, std::int64_t count, float* to) {
  constexpr std::int64_t strip = ScoreBlocking::strip;
  std::int64_t const padded = (count + strip - 1) / strip * strip;
  for (std::int64_t key = 0; key < padded; ++key) {
    float* const column = to + key / strip * strip * layer.head_dim + key % strip;
    std::int64_t const token = layer.first_token + first + key;
    for (std::int64_t d = 0; d < layer.head_dim; ++d) {
      column[d * strip] =
          key < count ? to_float(layer.keys[layer.key_layout.offset(layer.sequence, kv_head, token, d)]) : 0;
    }
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
