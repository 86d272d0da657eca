#pragma once

// The arguments of scores of rows, the same for both back ends.

#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/score/score_features.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// One of a call's tensors: what its layout offers must cover what the call reads.
template <class L>
void check_scored_layout(L const& layout, ScoreBatch const& batch, std::int64_t heads, std::int64_t channels,
                         char const* tensor, char const* where) {
  if constexpr (requires { layout.num_sequences(); }) {
    require(layout.num_sequences() >= batch.num_sequences, {tensor, ": sequences"}, {"at least ", batch.num_sequences},
            layout.num_sequences(), where);
  }
  if constexpr (requires { layout.num_kv_heads(); }) {
    require(layout.num_kv_heads() == heads, {tensor, ": heads"}, heads, layout.num_kv_heads(), where);
  }
  if constexpr (requires { layout.num_channels(); }) {
    require(layout.num_channels() == channels, {tensor, ": channels"}, channels, layout.num_channels(), where);
  }
  if constexpr (requires { layout.token_capacity(); }) {
    require(layout.token_capacity() >= batch.tokens, {tensor, ": tokens"}, {"at least ", batch.tokens},
            layout.token_capacity(), where);
  }
}

/// A call's keys and values. @return whether there is anything to score
template <class T, class Layout>
bool check_scored_keys(ScoreFeatures const& features, ScoreBatch const& batch, T const* keys, T const* values,
                       Layout const& layout, char const* where) {
  features.validate(where);
  require(batch.num_sequences >= 0, "sequences", ">= 0", batch.num_sequences, where);
  require(batch.tokens >= 0, "tokens", ">= 0", batch.tokens, where);
  (void)elements(where, {batch.num_sequences, batch.tokens, features.count(), sizeof(float)});
  if (batch.num_sequences == 0 || batch.tokens == 0) return false;
  require_pointer(keys, "keys", where);
  require_pointer(values, "values", where);
  require_aligned(keys, "keys", where);
  require_aligned(values, "values", where);
  check_scored_layout(keys_of(layout), batch, features.num_kv_heads, features.head_dim, "keys", where);
  check_scored_layout(values_of(layout), batch, features.num_kv_heads, features.value_dim, "values", where);
  return true;
}

/// Those and queries, and what they are turned back by. @return whether there is anything to score
template <class Rows, class Rotation>
bool check_scored_rows(ScoreFeatures const& features, ScoreBatch const& batch, Rows const& rows,
                       Rotation const& rotation, char const* where) {
  if (!check_scored_keys(features, batch, rows.keys, rows.values, rows.layout, where)) return false;
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    require(rotation.rotary_dim() <= features.head_dim, "rotary_dim", {"at most head_dim, ", features.head_dim},
            rotation.rotary_dim(), where);
    check_position_stride(rotation, batch.num_sequences);
    bool const table = rotation.positions() > 0 && rotation.token_positions() == nullptr;
    require(!table || batch.tokens <= rotation.positions(), "tokens", {"at most the table's ", rotation.positions()},
            batch.tokens, where);
  }
  require_pointer(rows.queries, "queries", where);
  require_aligned(rows.queries, "queries", where);
  check_scored_layout(rows.query_layout, batch, features.num_query_heads, features.head_dim, "queries", where);
  return true;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
