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

inline constexpr std::int32_t linear_score_threads = 256;
inline constexpr std::int32_t linear_score_warps = linear_score_threads / warp_threads;
inline constexpr std::int32_t scored_tokens = 4;  ///< of a block
inline constexpr std::int32_t scored_heads = 4;   ///< whose sums a thread has at a time

/// One of the tensors. @tparam E  float, float16 or bfloat16
template <class E, class Layout>
struct LinearScoreTensor {
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
struct TokenPlace {
  std::int64_t sequence;
  std::int64_t token;

  __device__ static TokenPlace of(ScoreBatch const& batch, std::int64_t index) {
    std::int64_t const last = batch.num_sequences * batch.tokens - 1;
    index = index < last ? index : last;
    return {index / batch.tokens, index % batch.tokens};
  }
};

/// One head's rows of a block's tokens.
template <class E, class Layout>
struct ScoredRow {
  E const* rows[scored_tokens];  ///< their first channels
  LinearScoreTensor<E, Layout> const& tensor;
  TokenPlace const* places;  ///< [tokens]
  std::int64_t head;
  bool contiguous;

  __device__ ScoredRow(LinearScoreTensor<E, Layout> const& from, TokenPlace const* of, std::int64_t row_head)
      : tensor(from), places(of), head(row_head), contiguous(from.contiguous) {
    // A lane each finds where the tokens' rows begin.
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
    std::int64_t offset = 0;
    if (lane < scored_tokens) offset = tensor.layout.offset(places[lane].sequence, head, places[lane].token, 0);
#pragma unroll
    for (std::int32_t t = 0; t < scored_tokens; ++t) {
      rows[t] = global_pointer(tensor.data) + __shfl_sync(0xffffffffU, offset, t);
    }
  }
  __device__ void load(std::int64_t channel, float (&values)[scored_tokens]) const {
    if (contiguous) {
#pragma unroll
      for (std::int32_t t = 0; t < scored_tokens; ++t) values[t] = element_value(rows[t][channel]);
    } else {
#pragma unroll
      for (std::int32_t t = 0; t < scored_tokens; ++t) {
        std::int64_t const offset = tensor.layout.offset(places[t].sequence, head, places[t].token, channel);
        values[t] = element_value(global_pointer(tensor.data)[offset]);
      }
    }
  }
};

/// How rows turn; copied from the parameters once.
struct ScoredTurns {
  std::int32_t pairs;  ///< 0: they do not
  bool neox;
  float2 const* turns;  ///< [tokens, pairs], cosine and sine of the angles back; shared memory
};

/// Weights of some KV heads for a row's features. Heads that there are none of repeat the last one.
struct ScoredWeights {
  float const* heads[scored_heads];

  __device__ ScoredWeights(float const* first, std::int64_t stride, std::int32_t count) {
#pragma unroll
    for (std::int32_t k = 0; k < scored_heads; ++k) heads[k] = first + (k < count ? k : count - 1) * stride;
  }
};

/// A thread's sums of some KV heads' scores of the block's tokens.
struct ScoreSums {
  float sums[scored_tokens][scored_heads];

  __device__ void add(float const (&values)[scored_tokens], ScoredWeights const& weights, std::int64_t feature) {
#pragma unroll
    for (std::int32_t k = 0; k < scored_heads; ++k) {
      float const weight = weights.heads[k][feature];
#pragma unroll
      for (std::int32_t t = 0; t < scored_tokens; ++t) sums[t][k] += weight * values[t];
    }
  }
};

/// Adds one head's row of queries, keys or values to the sums.
/// @param feature  of the row's first channel @param norm  the feature of its norm's logarithm; negative: it has none
template <class E, class Layout>
__device__ void add_scored_row(ScoredRow<E, Layout> const& row, std::int64_t channels, ScoredWeights const& weights,
                               std::int64_t feature, std::int64_t norm, ScoredTurns const& turn, ScoreSums& sums) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  float squares[scored_tokens] = {};
  for (std::int32_t i = lane; i < turn.pairs; i += warp_threads) {
    std::int32_t const first = turn.neox ? i : 2 * i;
    std::int32_t const second = turn.neox ? i + turn.pairs : 2 * i + 1;
    float a[scored_tokens];
    float b[scored_tokens];
    row.load(first, a);
    row.load(second, b);
#pragma unroll
    for (std::int32_t t = 0; t < scored_tokens; ++t) {
      float2 const by = turn.turns[t * turn.pairs + i];
      float const x = a[t];
      squares[t] += x * x + b[t] * b[t];
      a[t] = x * by.x - b[t] * by.y;
      b[t] = x * by.y + b[t] * by.x;
    }
    sums.add(a, weights, feature + first);
    sums.add(b, weights, feature + second);
  }
  for (std::int64_t c = 2 * turn.pairs + lane; c < channels; c += warp_threads) {
    float x[scored_tokens];
    row.load(c, x);
#pragma unroll
    for (std::int32_t t = 0; t < scored_tokens; ++t) squares[t] += x[t] * x[t];
    sums.add(x, weights, feature + c);
  }
  if (norm < 0) return;
  float logs[scored_tokens];
#pragma unroll
  for (std::int32_t t = 0; t < scored_tokens; ++t) logs[t] = 0.5F * logf(sum_lanes(squares[t]) + least_squared_norm);
  if (lane == 0) sums.add(logs, weights, norm);
}

template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(linear_score_threads, min_blocks)
    linear_score_kernel(Parameters const __grid_constant__ p) {
  __shared__ float2 turns[scored_tokens * KeyRotation::max_rotary_dim / 2];
  __shared__ float parts[linear_score_warps][scored_tokens * scored_heads];
  __shared__ TokenPlace places[scored_tokens];
  ScoreFeatures const& f = p.features;
  std::int64_t const first_index = std::int64_t{blockIdx.x} * scored_tokens;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  if (thread < scored_tokens) places[thread] = TokenPlace::of(p.batch, first_index + thread);
  __syncthreads();
  ScoredTurns const still{0, true, turns};
  ScoredTurns turn = still;
  if constexpr (Parameters::turns) {
    std::int32_t const pairs = p.rotation.rotary_dim() / 2;
    turn = {pairs, p.rotation.pairing() == RotaryPairing::neox, turns};
    for (std::int32_t i = thread; i < scored_tokens * pairs; i += linear_score_threads) {
      TokenPlace const place = places[i / pairs];
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
    float const* const first_weights = global_pointer(p.weights) + first * stride;
    ScoredWeights const weights(first_weights, stride, heads);
    ScoreSums sums{};
    for (std::int32_t row = warp; row < rows; row += linear_score_warps) {
      if (row < f.num_query_heads) {
        add_scored_row(ScoredRow(p.queries, places, row), f.head_dim, weights, row * f.head_dim, -1, turn, sums);
      } else if (row < f.num_query_heads + f.num_kv_heads) {
        std::int32_t const head = row - f.num_query_heads;
        add_scored_row(ScoredRow(p.keys, places, head), f.head_dim, weights, f.keys() + head * f.head_dim,
                       f.key_norms() + head, turn, sums);
      } else {
        std::int32_t const head = row - f.num_query_heads - f.num_kv_heads;
        add_scored_row(ScoredRow(p.values, places, head), f.value_dim, weights, f.values() + head * f.value_dim,
                       f.value_norms() + head, still, sums);
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
      float score = first_weights[k * stride + f.constant()];
      for (std::int32_t w = 0; w < linear_score_warps; ++w) score += parts[w][thread];
      TokenPlace const place = places[thread / scored_heads];
      p.scores.head(place.sequence, first + k)[place.token] = score;
    }
    __syncthreads();
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
