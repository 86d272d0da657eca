#pragma once

// The division of attention's work, shared by both back ends.

#include <headaware/attention/attention.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/logit_map.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Map to the logits that `attend` is asked for.
inline LogitMap logit_map(AttentionShape const& shape, AttentionOptions const& options) {
  return LogitMap::of(options.scale, options.soft_cap, shape.head_dim);
}

/// Tokens that a query sees, its own included: more than there are where the call names no window.
inline std::int64_t attention_window(AttentionOptions const& options) {
  return options.window != 0 ? options.window : largest_int64;
}

/// Divides a segment's work into tiles of query rows and its rows into KV splits of a fixed size, whose partial results
/// are merged in order. Depends on the shape alone, so results do not depend on threads.
struct KvSplit {
  std::int64_t tile_rows = 1;  ///< query rows that share each load
  std::int64_t tiles = 0;
  std::int64_t split_rows = 1;

  /// @param rows  rows of a split where one tile holds all queries; with more tiles splits are longer
  static KvSplit of(AttentionShape const& shape, std::int64_t max_tile_rows, std::int64_t rows) {
    std::int64_t const queries = shape.query_rows();
    std::int64_t const tiles = (queries + max_tile_rows - 1) / max_tile_rows;
    return {queries < max_tile_rows ? queries : max_tile_rows, tiles, rows * (tiles > 0 ? tiles : 1)};
  }
  /// Splits of a segment; at least one, as a segment without rows has an output, too.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t splits(std::int64_t rows) const {
    return rows <= split_rows ? 1 : (rows + split_rows - 1) / split_rows;
  }
};

/// The output row of a segment's query row.
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
