#pragma once

// The arguments of scores of rows, the same for both back ends.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/key_score_buffer.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @return whether there is anything to score
template <class Q, class QLayout, class Cache>
bool check_key_scores(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                      AttentionOptions const& options, KeyScores const& scores) {
  if (!check_attention_inputs(shape, queries, cache, options)) return false;
  constexpr auto where = "score_keys";
  require(scores.stride >= 0, "stride of scores", ">= 0", scores.stride, where);
  (void)elements(where, {shape.segments(), scores.stride});
  require(scores.data != nullptr || scores.stride == 0, "scores", "a pointer", "nullptr", where);
  require_aligned(scores.data, "scores", where);
  return true;
}

/// Checks that a KV head's scores have room for its rows. @return these
template <class View>
std::int64_t check_scored_rows(AttentionShape const& shape, View const& view, std::int64_t segment,
                               KeyScores const& scores) {
  auto const head = view.head(segment / shape.num_kv_heads, segment % shape.num_kv_heads);
  std::int64_t const held = head.rows();
  Text const where{"score_keys, sequence ", segment / shape.num_kv_heads, ", KV head ", segment % shape.num_kv_heads};
  require(held >= 0, "rows held", ">= 0", held, where);
  require(held <= scores.stride, "rows held", {"at most the scores' stride of ", scores.stride}, held, where);
  if constexpr (requires { head.pages == nullptr; }) {
    if (held > 0) require_pointer(head.pages, "pages", "score_keys");
  }
  return held;
}

/// Checks the pointers to a layer's keys; one that holds no rows needs none.
template <class Cache>
void check_key_pointers(Cache const& cache, bool holds_rows) {
  constexpr auto where = "score_keys";
  if constexpr (is_packed<Cache>) {
    require(!holds_rows || cache.rows != nullptr, "rows", "a pointer", "nullptr", where);
    require(cache.segments != nullptr, "segments", "a pointer", "nullptr", where);
  } else {
    require(!holds_rows || cache.keys != nullptr, "keys", "a pointer", "nullptr", where);
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
