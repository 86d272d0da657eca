#pragma once

// What becomes of a block's sums over many query rows: a result, or the part of one, joined as those of the kernel for
// decoding (mma_join). Each warp has its queries for itself, and parts lie as its registers do, so that whoever joins
// them goes on as if it had summed them up itself.

#include <headaware/attention/detail/cuda/chunk_parameters.cuh>
#include <headaware/attention/detail/cuda/chunk_tile.cuh>
#include <headaware/attention/detail/cuda/mma_join.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/detail/online_softmax.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The states of the two query rows of a lane.
using ChunkStates = OnlineSoftmax<float>[2];

/// Writes a warp's results, where rows of the output lie side by side. @param own  shared, where the warp's tile was
template <class P>
__device__ void write_chunk_rows(P const& p, ChunkShared<P> const& both, MmaJob const& job, ChunkOutputs<P> const& sums,
                                 unsigned char* own) {
  using O = typename P::Output;
  constexpr std::int32_t size = sizeof(O);
  constexpr std::int32_t pitch = 16 * P::channel_tiles * size + 16;
  constexpr std::int32_t lanes = P::channel_tiles * size;  // of a row, 16 bytes each
  static_assert(16 * pitch <= P::stage_bytes && warp_threads % lanes == 0);
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const first = static_cast<std::int32_t>(threadIdx.x) / warp_threads * 16;
#pragma unroll
  for (int n = 0; n < 2 * P::channel_tiles; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      unsigned char* const to = own + (lane / 4 + 8 * j) * pitch + (n * 8 + lane % 4 * 2) * size;
      float const a = sums.values[n][2 * j];
      float const b = sums.values[n][2 * j + 1];
      if constexpr (size == 4) {
        *reinterpret_cast<float2*>(to) = {a, b};
      } else {
        *reinterpret_cast<std::uint32_t*>(to) = pack_pair<O>(a, b);
      }
    }
  }
  __syncwarp();
  std::int32_t const column = lane % lanes;
  std::int32_t const channel = column * (16 / size);
  if (channel >= p.shape.output_dim()) return;
#pragma unroll
  for (int i = 0; i < 16 * lanes / warp_threads; ++i) {
    std::int32_t const row = i * (warp_threads / lanes) + lane / lanes;
    if (first + row >= job.query_count) return;
    *reinterpret_cast<uint4*>(global_pointer(p.output.data) + both.output_places[first + row] + channel) =
        *reinterpret_cast<uint4 const*>(own + row * pitch + column * 16);
  }
}

/// Writes a job's results. By all threads @param states  which the sums are relative to; @param rings  shared, dead
/// tiles
template <class P>
__device__ void write_chunk(P const& p, ChunkShared<P>& both, MmaJob const& job, ChunkOutputs<P>& sums,
                            ChunkStates const& states, unsigned char* rings) {
  MmaShared<P::queries>& shared = both.mma;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
  unsigned char* const own = rings + warp * P::stage_bytes;
  if (p.output_rows) {
    if (warp * 16 >= job.query_count) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::int32_t const q = warp * 16 + lane / 4 + 8 * j;
      sums.rescale(j, states[j].inverse());
      if (lane % 4 == 0 && q < job.query_count && p.output.lse != nullptr) write_lse(p, shared, job, q, states[j]);
    }
    return write_chunk_rows(p, both, job, sums, own);
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    std::int32_t const row = lane / 4 + 8 * j;
    if (lane % 4 == 0) shared.whole[warp * 16 + row] = {states[j].max, states[j].sum};
#pragma unroll
    for (int n = 0; n < 2 * P::channel_tiles; ++n) {
      *reinterpret_cast<float2*>(own + (row * P::sum_pitch + n * 8 + lane % 4 * 2) * 4) = {sums.values[n][2 * j],
                                                                                           sums.values[n][2 * j + 1]};
    }
  }
  __syncthreads();
  for_output(p.shape.output_dim(), job, [&](std::int32_t q, std::int32_t channel) {
    auto const* const of_warp = reinterpret_cast<float const*>(rings + q / 16 * P::stage_bytes);
    write_output(p, shared, job, q, channel,
                 *reinterpret_cast<float4 const*>(of_warp + q % 16 * P::sum_pitch + channel));
  });
}

/// The lane's place in a warp's sums of a part, [output_dim / 8, 32]; the next 8 channels are 32 further.
template <class P>
__device__ float4* part_sums(P const& p, std::int64_t place) {
  std::int64_t const warp = place * max_mma_warps + threadIdx.x / warp_threads;
  return reinterpret_cast<float4*>(global_pointer(p.arrays.sums)) + warp * (p.shape.output_dim() * 4) +
         threadIdx.x % warp_threads;
}
/// The states of a part's 16 queries of this warp.
template <class P>
__device__ float2* part_states(P const& p, std::int64_t place) {
  return global_pointer(p.arrays.parts) + place * P::queries + threadIdx.x / warp_threads * 16;
}

/// Writes a part. By a warp
template <class P>
__device__ void write_chunk_part(P const& p, std::int64_t place, ChunkOutputs<P> const& sums,
                                 ChunkStates const& states) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  float4* const to = part_sums(p, place);
  for_channels(static_cast<std::int32_t>(p.shape.output_dim()), [&]<int I>() {
#pragma unroll
    for (int n = 2 * I; n < 2 * I + 2; ++n) {
      float const(&tile)[4] = sums.values[n];
      if (n * 8 < p.shape.output_dim()) to[n * warp_threads] = {tile[0], tile[1], tile[2], tile[3]};
    }
  });
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (lane % 4 == 0) part_states(p, place)[lane / 4 + 8 * j] = {states[j].max, states[j].sum};
  }
}

/// Adds up `count` parts, `step` apart, from part `first` on, by a warp.
/// @param count  at most 32; @param factors  shared, the warp's, [16 queries, 32]; @param sums, states  written
template <class P>
__device__ void join_chunk_parts(P const& p, ChunkShared<P>& both, MmaJob const& job, float* factors,
                                 std::int64_t first, std::int32_t step, std::int32_t count, ChunkOutputs<P>& sums,
                                 ChunkStates& states) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  float2* const whole = both.mma.whole + threadIdx.x / warp_threads * 16;
  float2 const* const own = part_states(p, job.parts.place(first + std::int64_t{min(lane, count - 1)} * step));
#pragma unroll 4
  for (int q = 0; q < 16; ++q) {
    float2 state{-INFINITY, 0};
    if (lane < count) state = __ldcg(own + q);
    OnlineSoftmax<float> const part{state.x, state.y};
    float const max = __shfl_sync(~0U, reduce_lanes(part.sum != 0 ? part.max : -INFINITY, LargerOrNan{}), 0);
    float const factor = part.factor(max);
    factors[q * warp_threads + lane] = factor;
    float const sum = sum_lanes(factor * part.sum);
    if (lane == 0) whole[q] = {max, sum};
  }
  __syncwarp();
#pragma unroll
  for (int j = 0; j < 2; ++j) states[j] = {whole[lane / 4 + 8 * j].x, whole[lane / 4 + 8 * j].y};
  sums = {};
#pragma unroll 1
  for (std::int32_t i = 0; i < count; ++i) {
    float const upper = factors[lane / 4 * warp_threads + i];
    float const lower = factors[(lane / 4 + 8) * warp_threads + i];
    float4 const* const from = part_sums(p, job.parts.place(first + std::int64_t{i} * step));
    auto const add = [&]<int First>() {
      float4 tiles[P::channel_tiles];
      unrolled<P::channel_tiles>([&]<int N>() {
        constexpr int tile = First + N;
        tiles[N] = {};
        if (tile * 8 < channels) tiles[N] = load_written<tile * warp_threads * 16>(from);
      });
#pragma unroll
      for (int n = 0; n < P::channel_tiles; ++n) {
        float(&to)[4] = sums.values[First + n];
        to[0] += upper * tiles[n].x;
        to[1] += upper * tiles[n].y;
        to[2] += lower * tiles[n].z;
        to[3] += lower * tiles[n].w;
      }
    };
    add.template operator()<0>();
    if (channels > 8 * P::channel_tiles) add.template operator()<P::channel_tiles>();
  }
  __syncwarp();
}

/// Writes what the block's warps have summed up, learned sinks with the job's first part, and joins parts. By all
/// threads @param rings  shared, dead tiles
template <class P>
__device__ void finish_chunk(P const& p, ChunkShared<P>& both, MmaJob const& job, ChunkOutputs<P>& sums,
                             unsigned char* rings) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const first_query = static_cast<std::int32_t>(threadIdx.x) / warp_threads * 16;
  bool const has_queries = first_query < job.query_count;
  ChunkStates states;
  sums.gather();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    OnlineSoftmax<float> const sink = sink_of(p, both.mma, job, first_query + lane / 4 + 8 * j);
    OnlineSoftmax<float> const own{-sums.shift[j], sums.weights[j]};
    float const max = own.sum != 0 ? larger_or_nan(sink.max, own.max) : sink.max;
    float const factor = own.factor(max);
    states[j] = {max, sink.factor(max) * sink.sum + factor * own.sum};
    sums.rescale(j, factor);
  }
  if (job.parts.count == 1) return write_chunk(p, both, job, sums, states, rings);
  if (has_queries) write_chunk_part(p, job.parts.place(job.part), sums, states);
  join_as_last(p, job, [&](std::int64_t first, std::int32_t step, std::int32_t count, bool last) {
    if (has_queries) {
      auto* const factors = reinterpret_cast<float*>(rings + first_query / 16 * P::stage_bytes);
      join_chunk_parts(p, both, job, factors, first, step, count, sums, states);
    }
    if (last) {
      write_chunk(p, both, job, sums, states, rings);
    } else if (has_queries) {
      write_chunk_part(p, job.parts.place(first), sums, states);
    }
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
