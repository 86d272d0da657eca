#pragma once

// Scores of rows by the attention that they get, in two passes without values.
//
// The first: a block holds 64 query rows of a KV head, and the keys of a part of its rows pass by in tiles: each
// query's largest logit and sum, parts apart. The second, its mirror image: a block holds 64 keys, and query rows pass
// by; where they come in, the parts of their softmaxes are joined. So a key's score is one thread's from beginning to
// end, and results are the same from run to run, sums too. The next tile is on its way while one is worked on. Tiles
// that nobody sees are neither read nor worked on.
// Fragments, of both: lane l holds rows l / 4 and l / 4 + 8 of its warp's 16 held rows, and of each 8 rows that pass by
// 2 · (l % 4) and the next.

#include <headaware/attention/detail/cuda/key_score_parameters.cuh>
#include <headaware/attention/detail/cuda/key_score_tile.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The sum of a row's four lanes, in all of them.
__device__ inline float sum_of_quad(float value) {
  value += __shfl_xor_sync(~0U, value, 1);
  return value + __shfl_xor_sync(~0U, value, 2);
}

/// What blocks of the second pass keep in shared memory beside tiles.
struct ScoreShared {
  float shift[held_tile_rows];  ///< of the query rows that pass by: `query_shift`
};

/// Calls `work(first, seen)` for the tiles at `begin`, `begin + moving` … before `end` that `look(first)` finds seen,
/// each in shared memory at its stage. @param fetch  (first, stage) By all threads
template <class P, class Look, class Fetch, class Work>
__device__ void for_each_seen_tile(P const& p, std::int64_t begin, std::int64_t end, Look const& look,
                                   Fetch const& fetch, Work const& work) {
  Seen seen = Seen::none;
  auto const next_seen = [&](std::int64_t first) {
    for (; first < end; first += P::moving) {
      seen = look(first);
      if (seen != Seen::none) break;
    }
    return first;
  };
  std::int64_t first = next_seen(begin);
  std::int32_t stage = 0;
  if (first < end) fetch(first, stage);
  while (first < end) {
    Seen const of_tile = seen;
    std::int64_t next = first + P::moving;
    bool const ahead = p.memory.stages == 2;
    if (ahead) {
      next = next_seen(next);
      if (next < end) fetch(next, 1 - stage);
    }
    if (ahead && next < end) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    work(first, stage, of_tile);
    __syncthreads();
    if (!ahead) {
      next = next_seen(next);
      if (next < end) fetch(next, 0);
    } else {
      stage = 1 - stage;
    }
    first = next;
  }
}

/// The first pass: softmaxes of query rows over a part of their KV head's rows.
/// Grid: x query tiles of all segments, y parts
template <class P>
HEADAWARE_KERNEL void __launch_bounds__(score_threads, score_blocks)
    row_softmax_kernel(P const __grid_constant__ parameters) {
#if __CUDA_ARCH__ >= 800
  using E = typename P::Tile;
  extern __shared__ uint4 score_memory[];
  __shared__ SharedStorage<P> parameter_storage;
  auto const& p = share_parameters(parameters, parameter_storage);
  auto* const held = reinterpret_cast<E*>(score_memory);
  E* const moving = held + held_tile_rows * p.memory.pitch;
  std::int32_t const moving_elements = P::moving * p.memory.pitch;
  ScoredHead<P> const head(p, blockIdx.x / p.tiles);
  std::int64_t const first_query = blockIdx.x % p.tiles * held_tile_rows;
  std::int64_t const queries = p.shape.query_rows();
  std::int64_t const rows = head.rows.rows();
  std::int64_t const of_part = (rows + p.splits - 1) / p.splits;
  std::int64_t const part_rows = (of_part + P::moving - 1) / P::moving * P::moving;
  std::int64_t const begin = blockIdx.y * part_rows;
  std::int64_t const end = min(rows, begin + part_rows);
  std::int64_t const first_of = head.query_position(first_query);
  std::int64_t const last_of = head.query_position(min(queries, first_query + held_tile_rows) - 1);
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  std::int32_t const lane = thread % warp_threads;
  std::int32_t const warp_row = thread / warp_threads * 16;
  if (begin < end) head.fetch_queries(first_query, held_tile_rows, held);

  float max[2] = {hidden_logit, hidden_logit};
  float sum[2] = {0, 0};
  float poison[2] = {0, 0};
  std::int64_t query[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) query[h] = head.query_position(first_query + warp_row + lane / 4 + 8 * h);
  auto const look = [&](std::int64_t first) {
    auto const count = static_cast<std::int32_t>(min(end - first, std::int64_t{P::moving}));
    if (!head.masked) return count == P::moving ? Seen::all : Seen::some;
    std::int64_t const position = thread < count ? head.position(first + thread) : 0;
    return seen_of(head, position, count, P::moving, first_of, last_of);
  };
  auto const fetch = [&](std::int64_t first, std::int32_t stage) {
    head.fetch_keys(first, end, P::moving, moving + stage * moving_elements);
  };
  for_each_seen_tile(p, begin, end, look, fetch, [&](std::int64_t first, std::int32_t stage, Seen seen) {
    float scores[P::moving / 8][4] = {};
    WarpProducts<E>::scores(scores, held + warp_row * p.memory.pitch, moving + stage * moving_elements, p.memory.pitch,
                            (head.channels() + 15) / 16 * 16);
    float largest[2] = {hidden_logit, hidden_logit};
#pragma unroll
    for (int n = 0; n < P::moving / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x = head.logit(scores[n][i]);
        if (seen == Seen::some) {
          std::int64_t const row = first + n * 8 + lane % 4 * 2 + i % 2;
          bool const counts = row < end && (!head.masked || head.sees(head.position(row), query[i / 2]));
          x = counts ? x : hidden_logit;
        }
        poison[i / 2] = __fmaf_rn(x, 0.0F, poison[i / 2]);  // NaN where it is infinite or no number
        scores[n][i] = x;
        largest[i / 2] = fmaxf(largest[i / 2], x);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const to = fmaxf(max[h], largest[h]);
      sum[h] *= exp2_fast(max[h] - to);
      max[h] = to;
    }
#pragma unroll
    for (int n = 0; n < P::moving / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (scores[n][i] != hidden_logit) sum[i / 2] += exp2_fast(scores[n][i] - max[i / 2]);
      }
    }
  });
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float const whole = quad_max(max[h]);
    float const total = sum_of_quad(sum[h] * exp2_fast(max[h] - whole));
    float const bad = sum_of_quad(poison[h]);
    std::int64_t const row = first_query + warp_row + lane / 4 + 8 * h;
    if (lane % 4 != 0 || row >= queries) continue;
    std::int64_t const at = (std::int64_t{blockIdx.y} * p.shape.segments() + head.segment) * queries + row;
    p.parts[at] = {whole, total + bad};
  }
#else
  __trap();  // the host has refused such devices; their code only has to compile
#endif
}

/// log2 of the sum of a query row's weights, of its parts and learned sink; +inf where it has no probabilities.
template <class P>
__device__ float query_shift(P const& p, ScoredHead<P> const& head, std::int64_t query_row) {
  OnlineSoftmax<float> whole;
  if (p.sinks != nullptr) {
    QueryRow const row(p.shape, head.sequence, head.kv_head, query_row);
    whole = OnlineSoftmax<float>::of_sink(global_pointer(p.sinks)[row.head]);
  }
  for (std::int64_t part = 0; part < p.splits; ++part) {
    OnlineSoftmax<float> next = p.parts[(part * p.shape.segments() + head.segment) * p.shape.query_rows() + query_row];
    if (next.sum == 0) continue;
    float const max = larger_or_nan(whole.max, next.max);
    whole.rescale(max);
    whole.sum += next.factor(max) * next.sum;
    whole.max = max;
  }
  bool const counts = whole.sum > 0 && whole.sum < INFINITY && whole.max > hidden_logit && whole.max < INFINITY;
  return counts ? whole.max + log2f(whole.sum) : INFINITY;
}

/// The second pass: scores of keys. Grid: x tiles of keys of all segments
template <class P>
HEADAWARE_KERNEL void __launch_bounds__(score_threads, score_blocks)
    key_score_kernel(P const __grid_constant__ parameters) {
#if __CUDA_ARCH__ >= 800
  using E = typename P::Tile;
  extern __shared__ uint4 score_memory[];
  __shared__ ScoreShared shared;
  __shared__ SharedStorage<P> parameter_storage;
  auto const& p = share_parameters(parameters, parameter_storage);
  auto* const held = reinterpret_cast<E*>(score_memory);
  E* const moving = held + held_tile_rows * p.memory.pitch;
  std::int32_t const moving_elements = P::moving * p.memory.pitch;
  ScoredHead<P> const head(p, blockIdx.x / p.tiles);
  std::int64_t const first_key = blockIdx.x % p.tiles * held_tile_rows;
  std::int64_t const rows = head.rows.rows();
  if (first_key >= rows) return;
  std::int64_t const queries = p.shape.query_rows();
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  std::int32_t const lane = thread % warp_threads;
  std::int32_t const warp_row = thread / warp_threads * 16;
  auto const count = static_cast<std::int32_t>(min(rows - first_key, std::int64_t{held_tile_rows}));
  head.fetch_keys(first_key, rows, held_tile_rows, held);
  auto const position_of = [&](std::int32_t row) {
    return head.masked && row < count ? head.position(first_key + row) : std::int64_t{0};
  };
  std::int64_t const own[2] = {position_of(warp_row + lane / 4), position_of(warp_row + lane / 4 + 8)};
  std::int64_t const looked_at = position_of(thread);
  auto const look = [&](std::int64_t first) {
    if (!head.masked) return Seen::all;
    std::int64_t const last = min(queries, first + P::moving) - 1;
    return seen_of(head, looked_at, count, count, head.query_position(first), head.query_position(last));
  };
  auto const fetch = [&](std::int64_t first, std::int32_t stage) {
    head.fetch_queries(first, P::moving, moving + stage * moving_elements);
  };
  float score[2] = {0, 0};
  bool const adds = p.reduction == KeyScoreReduction::sum;
  for_each_seen_tile(p, 0, queries, look, fetch, [&](std::int64_t first, std::int32_t stage, Seen seen) {
    if (thread < P::moving)
      shared.shift[thread] = first + thread < queries ? query_shift(p, head, first + thread) : INFINITY;
    float products[P::moving / 8][4] = {};
    WarpProducts<E>::scores(products, held + warp_row * p.memory.pitch, moving + stage * moving_elements,
                            p.memory.pitch, (head.channels() + 15) / 16 * 16);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < P::moving / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::int32_t const column = n * 8 + lane % 4 * 2 + i % 2;
        float const beyond = head.logit(products[n][i]) - shared.shift[column];
        bool counts = beyond < 1;  // no number: a query that counts for nothing
        if (seen == Seen::some) counts = counts && head.sees(own[i / 2], head.query_position(first + column));
        float const probability = counts ? exp2_fast(beyond) : 0;
        score[i / 2] = adds ? score[i / 2] + probability : fmaxf(score[i / 2], probability);
      }
    }
  });
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float const whole = adds ? sum_of_quad(score[h]) : quad_max(score[h]);
    std::int32_t const row = warp_row + lane / 4 + 8 * h;
    if (lane % 4 != 0 || row >= count) continue;
    float& to = p.scores.data[head.segment * p.scores.stride + first_key + row];
    to = adds ? to + whole : fmaxf(to, whole);
  }
#else
  __trap();
#endif
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
