#pragma once

/// @file
/// A caller's own array of scores of rows.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Scores of a call's tokens, one per KV head: the larger, the more later tokens will look at the row. Token t
/// of KV head h of sequence s has `data[s * sequence_stride + h * head_stride + t]`.
struct RowScores {
  float* data = nullptr;  ///< host or device, as the back end has it; borrowed
  std::int64_t sequence_stride = 0;
  std::int64_t head_stride = 0;

  /// `[sequences, num_kv_heads, tokens]`, contiguous.
  [[nodiscard]] static constexpr RowScores dense(float* data, std::int64_t num_kv_heads, std::int64_t tokens) {
    return {data, num_kv_heads * tokens, tokens};
  }
  /// The scores of one head's tokens.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr float* head(std::int64_t sequence, std::int64_t kv_head) const {
    return data + sequence * sequence_stride + kv_head * head_stride;
  }

  /// @throws ArgumentError unless there is room for so many scores, each in a place of its own
  void validate(std::int64_t num_sequences, std::int64_t num_kv_heads, std::int64_t tokens, Text const& where) const {
    if (num_sequences == 0 || num_kv_heads == 0 || tokens == 0) return;
    require_pointer(data, "scores", where);
    require_aligned(data, "scores", where);
    // Any order of the dimensions will do, as long as none overlaps another.
    bool const heads_inside = head_stride <= sequence_stride || num_sequences == 1;
    std::int64_t const heads_need = heads_inside ? tokens : (num_sequences - 1) * sequence_stride + tokens;
    std::int64_t const sequences_need = heads_inside ? (num_kv_heads - 1) * head_stride + tokens : tokens;
    require(num_kv_heads == 1 || head_stride >= heads_need, "head_stride of scores", {"at least ", heads_need},
            head_stride, where);
    require(num_sequences == 1 || sequence_stride >= sequences_need, "sequence_stride of scores",
            {"at least ", sequences_need}, sequence_stride, where);
  }
};

HEADAWARE_NAMESPACE_END
