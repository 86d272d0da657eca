#pragma once

/// @file
/// Merges attention over parts of the keys into attention over all of them.

#include <headaware/attention/attention.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>

#include <cmath>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Weights of two outputs by their log-sum-exp, beside a learned sink.
struct MergeWeights {
  float first = 0;
  float second = 0;
  float lse = -INFINITY;

  [[nodiscard]] HEADAWARE_HOST_DEVICE static MergeWeights of(float a, float b, float sink) {
    float const origin = larger_or_nan(larger_or_nan(a, b), sink);
    auto x = OnlineSoftmax<float>::of_lse(a, origin);
    auto y = OnlineSoftmax<float>::of_lse(b, origin);
    x.rescale(0);
    y.rescale(0);
    auto z = OnlineSoftmax<float>::of_lse(sink, origin);
    z.rescale(0);
    OnlineSoftmax<float> const both{0, x.sum + y.sum + z.sum};
    if (both.sum == 0) return {};
    return {x.sum / both.sum, y.sum / both.sum, origin + both.lse()};
  }
};

/// Merges one output row into `into`, channel by channel. @return its log-sum-exp, to be written once all have read
template <class A, class ALayout, class B, class BLayout>
HEADAWARE_HOST_DEVICE float merge_row(AttentionShape const& shape, AttentionOutput<A, ALayout> const& into,
                                      AttentionOutput<B, BLayout> const& other, float const* sinks,
                                      std::int64_t lse_index, std::int64_t first_channel, std::int64_t channel_step) {
  std::int64_t const token = lse_index % shape.query_tokens;
  std::int64_t const head = lse_index / shape.query_tokens % shape.num_query_heads;
  std::int64_t const sequence = lse_index / shape.query_tokens / shape.num_query_heads;
  float const sink = sinks != nullptr ? sinks[head] : -INFINITY;
  MergeWeights const weights = MergeWeights::of(into.lse[lse_index], other.lse[lse_index], sink);
  for (std::int64_t c = first_channel; c < shape.output_dim(); c += channel_step) {
    A& to = into.data[into.layout.offset(sequence, head, token, c)];
    float const from = to_float(other.data[other.layout.offset(sequence, head, token, c)]);
    // A part that saw nothing may hold anything.
    float const first = weights.first == 0 ? 0 : weights.first * to_float(to);
    float const second = weights.second == 0 ? 0 : weights.second * from;
    to = from_float<A>(first + second);
  }
  return weights.lse;
}

/// @throws ArgumentError as `merge_attention`
template <class A, class ALayout, class B, class BLayout>
void check_merge(AttentionShape const& shape, AttentionOutput<A, ALayout> const& into,
                 AttentionOutput<B, BLayout> const& other, float const* sinks) {
  constexpr auto where = "merge_attention";
  require(shape.num_sequences >= 0, "sequences", ">= 0", shape.num_sequences, where);
  require(shape.num_query_heads >= 0, "query heads", ">= 0", shape.num_query_heads, where);
  require(shape.query_tokens >= 0, "query tokens", ">= 0", shape.query_tokens, where);
  if (shape.num_sequences == 0 || shape.num_query_heads == 0 || shape.query_tokens == 0) return;
  (void)elements(where, {shape.num_sequences, shape.num_query_heads, shape.query_tokens});
  require(into.data != nullptr && other.data != nullptr, "outputs", "pointers", "nullptr", where);
  require(into.lse != nullptr && other.lse != nullptr, "log-sum-exp", "pointers", "nullptr", where);
  require_aligned(sinks, "sinks", where);
  check_attention_layout(shape, into.layout, shape.output_dim(), "merge_attention, first output");
  check_attention_layout(shape, other.layout, shape.output_dim(), "merge_attention, second output");
}

}  // namespace detail

/// @brief Merges attention over some keys with attention of the same queries over others: `into` becomes attention
/// over both, output and log-sum-exp. For example a shared prefix and what follows it, or a compressed past and a
/// prefill chunk. Log-sum-exp is natural, as FlashAttention's; FlashInfer's is
/// of base 2: multiply it by ln 2 before the call and divide the result by it after. FlashAttention 2 gives +inf where
/// nothing was attended to: pass -inf.
/// @param shape  sequences, num_query_heads, query_tokens and channels of both
/// @param into   host; read and written, `lse` included
/// @param other  host
/// @param sinks  [num_query_heads], host: `AttentionOptions::sinks`, of parts that were attended to without: the last
///               merge has them, and then they are in `into.lse`. nullptr: none, or one of the parts has them
/// @throws ArgumentError on missing pointers (both need `lse`), negative counts or layouts too small
/// @par Cost    O(sequences · num_query_heads · query_tokens · channels)
/// @par Source  Ye et al., Cascade Inference, 2024 (FlashInfer's `merge_state`)
template <class A, class ALayout, class B, class BLayout>
void merge_attention(AttentionShape const& shape, AttentionOutput<A, ALayout> const& into,
                     AttentionOutput<B, BLayout> const& other, float const* sinks = nullptr) {
  detail::check_merge(shape, into, other, sinks);
  std::int64_t const rows = std::int64_t{shape.num_sequences} * shape.num_query_heads * shape.query_tokens;
  constexpr std::int64_t grain = 16;
  detail::parallel_for(rows, grain,
                       [&](std::int64_t i) { into.lse[i] = detail::merge_row(shape, into, other, sinks, i, 0, 1); });
}

HEADAWARE_NAMESPACE_END
