#pragma once

// The sizes of the model, which every part of the program shares.

#include <headaware/attention/attention.hpp>

#include <cstdint>

namespace decode_loop {

struct Shape {
  std::int32_t layers = 3;
  std::int32_t num_query_heads = 8;
  std::int32_t num_kv_heads = 4;  ///< divides `num_query_heads`
  std::int64_t head_dim = 32;

  [[nodiscard]] std::int64_t hidden() const { return num_query_heads * head_dim; }
  /// Elements of one token's queries, or attention output, in a layer.
  [[nodiscard]] std::int64_t query_width() const { return num_query_heads * head_dim; }
  /// Elements of one token's keys, or values, in a layer.
  [[nodiscard]] std::int64_t kv_width() const { return num_kv_heads * head_dim; }
  /// Attention of one layer, of the one sequence that this program reads.
  [[nodiscard]] headaware::AttentionShape attention(std::int64_t query_tokens) const {
    return {1, num_query_heads, num_kv_heads, query_tokens, head_dim, 0};
  }
};

}  // namespace decode_loop
