#pragma once

// The core that both back ends share: states of partial softmaxes, and the cut of the work.

#include <headaware/attention/attention.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/logit_map.hpp>

#include <cmath>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// How logits come of the products that `attend` is asked for.
inline LogitMap logit_map(AttentionShape const& shape, AttentionOptions const& options) {
  return LogitMap::of(options.scale, options.soft_cap, shape.head_dim);
}

/// The softmax of some rows, relative to the largest of their logits (base 2): a weighted sum of values that goes
/// with it is relative to the same.
struct SoftmaxPart {
  float max = -INFINITY;
  float sum = 0;

  /// What the sums are to be multiplied with where `top` is the largest logit of all.
  [[nodiscard]] HEADAWARE_HOST_DEVICE float weight(float top) const { return sum == 0 ? 0.0F : exp2f(max - top); }
  /// NaN stays.
  [[nodiscard]] HEADAWARE_HOST_DEVICE float inverse() const { return sum == 0 ? 0.0F : 1 / sum; }
  /// Natural logarithm of Σ exp(logit); -inf where there is nothing.
  [[nodiscard]] HEADAWARE_HOST_DEVICE float lse() const { return sum == 0 ? -INFINITY : ln_2 * (max + log2f(sum)); }
};

/// The larger; NaN wins, so that it is seen in the output.
[[nodiscard]] HEADAWARE_HOST_DEVICE inline float larger_or_nan(float a, float b) { return a >= b || a != a ? a : b; }

/// How a segment's work is cut: into tiles of query rows, and its rows into chunks of a fixed number, whose partial
/// results are merged in their order. Depends on nothing but the shape, so results do not depend on threads.
struct AttentionCut {
  std::int64_t tile_rows = 1;  ///< query rows that share each load
  std::int64_t tiles = 0;
  std::int64_t chunk_rows = 1;

  /// @param rows  rows of a chunk where one tile holds all queries; more tiles are work enough for longer chunks
  static AttentionCut of(AttentionShape const& shape, std::int64_t most_tile_rows, std::int64_t rows) {
    std::int64_t const queries = shape.query_rows();
    std::int64_t const tiles = (queries + most_tile_rows - 1) / most_tile_rows;
    return {queries < most_tile_rows ? queries : most_tile_rows, tiles, rows * (tiles > 0 ? tiles : 1)};
  }
  /// At least one: a segment without rows has an output, too.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t chunks(std::int64_t rows) const {
    return rows <= chunk_rows ? 1 : (rows + chunk_rows - 1) / chunk_rows;
  }
};

/// Where a query row's results go.
struct QueryRow {
  std::int64_t sequence;
  std::int64_t head;
  std::int64_t token;

  HEADAWARE_HOST_DEVICE QueryRow(AttentionShape const& shape, std::int64_t of_sequence, std::int64_t kv_head,
                                 std::int64_t row)
      : sequence(of_sequence), head(kv_head * shape.group() + row % shape.group()), token(row / shape.group()) {}
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t lse_index(AttentionShape const& shape) const {
    return (sequence * shape.num_query_heads + head) * shape.query_tokens + token;
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
