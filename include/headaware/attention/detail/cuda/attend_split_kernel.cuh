#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/segment_scan.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int32_t attend_split_threads = 512;

template <class View>
struct AttendSplitParameters {
  View view;
  AttentionShape shape;
  KvSplit kv;
  AttendArrays arrays;
  std::int64_t tickets;  ///< to clear
  std::int64_t max_rows;
  std::int32_t* d_status;
};

/// Divides every segment into KV splits, by one block. Cost: O(segments / 512) rounds.
template <class View>
HEADAWARE_KERNEL void __launch_bounds__(attend_split_threads, 1)
    attend_split_kernel(AttendSplitParameters<View> const __grid_constant__ parameters) {
  __shared__ SharedStorage<AttendSplitParameters<View>> parameter_storage;
  auto const& p = share_parameters(parameters, parameter_storage);
  AttentionShape const& shape = p.shape;
  AttendArrays const& arrays = p.arrays;
  std::int64_t const segments = shape.segments();
  for (std::int64_t i = threadIdx.x; i < p.tickets; i += attend_split_threads) arrays.tickets[i] = 0;
  bool bad = false;
  auto const split = [&](std::int64_t s) {
    std::int64_t const held = p.view.head(s / shape.num_kv_heads, s % shape.num_kv_heads).rows();
    bool const possible = held >= 0 && held <= p.max_rows;
    bad = bad || !possible;
    std::int64_t const rows = possible ? held : 0;
    return RowsAndParts{rows, static_cast<std::int32_t>(p.kv.splits(rows))};
  };
  RowsAndParts const all = scan_segments<attend_split_threads>(
      segments, split,
      [&](std::int64_t s, RowsAndParts before, RowsAndParts) { arrays.split_offsets[s] = before.parts; });
  bad = __syncthreads_or(bad || all.rows > p.max_rows ? 1 : 0) != 0;
  if (threadIdx.x == 0) {
    arrays.split_offsets[segments] = bad ? 0 : all.parts;  // no splits: nothing is written
    if (p.d_status != nullptr) *p.d_status = bad ? 1 : 0;
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
