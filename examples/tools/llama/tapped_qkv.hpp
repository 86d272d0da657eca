#pragma once

// Converts what the tap hands over to what the library takes.

#include "tools/analysis/attention_source.hpp"
#include "tools/llama/attention_tap.hpp"

#include <headaware/attention/score.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/stats/observer_parameters.hpp>

namespace llama_adapter {

/// Borrows the tapped pointers.
[[nodiscard]] inline analysis::Qkv<float> qkv_of(TappedAttention const& attention) {
  namespace ha = headaware;
  analysis::Qkv<float> qkv;
  qkv.queries = attention.queries;
  qkv.keys = attention.keys;
  qkv.values = attention.values;
  qkv.query_layout = ha::strided_bshd(1, attention.tokens, attention.num_query_heads, attention.head_dim);
  qkv.key_layout = ha::strided_bshd(1, attention.tokens, attention.num_kv_heads, attention.head_dim);
  qkv.value_layout = ha::strided_bshd(1, attention.tokens, attention.num_kv_heads, attention.value_dim);
  qkv.num_query_heads = attention.num_query_heads;
  qkv.num_kv_heads = attention.num_kv_heads;
  qkv.tokens = attention.tokens;
  qkv.head_dim = attention.head_dim;
  qkv.value_dim = attention.value_dim;
  qkv.sinks = attention.sinks;
  return qkv;
}

[[nodiscard]] inline headaware::AttentionScore score_of(TappedAttention const& attention) {
  return {.scale = attention.scale, .soft_cap = attention.soft_cap, .sliding_window = attention.sliding_window};
}

}  // namespace llama_adapter
