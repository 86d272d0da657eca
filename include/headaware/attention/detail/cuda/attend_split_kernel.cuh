#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>

#include <cub/block/block_scan.cuh>

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
  using Scan = cub::BlockScan<RowsAndParts, attend_split_threads>;
  __shared__ typename Scan::TempStorage scan_storage;
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  std::int64_t const segments = shape.segments();
  bool bad = false;
  RowsAndParts running{0, 0};
  for (std::int64_t base = 0; base < segments; base += attend_split_threads) {
    std::int64_t const s = base + thread;
    RowsAndParts count{0, 0};
    if (s < segments) {
      std::int64_t const rows = p.view.head(s / shape.num_kv_heads, s % shape.num_kv_heads).rows();
      bool const possible = rows >= 0 && rows <= p.max_rows;
      bad = bad || !possible;
      count.rows = possible ? rows : 0;
      count.parts = static_cast<std::int32_t>(p.kv.splits(count.rows));
      for (std::int64_t tile = 0; tile < p.kv.tiles; ++tile) arrays.tickets[s * p.kv.tiles + tile] = 0;
    }
    RowsAndParts before;
    RowsAndParts all;
    Scan(scan_storage).ExclusiveScan(count, before, RowsAndParts{0, 0}, AddRowsAndParts{}, all);
    if (s < segments) arrays.split_offsets[s] = running.parts + before.parts;
    running = AddRowsAndParts{}(running, all);
    __syncthreads();
  }
  bad = __syncthreads_or(bad || running.rows > p.max_rows ? 1 : 0) != 0;
  if (thread == 0) {
    arrays.split_offsets[segments] = bad ? 0 : running.parts;  // no splits: nothing is written
    if (p.d_status != nullptr) *p.d_status = bad ? 1 : 0;
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
