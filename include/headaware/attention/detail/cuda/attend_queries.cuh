#pragma once

#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/online_softmax.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Reads the block's queries, and begins their softmaxes: in one split of a segment from the learned sinks.
/// @param queries  shared, [Queries, query_pitch]; zeros where there is no query or channel
template <int Queries, class Parameters>
__device__ void take_queries(Parameters const& p, AttendSoftmaxes<Queries>& softmaxes, AttendPlace const& place,
                             float* queries) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  for (std::int32_t i = thread; i < Queries * p.memory.query_pitch; i += attend_block_threads<Queries, Parameters>) {
    std::int32_t const q = i / p.memory.query_pitch;
    std::int32_t const c = i % p.memory.query_pitch;
    float x = 0;
    if (q < place.query_count && c < p.shape.head_dim) {
      QueryRow const row(p.shape, place.sequence, place.kv_head, place.first_query + q);
      x = element_value(p.queries.data[p.queries.layout.offset(row.sequence, row.head, row.token, c)]);
    }
    queries[i] = x;
  }
  if (thread < Queries) {
    OnlineSoftmax<float> none;
    if (p.sinks != nullptr && place.split == 0 && thread < place.query_count) {
      QueryRow const row(p.shape, place.sequence, place.kv_head, place.first_query + thread);
      none = OnlineSoftmax<float>::of_sink(p.sinks[row.head]);
    }
    softmaxes.set_softmax(thread, none);
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
