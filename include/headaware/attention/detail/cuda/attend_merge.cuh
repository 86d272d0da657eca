#pragma once

#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_tile.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Merges a segment's tile from its KV splits, in their order whichever block came last.
/// @param weights  shared, [Queries, merge_splits_at_once]: of the first splits, so that they are read once
template <int Queries, class Parameters>
__device__ void merge_splits(Parameters const& p, AttendShared<Queries>& shared, std::int64_t sequence,
                             std::int64_t kv_head, std::int64_t first_query, std::int32_t queries,
                             std::int64_t first_part, std::int64_t splits, float* weights) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto const lane = thread % warp_threads;
  auto const warp = thread / warp_threads;
  auto const part = [&](std::int64_t split, std::int32_t q) {
    float2 const both = __ldcg(p.arrays.parts + (first_part + split * p.kv.tiles) * Queries + q);
    return OnlineSoftmax<float>{both.x, both.y};
  };
  for (std::int32_t q = warp; q < queries; q += attend_block_threads<Queries, Parameters> / warp_threads) {
    float max = -INFINITY;
    for (std::int64_t split = lane; split < splits; split += warp_threads) {
      OnlineSoftmax<float> const here = part(split, q);
      if (here.sum != 0) max = larger_or_nan(max, here.max);
    }
    max = __shfl_sync(0xffffffffU, reduce_lanes(max, LargerOrNan{}), 0);
    float sum = 0;
    for (std::int64_t split = lane; split < splits; split += warp_threads) {
      OnlineSoftmax<float> const here = part(split, q);
      float const weight = here.factor(max);
      sum += weight * here.sum;
      if (split < merge_splits_at_once) weights[q * merge_splits_at_once + split] = weight;
    }
    __syncwarp();
    sum = sum_lanes(sum);
    if (lane == 0) shared.set_softmax(q, {max, sum});
    __syncwarp();
  }
  __syncthreads();
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  for (std::int32_t i = thread; i < queries * channels; i += attend_block_threads<Queries, Parameters>) {
    std::int32_t const q = i / channels;
    std::int32_t const c = i % channels;
    OnlineSoftmax<float> const whole = shared.softmax(q);
    float sum = 0;
    for (std::int64_t split = 0; split < splits; ++split) {
      std::int64_t const at = first_part + split * p.kv.tiles;
      float const weight =
          split < merge_splits_at_once ? weights[q * merge_splits_at_once + split] : part(split, q).factor(whole.max);
      sum += weight * __ldcg(p.arrays.sums + (at * Queries + q) * channels + c);
    }
    QueryRow const row(p.shape, sequence, kv_head, first_query + q);
    p.output.data[p.output.layout.offset(row.sequence, row.head, row.token, c)] =
        from_float<typename Parameters::Output>(sum * whole.inverse());
    if (c == 0 && p.output.lse != nullptr) p.output.lse[row.lse_index(p.shape)] = whole.lse();
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
