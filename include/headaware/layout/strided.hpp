#pragma once

/// @file
/// Dense tensors with any order of dimensions and any strides.

#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <array>
#include <cstdint>
#include <numeric>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Extents of a tensor.
struct LayoutShape {
  std::int64_t num_sequences = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t tokens = 0;
  std::int64_t channels = 0;  ///< head_dim
};

/// @brief Strides of a tensor, in elements.
struct LayoutStrides {
  std::int64_t sequence = 0;
  std::int64_t head = 0;
  std::int64_t token = 0;
  std::int64_t channel = 1;
};

/// @brief A dense tensor: offset = Σ index · stride, in 64 bits throughout.
class StridedLayout {
 public:
  StridedLayout() = default;

  /// @throws ArgumentError on a negative extent or stride, or a tensor of more elements than 64 bits count
  StridedLayout(LayoutShape const& shape, LayoutStrides const& strides) : shape_(shape), strides_(strides) {
    constexpr auto where = "StridedLayout";
    require(shape.num_sequences >= 0, "sequences", ">= 0", shape.num_sequences, where);
    require(shape.num_kv_heads >= 0, "KV heads", ">= 0", shape.num_kv_heads, where);
    require(shape.tokens >= 0, "tokens", ">= 0", shape.tokens, where);
    require(shape.channels >= 0, "channels", ">= 0", shape.channels, where);
    require(strides.sequence >= 0, "sequence stride", ">= 0", strides.sequence, where);
    require(strides.head >= 0, "head stride", ">= 0", strides.head, where);
    require(strides.token >= 0, "token stride", ">= 0", strides.token, where);
    require(strides.channel >= 0, "channel stride", ">= 0", strides.channel, where);
    detail::check_extent(where, 0, directions());
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t sequence, std::int64_t head, std::int64_t token,
                                                          std::int64_t channel) const {
    return sequence * strides_.sequence + head * strides_.head + token * strides_.token + channel * strides_.channel;
  }

  [[nodiscard]] std::int64_t channel_run() const {
    if (strides_.channel != 1) return 1;
    std::int64_t run = shape_.channels;
    if (shape_.tokens > 1) run = std::gcd(run, strides_.token);
    if (shape_.num_kv_heads > 1) run = std::gcd(run, strides_.head);
    if (shape_.num_sequences > 1) run = std::gcd(run, strides_.sequence);
    return run > 0 ? run : 1;
  }
  [[nodiscard]] bool rows_contiguous() const { return strides_.channel == 1; }
  [[nodiscard]] bool tokens_adjacent() const { return strides_.token == 1 && strides_.channel != 1; }
  [[nodiscard]] std::int64_t num_sequences() const { return shape_.num_sequences; }
  [[nodiscard]] std::int64_t num_kv_heads() const { return shape_.num_kv_heads; }
  [[nodiscard]] std::int64_t num_channels() const { return shape_.channels; }
  [[nodiscard]] std::int64_t token_capacity() const { return shape_.tokens; }
  [[nodiscard]] std::int64_t required_span_size() const {
    bool const empty =
        shape_.num_sequences == 0 || shape_.num_kv_heads == 0 || shape_.tokens == 0 || shape_.channels == 0;
    return empty
               ? 0
               : offset(shape_.num_sequences - 1, shape_.num_kv_heads - 1, shape_.tokens - 1, shape_.channels - 1) + 1;
  }
  [[nodiscard]] LayoutShape const& shape() const { return shape_; }
  [[nodiscard]] LayoutStrides const& strides() const { return strides_; }
  [[nodiscard]] std::array<LayoutDirection, 4> directions() const {
    return {{{shape_.num_sequences, strides_.sequence},
             {shape_.num_kv_heads, strides_.head},
             {shape_.tokens, strides_.token},
             {shape_.channels, strides_.channel}}};
  }

 private:
  LayoutShape shape_;
  LayoutStrides strides_;
};
static_assert(KvLayout<StridedLayout>);

/// @brief `[batch, num_kv_heads, tokens, head_dim]`, contiguous: Hugging Face's cache.
/// @throws ArgumentError as `StridedLayout`
[[nodiscard]] inline StridedLayout strided_bhsd(std::int64_t batch, std::int64_t num_kv_heads, std::int64_t tokens,
                                                std::int64_t head_dim) {
  return {{.num_sequences = batch, .num_kv_heads = num_kv_heads, .tokens = tokens, .channels = head_dim},
          {.sequence = detail::elements("strided_bhsd", {num_kv_heads, tokens, head_dim}),
           .head = detail::elements("strided_bhsd", {tokens, head_dim}),
           .token = head_dim,
           .channel = 1}};
}

/// @brief `[batch, tokens, num_kv_heads, head_dim]`, contiguous: FlashAttention's tensors.
/// @throws ArgumentError as `StridedLayout`
[[nodiscard]] inline StridedLayout strided_bshd(std::int64_t batch, std::int64_t tokens, std::int64_t num_kv_heads,
                                                std::int64_t head_dim) {
  return {{.num_sequences = batch, .num_kv_heads = num_kv_heads, .tokens = tokens, .channels = head_dim},
          {.sequence = detail::elements("strided_bshd", {tokens, num_kv_heads, head_dim}),
           .head = head_dim,
           .token = detail::elements("strided_bshd", {num_kv_heads, head_dim}),
           .channel = 1}};
}

/// @brief `[tokens, num_kv_heads, head_dim]` of one sequence, contiguous.
/// @throws ArgumentError as `StridedLayout`
[[nodiscard]] inline StridedLayout strided_shd(std::int64_t tokens, std::int64_t num_kv_heads, std::int64_t head_dim) {
  return strided_bshd(1, tokens, num_kv_heads, head_dim);
}

/// @brief `[sequences, heads, head_dim]`, contiguous: one token of each sequence of a decode batch (queries, new keys
/// and values, outputs).
/// @throws ArgumentError as `StridedLayout`
[[nodiscard]] inline StridedLayout strided_bhd(std::int64_t num_sequences, std::int64_t num_heads,
                                               std::int64_t head_dim) {
  return strided_bhsd(num_sequences, num_heads, 1, head_dim);
}

/// @brief `[batch, num_kv_heads, head_dim, tokens]`, contiguous: transposed values.
/// @throws ArgumentError as `StridedLayout`
[[nodiscard]] inline StridedLayout strided_bhds(std::int64_t batch, std::int64_t num_kv_heads, std::int64_t head_dim,
                                                std::int64_t tokens) {
  return {{.num_sequences = batch, .num_kv_heads = num_kv_heads, .tokens = tokens, .channels = head_dim},
          {.sequence = detail::elements("strided_bhds", {num_kv_heads, head_dim, tokens}),
           .head = detail::elements("strided_bhds", {head_dim, tokens}),
           .token = 1,
           .channel = tokens}};
}

HEADAWARE_NAMESPACE_END
