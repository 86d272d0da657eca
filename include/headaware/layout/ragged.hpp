#pragma once

/// @file
/// Sequences of any length back to back in one tensor, without padding.

#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Elements a ragged tensor has in each direction.
struct RaggedShape {
  std::int64_t num_sequences = 0;
  std::int64_t total = 0;  ///< tokens of all sequences together, cu_seqlens[sequences]
  std::int64_t num_kv_heads = 0;
  std::int64_t channels = 0;  ///< head_dim
};

/// @brief Elements between neighbours in each direction.
struct RaggedStrides {
  std::int64_t token = 0;
  std::int64_t head = 0;
  std::int64_t channel = 1;
};

/// @brief Tokens of all sequences in one dimension; token t of sequence s is row `cu_seqlens[s] + t`.
///
/// `token_capacity()` is the total: which part of it is one sequence's, only `cu_seqlens` knows, and that
/// may be on the device.
/// @pre  `cu_seqlens` ascends within [0, total], each sequence with as many rows as a call reads of it. The CPU back
///       end checks it; on a device the caller does (`validate_tables`).
class RaggedLayout {
 public:
  RaggedLayout() = default;

  /// @param cu_seqlens  [sequences + 1], first row of each sequence, 0 first; host or device, as the
  ///                    tensor; borrowed
  /// @throws ArgumentError on a negative extent or stride, more elements than 64 bits count, or sequences without
  ///         `cu_seqlens`
  RaggedLayout(std::int32_t const* cu_seqlens, RaggedShape const& shape, RaggedStrides const& strides)
      : cu_seqlens_(cu_seqlens), shape_(shape), strides_(strides) {
    constexpr auto where = "RaggedLayout";
    require(shape.num_sequences >= 0, "sequences", ">= 0", shape.num_sequences, where);
    require(shape.total >= 0, "total tokens", ">= 0", shape.total, where);
    require(shape.num_kv_heads >= 0, "KV heads", ">= 0", shape.num_kv_heads, where);
    require(shape.channels >= 0, "channels", ">= 0", shape.channels, where);
    require(strides.token >= 0, "token stride", ">= 0", strides.token, where);
    require(strides.head >= 0, "head stride", ">= 0", strides.head, where);
    require(strides.channel >= 0, "channel stride", ">= 0", strides.channel, where);
    require(cu_seqlens != nullptr || shape.num_sequences == 0, "cu_seqlens", "a pointer", "nullptr", where);
    detail::check_extent(where, 0, directions());
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t sequence, std::int64_t head, std::int64_t token,
                                                          std::int64_t channel) const {
    return (cu_seqlens_[sequence] + token) * strides_.token + head * strides_.head + channel * strides_.channel;
  }

  [[nodiscard]] std::int64_t channel_run() const {
    if (strides_.channel != 1) return 1;
    std::int64_t run = shape_.channels;
    if (shape_.total > 1) run = std::gcd(run, strides_.token);
    if (shape_.num_kv_heads > 1) run = std::gcd(run, strides_.head);
    return run > 0 ? run : 1;
  }
  [[nodiscard]] bool rows_contiguous() const { return strides_.channel == 1; }
  [[nodiscard]] bool tokens_adjacent() const { return strides_.token == 1 && strides_.channel != 1; }
  [[nodiscard]] std::int64_t num_sequences() const { return shape_.num_sequences; }
  [[nodiscard]] std::int64_t num_kv_heads() const { return shape_.num_kv_heads; }
  [[nodiscard]] std::int64_t num_channels() const { return shape_.channels; }
  [[nodiscard]] std::int64_t token_capacity() const { return shape_.total; }
  [[nodiscard]] std::int64_t required_span_size() const {
    if (shape_.total == 0 || shape_.num_kv_heads == 0 || shape_.channels == 0) return 0;
    return (shape_.total - 1) * strides_.token + (shape_.num_kv_heads - 1) * strides_.head +
           (shape_.channels - 1) * strides_.channel + 1;
  }
  [[nodiscard]] RaggedShape const& shape() const { return shape_; }
  [[nodiscard]] RaggedStrides const& strides() const { return strides_; }
  [[nodiscard]] std::int32_t const* cu_seqlens() const { return cu_seqlens_; }
  [[nodiscard]] std::array<LayoutDirection, 3> directions() const {
    return {
        {{shape_.total, strides_.token}, {shape_.num_kv_heads, strides_.head}, {shape_.channels, strides_.channel}}};
  }
  /// @brief Checks one sequence of a `cu_seqlens` in host memory.
  /// @throws ArgumentError if the sequence has fewer rows than `tokens_end`, rows that the tensor has not, or ends
  ///         before it begins: then a later sequence would have rows of an earlier one
  void check_table(std::int64_t sequence, std::int64_t, std::int64_t tokens_end, char const* where) const {
    std::int64_t const tokens = std::max<std::int64_t>(tokens_end, 0);
    std::int64_t const first = cu_seqlens_[sequence];
    std::int64_t const end = cu_seqlens_[sequence + 1];
    bool const fits = first >= 0 && end <= shape_.total && end - first >= tokens;
    require(fits, "cu_seqlens", {"at least ", tokens, " rows in [0, ", shape_.total, ")"}, {first, " to ", end},
            {where, ", sequence ", sequence});
  }

 private:
  std::int32_t const* cu_seqlens_ = nullptr;
  RaggedShape shape_;
  RaggedStrides strides_;
};
static_assert(KvLayout<RaggedLayout>);

/// @brief `[total, num_kv_heads, head_dim]`, contiguous: FlashAttention's varlen tensors, FlashInfer's ragged
/// NHD tensors.
/// @param cu_seqlens  [batch + 1], host or device, as the tensor; borrowed
/// @param total       tokens of all sequences together
/// @throws ArgumentError as `RaggedLayout`
[[nodiscard]] inline RaggedLayout ragged_thd(std::int32_t const* cu_seqlens, std::int64_t batch, std::int64_t total,
                                             std::int64_t num_kv_heads, std::int64_t head_dim) {
  return {cu_seqlens,
          {.num_sequences = batch, .total = total, .num_kv_heads = num_kv_heads, .channels = head_dim},
          {.token = detail::elements("ragged_thd", {num_kv_heads, head_dim}), .head = head_dim, .channel = 1}};
}

HEADAWARE_NAMESPACE_END
