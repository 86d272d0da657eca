#pragma once

// Linear scores on the device: a block takes a few tokens, a warp at a time one row of each, so that a weight that is
// loaded meets all of them, and few tokens keep a multiprocessor busy too.

#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/score/score_features.hpp>

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int32_t score_threads = 256;
inline constexpr std::int32_t score_warps = score_threads / warp_threads;
inline constexpr std::int32_t scored_tokens = 4;  ///< of a block
inline constexpr std::int32_t scored_heads = 4;   ///< whose sums a thread has at a time

/// One of the tensors. @tparam E  float, float16 or bfloat16
template <class E, class Layout>
struct ScoredTensor {
  E const* data;
  Layout layout;
  bool contiguous;  ///< channels of a row lie side by side
};

template <class Queries, class Keys, class Values, class Rotation>
struct LinearScoreParameters {
  static constexpr bool turns = std::is_same_v<Rotation, KeyRotation>;

  ScoreFeatures features;
  ScoreBatch batch;
  Queries queries;
  Keys keys;
  Values values;
  float const* weights;  ///< [num_kv_heads, features]
  RowScores scores;
  Rotation rotation;
};

/// The places of a block's tokens; those beyond the last one repeat it.
struct ScoredPlace {
  std::int64_t sequence;
  std::int64_t token;

  __device__ static ScoredPlace of(ScoreBatch const& batch, std::int64_t index) {
    std::int64_t const last = batch.num_sequences * batch.tokens - 1;
    index = index < last ? index : last;
    return {index / batch.tokens, index % batch.tokens};
  }
};

/// A thread's part of one row of each of a block's tokens.
template <class Tensor>
struct ScoredRow {
  Tensor const& tensor;
  std::int64_t head;
  std::int64_t const (&offsets)[scored_tokens];  ///< of the rows' first channels
  std::int64_t first_index;                      ///< of the block's tokens
  ScoreBatch const& batch;

  __device__ float operator()(std::int32_t t, std::int64_t channel) const {
    std::int64_t offset = offsets[t] + channel;
    if (!tensor.contiguous) {
      auto const place = ScoredPlace::of(batch, first_index + t);
      offset = tensor.layout.offset(place.sequence, head, place.token, channel);
    }
    return element_value(global_pointer(tensor.data)[offset]);
  }
};

/// A thread's sums of some KV heads' scores of the block's tokens.
struct ScoreSums {
  float sums[scored_tokens][scored_heads];

  /// @param weights  of the first of these heads, at the feature @param stride  from one head's to the next
  __device__ void add(float const (&values)[scored_tokens], float const* weights, std::int64_t stride,
                      std::int32_t heads) {
#pragma unroll
    for (std::int32_t k = 0; k < scored_heads; ++k) {
      float const weight = k < heads ? weights[k * stride] : 0;
#pragma unroll
      for (std::int32_t t = 0; t < scored_tokens; ++t) sums[t][k] += weight * values[t];
    }
  }
};

/// Adds one head's row of queries, keys or values to the sums.
/// @param weights  of the row's first feature @param norm  the weights of its norm's logarithm; nullptr: it has none
/// @param turns    [tokens, pairs] cosine and sine of the angles back; nullptr: the row is not rotated
template <class Tensor>
__device__ void add_scored_row(Tensor const& tensor, std::int64_t head, std::int64_t channels, std::int64_t first_index,
                               ScoreBatch const& batch, float const* weights, float const* norm, std::int64_t stride,
                               std::int32_t heads, KeyRotation const* rotation, float2 const* turns, ScoreSums& sums) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  std::int64_t offsets[scored_tokens];
#pragma unroll
  for (std::int32_t t = 0; t < scored_tokens; ++t) {
    auto const place = ScoredPlace::of(batch, first_index + t);
    offsets[t] = tensor.layout.offset(place.sequence, head, place.token, 0);
  }
  ScoredRow<Tensor> const row{tensor, head, offsets, first_index, batch};
  float squares[scored_tokens] = {};
  std::int64_t plain = 0;  // the first channel that does not turn
  if (rotation != nullptr) {
    std::int32_t const pairs = rotation->rotary_dim() / 2;
    plain = 2 * pairs;
    for (std::int32_t i = lane; i < pairs; i += warp_threads) {
      RotaryPair const pair = rotary_pair(*rotation, i);
      float a[scored_tokens];
      float b[scored_tokens];
#pragma unroll
      for (std::int32_t t = 0; t < scored_tokens; ++t) {
        float const x = row(t, pair.a);
        float const y = row(t, pair.b);
        float2 const turn = turns[t * pairs + i];
        squares[t] += x * x + y * y;
        a[t] = x * turn.x - y * turn.y;
        b[t] = x * turn.y + y * turn.x;
      }
      sums.add(a, weights + pair.a, stride, heads);
      sums.add(b, weights + pair.b, stride, heads);
    }
  }
  for (std::int64_t c = plain + lane; c < channels; c += warp_threads) {
    float x[scored_tokens];
#pragma unroll
    for (std::int32_t t = 0; t < scored_tokens; ++t) {
      x[t] = row(t, c);
      squares[t] += x[t] * x[t];
    }
    sums.add(x, weights + c, stride, heads);
  }
  if (norm == nullptr) return;
  float logs[scored_tokens];
#pragma unroll
  for (std::int32_t t = 0; t < scored_tokens; ++t) logs[t] = 0.5F * logf(sum_lanes(squares[t]) + least_squared_norm);
  if (lane == 0) sums.add(logs, norm, stride, heads);
}

template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(score_threads, min_blocks)
    linear_score_kernel(Parameters const __grid_constant__ p) {
  __shared__ float2 turns[scored_tokens * KeyRotation::max_rotary_dim / 2];
  __shared__ float parts[score_warps][scored_tokens * scored_heads];
  ScoreFeatures const& f = p.features;
  std::int64_t const first_index = std::int64_t{blockIdx.x} * scored_tokens;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  KeyRotation const* rotation = nullptr;
  if constexpr (Parameters::turns) {
    rotation = &p.rotation;
    std::int32_t const pairs = p.rotation.rotary_dim() / 2;
    for (std::int32_t i = thread; i < scored_tokens * pairs; i += score_threads) {
      auto const place = ScoredPlace::of(p.batch, first_index + i / pairs);
      std::int32_t const pair = i % pairs;
      std::int64_t const first = p.rotation.distance(place.sequence, place.token, 0);
      float cosine = 1;
      float sine = 0;
      p.rotation.turn_back(p.rotation.distance_of_pair(first, place.sequence, place.token, 0, pair), pair, cosine,
                           sine);
      turns[i] = {cosine, sine};
    }
    __syncthreads();
  }
  std::int32_t const warp = thread / warp_threads;
  std::int32_t const rows = f.num_query_heads + 2 * f.num_kv_heads;
  std::int64_t const stride = f.count();
  for (std::int32_t first = 0; first < f.num_kv_heads; first += scored_heads) {
    std::int32_t const left = f.num_kv_heads - first;
    std::int32_t const heads = left < scored_heads ? left : scored_heads;
    float const* const weights = global_pointer(p.weights) + first * stride;
    ScoreSums sums{};
    for (std::int32_t row = warp; row < rows; row += score_warps) {
      if (row < f.num_query_heads) {
        add_scored_row(p.queries, row, f.head_dim, first_index, p.batch, weights + row * f.head_dim, nullptr, stride,
                       heads, rotation, turns, sums);
      } else if (row < f.num_query_heads + f.num_kv_heads) {
        std::int32_t const head = row - f.num_query_heads;
        add_scored_row(p.keys, head, f.head_dim, first_index, p.batch, weights + f.keys() + head * f.head_dim,
                       weights + f.key_norms() + head, stride, heads, rotation, turns, sums);
      } else {
        std::int32_t const head = row - f.num_query_heads - f.num_kv_heads;
        add_scored_row(p.values, head, f.value_dim, first_index, p.batch, weights + f.values() + head * f.value_dim,
                       weights + f.value_norms() + head, stride, heads, nullptr, turns, sums);
      }
    }
#pragma unroll
    for (std::int32_t t = 0; t < scored_tokens; ++t) {
#pragma unroll
      for (std::int32_t k = 0; k < scored_heads; ++k) {
        float const sum = sum_lanes(sums.sums[t][k]);
        if (thread % warp_threads == 0) parts[warp][t * scored_heads + k] = sum;
      }
    }
    __syncthreads();
    std::int32_t const k = thread % scored_heads;
    std::int64_t const index = first_index + thread / scored_heads;
    bool const mine = thread < scored_tokens * scored_heads && k < heads;
    if (mine && index < p.batch.num_sequences * p.batch.tokens) {
      float score = weights[k * stride + f.constant()];
      for (std::int32_t w = 0; w < score_warps; ++w) score += parts[w][thread];
      auto const place = ScoredPlace::of(p.batch, index);
      p.scores.head(place.sequence, first + k)[place.token] = score;
    }
    __syncthreads();
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
