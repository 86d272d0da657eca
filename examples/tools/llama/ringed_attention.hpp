#pragma once

// Attention under policies to rows of which each query sees the newest, and the first, exact, the others rounded.

#include "tools/llama/attention_tap.hpp"

#include <headaware/policy/table.hpp>
#include <headaware/policy/window_rule.hpp>

namespace llama_adapter {

/// @brief Writes `exact.output`: of the tokens that a policy keeps for a query those of `ring` from `exact`, the others
/// from `rounded`.
/// @param rounded  the same layer, keys and values as their formats give them back
/// @param ring     sinks and newest tokens, the query's own included, of every head
/// @throws ArgumentError on policies without sinks and window
void attend_with_ring(TappedAttention const& exact, TappedAttention const& rounded, headaware::PolicyTable const& table,
                      headaware::WindowRule const& ring);

}  // namespace llama_adapter
