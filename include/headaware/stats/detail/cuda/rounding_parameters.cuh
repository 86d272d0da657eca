#pragma once

// Parameters and shared memory of the kernel of errors of formats.

#include <headaware/config.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Keys of a tile: a lane each.
inline constexpr std::int32_t rounding_keys = warp_threads;
/// Query rows of a tile, fewer where shared memory is small, and of a warp.
inline constexpr std::int32_t rounding_rows = 16;
inline constexpr std::int32_t rounding_warp_rows = rounding_rows / observe_warps;

/// Offsets in shared memory, in bytes; tensors are of floats.
struct RoundingShared {
  std::int32_t rows = 0;
  std::int32_t pitch = 0;        ///< floats between rows of queries and keys: lanes that read 16 bytes of a row each
  std::int32_t value_pitch = 0;  ///< meet different banks
  std::int32_t raw = 0;          ///< double [2 + 4 formats]: the block's sums
  std::int32_t queries = 0;      ///< [rows, pitch]
  std::int32_t keys = 0;         ///< [rounding_keys, pitch]
  std::int32_t rounded_keys = 0;
  std::int32_t values = 0;        ///< [rounding_keys, value_pitch]
  std::int32_t value_errors = 0;  ///< what a format changes of the values
  std::int32_t weights = 0;       ///< [rows, rounding_keys]: exact
  std::int32_t own_weights = 0;   ///< of rounded keys
  std::int32_t states = 0;        ///< OnlineSoftmax<float> [1 + formats, rows]
  std::int32_t sums = 0;          ///< [1 + 2 formats, rows, value_pitch]: as those of `RoundingPass`
  std::int32_t squares = 0;       ///< [rows, 4 formats]
  std::int32_t valid = 0;         ///< int32 [rows]
  std::int32_t bytes = 0;
};

/// Lays out at most `limit` bytes of shared memory for as many rows as fit. @return whether one fits
inline bool fit_rounding(std::int64_t parameter_bytes, std::int64_t head_dim, std::int64_t value_dim,
                         std::int64_t formats, std::int64_t limit, RoundingShared& shared) {
  auto const pitch_of = [](std::int64_t channels) {
    std::int64_t const vectors = (channels + 3) / 4;
    return static_cast<std::int32_t>(4 * (vectors + 1 - vectors % 2));
  };
  shared.pitch = pitch_of(head_dim);
  shared.value_pitch = pitch_of(value_dim);
  std::int64_t bytes = 0;
  auto const place = [&](std::int32_t& offset, std::int64_t size) {
    offset = static_cast<std::int32_t>(std::min<std::int64_t>(bytes, 1 << 30));
    bytes += (size + 15) / 16 * 16;
  };
  for (std::int64_t rows = rounding_rows; rows > 0; --rows) {
    bytes = (parameter_bytes + 15) / 16 * 16;
    shared.rows = static_cast<std::int32_t>(rows);
    place(shared.raw, 8 * (2 + 4 * formats));
    place(shared.queries, 4 * rows * shared.pitch);
    place(shared.keys, 4 * rounding_keys * shared.pitch);
    place(shared.rounded_keys, 4 * rounding_keys * shared.pitch);
    place(shared.values, 4 * rounding_keys * shared.value_pitch);
    place(shared.value_errors, 4 * rounding_keys * shared.value_pitch);
    place(shared.weights, 4 * rows * rounding_keys);
    place(shared.own_weights, 4 * rows * rounding_keys);
    place(shared.states, static_cast<std::int64_t>(sizeof(OnlineSoftmax<float>)) * (1 + formats) * rows);
    place(shared.sums, 4 * (1 + 2 * formats) * rows * shared.value_pitch);
    place(shared.squares, 4 * 4 * formats * rows);
    place(shared.valid, 4 * rows);
    shared.bytes = static_cast<std::int32_t>(std::min<std::int64_t>(bytes, 1 << 30));
    if (bytes <= limit) return true;
  }
  return false;
}

template <class QueryLayout, class KeyLayout, class ValueLayout>
struct RoundingParameters {
  QueryLayout query_layout;
  KeyLayout key_layout;
  ValueLayout value_layout;
  std::int64_t sequence;
  std::int64_t first_token;  ///< index in the layouts of the token at position 0
  std::int64_t tokens;
  std::int64_t chunk_size;  ///< > 0
  std::int64_t chunks;
  std::int64_t first_query;
  std::int64_t query_stride;
  std::int64_t rounding_stride;
  double* partials;       ///< [layers, num_query_heads, blocks, 2 + 4 formats]
  std::int32_t* tickets;  ///< [layers, num_query_heads], zero
  double* sums;           ///< [heads of all layers, layout.size()]
  SumsLayout layout;
  RoundingShared shared;
  std::int32_t blocks;  ///< of a head
  std::int32_t tiles;   ///< of the longest chunk
  std::int32_t num_query_heads;
  std::int32_t group;  ///< query heads per KV head
  std::int32_t head_dim;
  std::int32_t value_dim;
  bool latent;  ///< the value is the first channels of the key
  float scale;  ///< from q·k to a logit in base 2, or to what the soft cap takes
  float cap;    ///< soft cap in base 2; 0: none
  AnyFormat<> formats[DefaultFormats::size];
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
