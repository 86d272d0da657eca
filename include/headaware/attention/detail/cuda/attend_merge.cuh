#pragma once

#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_tile.cuh>
#include <headaware/attention/detail/cuda/attend_work.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/signed_ticket.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/element.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Merges a segment's tile from its KV splits, in their order whichever block came last.
/// @param weights  shared, [Queries, merge_splits_at_once]: of the first splits, so that they are read once
template <int Queries, class Parameters>
__device__ void merge_splits(Parameters const& p, AttendSoftmaxes<Queries>& softmaxes, AttendPlace const& place,
                             std::int64_t first_part, float* weights) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto const lane = thread % warp_threads;
  auto const warp = thread / warp_threads;
  auto const part = [&](std::int64_t split, std::int32_t q) {
    float2 const both = __ldcg(p.arrays.parts + (first_part + split * p.kv.tiles) * Queries + q);
    return OnlineSoftmax<float>{both.x, both.y};
  };
  for (std::int32_t q = warp; q < place.query_count; q += attend_block_threads<Queries, Parameters> / warp_threads) {
    float max = -INFINITY;
    for (std::int64_t split = lane; split < place.splits; split += warp_threads) {
      OnlineSoftmax<float> const here = part(split, q);
      if (here.sum != 0) max = larger_or_nan(max, here.max);
    }
    max = __shfl_sync(0xffffffffU, reduce_lanes(max, LargerOrNan{}), 0);
    float sum = 0;
    for (std::int64_t split = lane; split < place.splits; split += warp_threads) {
      OnlineSoftmax<float> const here = part(split, q);
      float const weight = here.factor(max);
      sum += weight * here.sum;
      if (split < merge_splits_at_once) weights[q * merge_splits_at_once + split] = weight;
    }
    __syncwarp();
    sum = sum_lanes(sum);
    if (lane == 0) softmaxes.set_softmax(q, {max, sum});
    __syncwarp();
  }
  __syncthreads();
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  for (std::int32_t i = thread; i < place.query_count * channels; i += attend_block_threads<Queries, Parameters>) {
    std::int32_t const q = i / channels;
    std::int32_t const c = i % channels;
    OnlineSoftmax<float> const whole = softmaxes.softmax(q);
    float sum = 0;
    for (std::int64_t split = 0; split < place.splits; ++split) {
      std::int64_t const at = first_part + split * p.kv.tiles;
      float const weight =
          split < merge_splits_at_once ? weights[q * merge_splits_at_once + split] : part(split, q).factor(whole.max);
      sum += weight * __ldcg(p.arrays.sums + (at * Queries + q) * channels + c);
    }
    QueryRow const row(p.shape, place.sequence, place.kv_head, place.first_query + q);
    p.output.data[p.output.layout.offset(row.sequence, row.head, row.token, c)] =
        from_float<typename Parameters::Output>(sum * whole.inverse());
    if (c == 0 && p.output.lse != nullptr) p.output.lse[row.lse_index(p.shape)] = whole.lse();
  }
}

/// Writes the block's sums: the result, or the part of its split; the last block of the segment's tile merges those.
/// @param sum_of   (query, channel) to the block's sum
/// @param weights  shared, as `merge_splits` takes it; what `sum_of` reads may lie there
template <int Queries, class Parameters, class SumOf>
__device__ void finish_split(Parameters const& p, AttendSoftmaxes<Queries>& softmaxes, AttendPlace const& place,
                             float* weights, SumOf const& sum_of) {
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  std::int64_t const first_part = place.first_split * p.kv.tiles + place.tile;
  std::int64_t const at = first_part + place.split * p.kv.tiles;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < place.query_count * channels;
       i += attend_block_threads<Queries, Parameters>) {
    std::int32_t const q = i / channels;
    std::int32_t const c = i % channels;
    float const sum = sum_of(q, c);
    OnlineSoftmax<float> const part = softmaxes.softmax(q);
    if (place.splits == 1) {
      QueryRow const row(p.shape, place.sequence, place.kv_head, place.first_query + q);
      p.output.data[p.output.layout.offset(row.sequence, row.head, row.token, c)] =
          from_float<typename Parameters::Output>(sum * part.inverse());
      if (c == 0 && p.output.lse != nullptr) p.output.lse[row.lse_index(p.shape)] = part.lse();
    } else {
      p.arrays.sums[(at * Queries + q) * channels + c] = sum;
      if (c == 0) p.arrays.parts[at * Queries + q] = {part.max, part.sum};
    }
  }
  if (place.splits == 1) return;
  if (!is_last_block(split_ticket(p, place), p.arrays.signature, place.splits)) return;
  merge_splits<Queries>(p, softmaxes, place, first_part, weights);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
