#pragma once

// Attention under policies whose keys are counted anew: at every step a kept key stands at the place of its slot.

#include "tools/llama/attention_tap.hpp"

#include <headaware/cache/rotation.hpp>
#include <headaware/policy/table.hpp>

namespace llama_adapter {

/// @brief Writes the output of one layer in which every query sees what its KV head's policy would have kept by then,
/// keys re-rotated to positions inside the cache, and the query at the last of them, as StreamingLLM does.
///
/// A window's keys keep their distances to the query, so only sinks move: they are as far away as the cache is long.
/// The query is turned towards them instead of each of them towards it, which is the same.
/// @param attention  with output @param table  sinks and windows, Full or Prune
/// @throws ArgumentError on policies of another shape, or a rotation wider than the heads
/// @par Cost  num_query_heads · tokens · head_dim times the keys kept
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453, section 3.2
void attend_at_cache_positions(TappedAttention const& attention, headaware::PolicyTable const& table,
                               headaware::KeyRotation const& rotation);

}  // namespace llama_adapter
