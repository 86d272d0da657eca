#pragma once

// What becomes of a block's sums: a result, or the part of one. Parts are joined by the blocks that are last: of every
// 16 parts that follow each other, and then of these joins; in the order of parts, whichever block came last.

#include <headaware/attention/detail/cuda/attend_tile.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_tile.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/signed_ticket.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Calls `f(query, channel)` for every four channels of every query, by the threads of the block.
template <class F>
__device__ void for_output(std::int64_t channels, MmaJob const& job, F const& f) {
  std::int32_t const fours = static_cast<std::int32_t>(channels) / 4;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < job.query_count * fours;
       i += static_cast<std::int32_t>(blockDim.x)) {
    f(i / fours, i % fours * 4);
  }
}

__device__ inline void add_four(float4& sums, float factor, float4 const& x) {
  sums.x += factor * x.x;
  sums.y += factor * x.y;
  sums.z += factor * x.z;
  sums.w += factor * x.w;
}

/// Writes the log-sum-exp of a query.
template <class P>
__device__ void write_lse(P const& p, MmaShared<P::queries> const& shared, MmaJob const& job, std::int32_t q,
                          OnlineSoftmax<float> const& softmax) {
  std::int64_t const row =
      (job.sequence * p.shape.num_query_heads + shared.heads[q]) * p.shape.query_tokens + shared.tokens[q];
  global_pointer(p.output.lse)[row] = softmax.lse();
}

/// Writes four channels of a query's result.
template <class P>
__device__ void write_output(P const& p, MmaShared<P::queries> const& shared, MmaJob const& job, std::int32_t q,
                             std::int32_t channel, float4 const& sums) {
  using O = typename P::Output;
  auto const both = shared.whole[q];
  OnlineSoftmax<float> const softmax{both.x, both.y};
  float const inverse = softmax.inverse();
  Pack<O, 4> const four{{from_float<O>(sums.x * inverse), from_float<O>(sums.y * inverse),
                         from_float<O>(sums.z * inverse), from_float<O>(sums.w * inverse)}};
  auto const at = [&](std::int32_t c) {
    return global_pointer(p.output.data) + p.output.layout.offset(job.sequence, shared.heads[q], shared.tokens[q], c);
  };
  if (p.wide_output) {
    *reinterpret_cast<Pack<O, 4>*>(at(channel)) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) *at(channel + i) = four.elements[i];
  }
  if (channel == 0 && p.output.lse != nullptr) write_lse(p, shared, job, q, softmax);
}

/// Writes four channels of a query's part.
template <class P>
__device__ void write_part(P const& p, MmaShared<P::queries> const& shared, std::int64_t place, std::int32_t q,
                           std::int32_t channel, float4 const& sums) {
  std::int64_t const at = place * P::queries + q;
  *reinterpret_cast<float4*>(global_pointer(p.arrays.sums) + at * p.shape.output_dim() + channel) = sums;
  if (channel == 0) global_pointer(p.arrays.parts)[at] = shared.whole[q];
}

/// Joins `count` parts, `step` apart, from part `first` on, and gives each sum to `write`. By all threads
/// @param count  at most 32
template <class P, class Write>
__device__ void join(P const& p, MmaShared<P::queries>& shared, MmaJob const& job, std::int64_t first,
                     std::int32_t step, std::int32_t count, Write const& write) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const warps = static_cast<std::int32_t>(blockDim.x) / warp_threads;
  for (std::int32_t q = static_cast<std::int32_t>(threadIdx.x) / warp_threads; q < job.query_count; q += warps) {
    float2 both{-INFINITY, 0};
    if (lane < count) {
      both =
          __ldcg(global_pointer(p.arrays.parts) + job.parts.place(first + std::int64_t{lane} * step) * P::queries + q);
    }
    OnlineSoftmax<float> const part{both.x, both.y};
    float const own = part.sum != 0 ? part.max : -INFINITY;
    float const max = __shfl_sync(~0U, reduce_lanes(own, LargerOrNan{}), 0);
    float const factor = part.factor(max);
    shared.part_factors[q][lane] = factor;
    float const sum = sum_lanes(factor * part.sum);
    if (lane == 0) shared.whole[q] = {max, sum};
  }
  __syncthreads();
  for_output(p.shape.output_dim(), job, [&](std::int32_t q, std::int32_t channel) {
    float4 sums{};
    for (std::int32_t begin = 0; begin < count; begin += join_parts) {
      float4 parts[join_parts];
#pragma unroll
      for (int i = 0; i < join_parts; ++i) {
        parts[i] = {};
        if (begin + i >= count) continue;
        std::int64_t const place = job.parts.place(first + std::int64_t{begin + i} * step);
        parts[i] = __ldcg(reinterpret_cast<float4 const*>(global_pointer(p.arrays.sums) +
                                                          (place * P::queries + q) * p.shape.output_dim() + channel));
      }
#pragma unroll
      for (int i = 0; i < join_parts; ++i) add_four(sums, shared.part_factors[q][begin + i], parts[i]);
    }
    write(q, channel, sums);
  });
}

/// Writes a warp's sums, [queries, sum_pitch].
template <class P, class Rows>
__device__ void store_sums(P const&, Rows const&, MmaSums<P> const& sums, std::int32_t query_count, float* to) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::int32_t const q = n * 8 + lane % 4 * 2 + j;
      if (q >= query_count) continue;
#pragma unroll
      for (int m = 0; m < P::channel_tiles; ++m) {
        to[q * P::sum_pitch + m * 16 + lane / 4] = sums.values[m][n][j];
        to[q * P::sum_pitch + m * 16 + lane / 4 + 8] = sums.values[m][n][j + 2];
      }
    }
  }
}

/// Channels of which sums are wanted, to turn them back where rows are turned: those of elements are not.
template <class P, class Rows>
__device__ std::int64_t summed_channels(P const& p, Rows const&) {
  return p.shape.output_dim();
}
template <class Rows>
__device__ void turn_result(Rows const&, float4&) {}

/// The ticket of a join: of parts that follow each other, or of such joins. @param first  part
template <class P>
__device__ SignedTicket* join_ticket(P const& p, MmaJob const& job, std::int64_t first, bool of_joins) {
  return p.arrays.tickets + 2 * job.parts.place(first) + (of_joins ? 1 : 0);
}
/// Signs the tickets of the joins that the block's part goes into, by thread 0: while tiles are on their way.
template <class P>
__device__ void sign_join(P const& p, MmaJob const& job) {
  if (threadIdx.x != 0 || job.parts.count == 1) return;
  sign_ticket(join_ticket(p, job, job.part / join_parts * join_parts, false), p.arrays.signature);
  if (job.parts.count > join_parts) sign_ticket(join_ticket(p, job, 0, true), p.arrays.signature);
}

/// Calls `join(first, step, count, last)` to join parts, where the block is the last of those who wrote them: sixteen
/// parts that follow each other, then these joins, if there are several. By all threads
/// @pre  the block has written its part
template <class P, class Join>
__device__ void join_as_last(P const& p, MmaJob const& job, Join const& join) {
  std::int64_t first = job.part / join_parts * join_parts;
  std::int32_t step = 1;
  for (;;) {
    std::int64_t const all = (job.parts.count - 1) / step + 1;
    bool const last = step > 1 || all <= join_parts;
    auto const count = static_cast<std::int32_t>(last ? all : min(all - first, std::int64_t{join_parts}));
    if (!is_last_block(join_ticket(p, job, first, step > 1), p.arrays.signature, count)) return;
    join(first, step, count, last);
    if (last) return;
    first = 0;
    step = join_parts;
  }
}

/// The state of a query's learned sink, which goes with the job's first part.
template <class P>
__device__ OnlineSoftmax<float> sink_of(P const& p, MmaShared<P::queries> const& shared, MmaJob const& job,
                                        std::int32_t q) {
  if (p.sinks == nullptr || job.part != 0) return {};
  return OnlineSoftmax<float>::of_sink(global_pointer(p.sinks)[shared.heads[q]]);
}

/// Finds the softmax of a query over what warps have of it, and, with the job's first part, its learned sink, and the
/// factors of the warps' sums. By one thread. @param states  of warps that have a part of the rows each
template <class P>
__device__ void join_states(P const& p, MmaShared<P::queries>& shared, MmaJob const& job, std::int32_t q,
                            std::int32_t states) {
  OnlineSoftmax<float> const sink = sink_of(p, shared, job, q);
  auto const state = [&](std::int32_t w) {
    float2 const both = shared.states[w][q];
    return OnlineSoftmax<float>{both.x, both.y};
  };
  float max = sink.max;
  for (std::int32_t w = 0; w < states; ++w) {
    if (state(w).sum != 0) max = larger_or_nan(max, state(w).max);
  }
  float sum = sink.factor(max) * sink.sum;
  for (std::int32_t w = 0; w < states; ++w) {
    float const factor = state(w).factor(max);
    shared.factors[w][q] = factor;
    sum += factor * state(w).sum;
  }
  shared.whole[q] = {max, sum};
}

/// Writes a block's part of a job, or its result, and joins parts where it is the last. By all threads
/// @param sum_of  (query, channel) to the sums of four channels; @param channels  of which there are sums
template <class P, class SumOf>
__device__ void finish_sums(P const& p, MmaShared<P::queries>& shared, MmaJob const& job, std::int64_t channels,
                            SumOf const& sum_of) {
  std::int64_t const place = job.parts.place(job.part);
  for_output(channels, job, [&](std::int32_t q, std::int32_t channel) {
    float4 const sum = sum_of(q, channel);
    if (channel >= p.shape.output_dim()) return;
    if (job.parts.count == 1) {
      write_output(p, shared, job, q, channel, sum);
    } else {
      write_part(p, shared, place, q, channel, sum);
    }
  });
  if (job.parts.count == 1) return;

  join_as_last(p, job, [&](std::int64_t first, std::int32_t step, std::int32_t count, bool last) {
    std::int64_t const into = job.parts.place(first);
    join(p, shared, job, first, step, count, [&](std::int32_t q, std::int32_t channel, float4 const& sum) {
      if (last) {
        write_output(p, shared, job, q, channel, sum);
      } else {
        write_part(p, shared, into, q, channel, sum);
      }
    });
  });
}

/// Adds up what the block's warps have, learned sinks with the job's first part, and writes it. By all threads
/// @param own  the warp's ring, whose tiles are dead; @param rings  of all warps, `ring_bytes` apart
template <class P, class Rows, class Sums>
__device__ void finish_piece(P const& p, MmaShared<P::queries>& shared, MmaJob const& job, Rows const& rows,
                             Sums const& sums, unsigned char* rings, std::int32_t ring_bytes) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto const lane = thread % warp_threads;
  auto const warp = thread / warp_threads;
  auto const warps = static_cast<std::int32_t>(blockDim.x) / warp_threads;
  auto* const own = reinterpret_cast<float*>(rings + warp * ring_bytes);
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::int32_t const q = n * 8 + lane % 4 * 2 + j;
      if (lane < 4 && q < job.query_count) shared.states[warp][q] = {sums.origin[n][j], sums.weights[n][j]};
    }
  }
  store_sums(p, rows, sums, job.query_count, own);
  __syncthreads();
  if (thread < job.query_count) join_states(p, shared, job, thread, warps);
  __syncthreads();
  finish_sums(p, shared, job, summed_channels(p, rows), [&](std::int32_t q, std::int32_t channel) {
    float4 sum{};
    for (std::int32_t w = 0; w < warps; ++w) {
      auto const* const from = reinterpret_cast<float const*>(rings + w * ring_bytes) + q * P::sum_pitch + channel;
      add_four(sum, shared.factors[w][q], *reinterpret_cast<float4 const*>(from));
    }
    turn_result(rows, sum);
    return sum;
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
